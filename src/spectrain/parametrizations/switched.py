"""The additive form whose vectors are working copies of candidates, and change places with others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spectrain.parametrizations.additive import Additive
from spectrain.sharding import is_sharded, local, replicated, rows_here, whole, write_back

if TYPE_CHECKING:
    from spectrain.method import Method


class Switched(Additive):
    """W = W₀ + scale · B A, where a row of A and a column of B each stand for a slot of their pool.

    In host memory (`hosted`) are the pools of k = min(m, n) slots, `row_pool` (k, n) and `column_pool`
    (k, m); `row_age` and `column_age` (r,), for each vector the updates since its moments were zero,
    below zero while it is frozen; `switched` (), the rows of A exchanged so far, and columns of B as
    many. Rows, columns and slots are taken in turn, so this number says all: the next ones are row
    `switched` and column r/2 + `switched`, which leave slot `switched` for slot r + `switched`.
    """

    row_pool: Tensor
    column_pool: Tensor
    row_age: Tensor
    column_age: Tensor
    switched: Tensor

    def __init__(self, linear: nn.Module, method: Method, *, rank: int, scale: float) -> None:
        super().__init__(linear, method, rank=rank, scale=scale)
        self.rank = rank
        place = torch.device("meta" if self.A.is_meta else "cpu")
        like = torch.empty(0, dtype=self.A.dtype, device=place)
        number = torch.empty(0, dtype=torch.int64, device=place)
        self.hosted = {
            "row_pool": like.new_zeros(self.size, self.in_features),
            "column_pool": like.new_zeros(self.size, self.out_features),
            "row_age": number.new_zeros(rank),
            "column_age": number.new_zeros(rank),
            "switched": number.new_zeros(()),
        }
        self._known_seed: int | None = None
        # Of the frozen vectors: factor, dimension, numbers, numbers on this process, values.
        self._held: list[tuple[str, int, Tensor, Tensor, Tensor]] = []

    @property
    def known_seed(self) -> int:
        """`seed` as a number, read off its device once."""
        if self._known_seed is None:
            self._known_seed = int(self.seed)
        return self._known_seed

    def forget(self) -> None:
        super().forget()
        self._known_seed = None
        self._held = []

    @property
    def frozen(self) -> int:
        """How many rows of A are frozen, and as many columns of B."""
        return int((self.column_age < 0).sum())

    def _turn(self, count: int, back: int = 0) -> tuple[Tensor, Tensor]:
        """The next `count` rows of A and columns of B, from `back` before the next one on."""
        turns = int(self.switched) - back + torch.arange(count, device="cpu")
        return turns % self.rank, (turns + self.rank // 2) % self.rank

    @torch.no_grad()
    def load_slots(self) -> None:
        """Copy the first slots of the pools into the factors, and take scale · B A out of W₀."""
        slots = torch.arange(self.rank, device="cpu")
        rows, columns = self._turn(self.rank)
        self.A[rows.to(self.A.device)] = self.row_pool[slots].to(self.A)
        self.B[:, columns.to(self.B.device)] = self.column_pool[slots].mT.to(self.B)
        self._add(-self.B.detach(), self.A.detach())

    @torch.no_grad()
    def switch(self, count: int) -> tuple[Tensor, Tensor]:
        """Exchange `count` rows of A and columns of B for other candidates, and what that changes for W₀.

        W₀ ← W₀ + scale · Σ b_k (a_k − c)ᵀ + scale · Σ (b_l − d) a_lᵀ in one product of 2 `count`
        columns: no vector of either kind is the counterpart of one of the other. Returns the numbers
        of the rows and of the columns.
        """
        start = int(self.switched)
        slots = (start + torch.arange(count, device="cpu")) % self.size
        others = (slots + self.rank) % self.size
        rows, columns = self._turn(count)
        # On several processes each makes the whole exchange, and keeps its part.
        A, B = whole(self.A.detach()), whole(self.B.detach())
        here, there = rows.to(A.device), columns.to(A.device)
        a, b = A[here], B[:, there]
        self.row_pool[slots], self.column_pool[slots] = (
            a.to(self.row_pool),
            b.mT.to(self.column_pool),
        )
        c, d = self.row_pool[others].to(A), self.column_pool[others].mT.to(B)
        self._add(torch.cat((B[:, here], b - d), dim=1), torch.cat((a - c, A[there])))
        A[here], B[:, there] = c, d
        if is_sharded(self.A):
            write_back(A, self.A)
            write_back(B, self.B)
        self.switched.add_(count)
        return rows, columns

    def _add(self, left: Tensor, right: Tensor) -> None:
        """W₀ ← W₀ + scale · left right."""
        left, right = (replicated(t, self.base) for t in (left, right))
        if self.base.dtype == left.dtype:
            self.base.addmm_(left, right, alpha=self.scale)
        else:  # the product in the factors' precision
            self.base.add_(left @ right, alpha=self.scale)

    @torch.no_grad()
    def hold(self) -> None:
        """Before an update: frozen vectors get a gradient of zeros, and their values are remembered."""
        frozen = self.frozen
        switched_rows, switched_columns = self._turn(frozen, back=frozen)
        self._held = []
        # Frozen are the counterparts of what was switched.
        for name, dim, index in (("A", 0, switched_columns), ("B", 1, switched_rows)):
            factor = getattr(self, name)
            here = (rows_here(index, factor) if dim == 0 else index).to(factor.device)
            if factor.grad is not None:
                local(factor.grad).index_fill_(dim, here, 0.0)
            values = local(factor.detach()).index_select(dim, here)
            self._held.append((name, dim, index, here, values))

    @torch.no_grad()
    def put_back(self) -> list[tuple[nn.Parameter, int, Tensor]]:
        """After an update: frozen vectors are what they were. Returns factor, dimension and numbers."""
        for name, dim, _, here, values in self._held:
            local(getattr(self, name).detach()).index_copy_(dim, here, values)
        held, self._held = self._held, []
        return [(getattr(self, name), dim, index) for name, dim, index, _, _ in held]
