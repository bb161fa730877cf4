"""The projected form: a dense frozen W whose update lives in a small subspace."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrain.linalg import working
from spectrain.parametrizations.base import (
    Factored,
    Gradients,
    compute_dtype,
    own_backward,
    thin_product,
)
from spectrain.sharding import divided, replicated, whole

if TYPE_CHECKING:
    from spectrain.method import Method


class Projected(Factored):
    """W = base + basisᵀ R (side "left") or base + R basis (side "right").

    `base` (m, n) is frozen, and so are the r rows of the basis, of length a: m on the left, n on the
    right (parametrizations/bases.py says where they are kept). `R` (r, n) or (m, r) trains. Its
    gradient is the projection of the dense one and is formed without it: (gy basisᵀ)ᵀ x or
    gyᵀ (x basisᵀ). An attached method takes R out after every step, so R is zero in every forward pass
    and costs nothing there.

    While `gather` is on, the backward passes form the dense gradient too, and R's is its projection.
    It is the gradient of a leaf (m, n) that has no storage, so that autograd adds up micro-batches as
    it does for any other.
    """

    _passing = (*Factored._passing, "probe", "_stepped")

    def __init__(
        self,
        linear: nn.Module,
        method: Method,
        *,
        rank: int,
        side: str = "std",
        gathers: bool = False,
    ) -> None:
        """`side` is "left", "right", "std" (the shorter side of W) or "reverse_std" (the longer).

        gathers: the method collects the dense gradient in every step.
        """
        super().__init__(linear, method)
        weight = self.take_weight()
        m, n = weight.shape
        shorter, longer = ("right", "left") if m >= n else ("left", "right")
        self.side = {"std": shorter, "reverse_std": longer}.get(side, side)
        self.rank, self.length = rank, m if self.side == "left" else n
        self.rank_dim = 0 if self.side == "left" else 1  # the dimension of R that the basis indexes
        self.probe: Tensor | None = None  # the leaf whose gradient the dense one is
        # R as the optimizer has it: under fully_shard another tensor than in a forward pass.
        self._stepped: weakref.ref[nn.Parameter] | None = None
        self.resident = ("probe",) if gathers else ()
        self.base = self.parameter(weight, trainable=False)
        self.R = nn.Parameter(weight.new_zeros((rank, n) if self.side == "left" else (m, rank)))

    def table(self) -> tuple[Tensor, Tensor | None]:
        """The rows of the basis (r, a) and None; or a table (a, a), and which of its rows they are (r,)."""
        raise NotImplementedError

    def rows(self) -> Tensor:
        """The basis (r, a)."""
        return _chosen(*self.table())

    def back(self) -> Tensor:
        """R in the coordinates of W (m, n)."""
        return self.rows().mT @ self.R if self.side == "left" else self.R @ self.rows()

    def down(self, dense: Tensor) -> Tensor:
        """A matrix (m, n) projected to the coordinates of R."""
        rows = whole(self.rows())
        dense = dense.to(rows.dtype)
        return rows @ dense if self.side == "left" else dense @ rows.mT

    def dense(self) -> Tensor:
        return working(self.base) + self.back()

    @torch.no_grad()
    def fold(self, scale: float, decay: float) -> None:
        """base ← (1 − decay) · base + scale · P R, then R ← 0."""
        R, rows = (replicated(t, self.base) for t in (self.R, self.rows()))
        left, right = (rows.mT, R) if self.side == "left" else (R, rows)
        if self.base.dtype == self.R.dtype:  # in place, without a second matrix of W's size
            self.base.addmm_(left, right, beta=1 - decay, alpha=scale)
        else:  # the product in R's precision
            self.base.mul_(1 - decay).add_(left @ right, alpha=scale)
        self.R.zero_()

    @torch.no_grad()
    def descend(self, step: Tensor | None, scale: float = 1.0, decay: float = 0.0) -> None:
        """base ← (1 − decay) · base − scale · step (m, n), then R ← 0."""
        if decay:
            self.base.mul_(1 - decay)
        if step is not None:
            self.base.sub_(divided(step, self.base), alpha=scale)
        self.R.zero_()

    def gather(self, on: bool = True) -> None:
        """Collect the dense gradient from here on; with on=False no longer."""
        if on and self.probe is None:
            zero = torch.zeros((), dtype=self.R.dtype, device=self.R.device)
            shape = self.out_features, self.in_features
            self.probe = zero.expand(shape).detach().requires_grad_()
            self._stepped = weakref.ref(self.R)
            if self.accumulated is not None:
                self.probe.register_post_accumulate_grad_hook(self.accumulated)  # type: ignore[no-untyped-call]
        elif not on:
            self.discard()  # the graph of a backward pass still holds the leaf, and all it has
            self.probe = None

    def reduce(self, mean: Callable[[Tensor], None]) -> None:
        if self.probe is not None:
            if self.probe.grad is None:  # a layer that another process may have used
                self.probe.grad = self.probe.detach().clone(memory_format=torch.contiguous_format)
            mean(self.probe.grad)

    def leaves(self) -> tuple[Tensor, ...]:
        return (self.R,) if self.probe is None else (self.R, self.probe)

    @property
    def gathered(self) -> Tensor | None:
        """The dense gradient (m, n) of this step so far; None where none is collected."""
        return None if self.probe is None else self.probe.grad

    @torch.no_grad()
    def clipped(self) -> tuple[Tensor, Tensor] | None:
        """`gathered`, scaled in place by what R's gradient was scaled by since the backward pass.

        That is by clipping or by a gradient scaler. Beside it, its projection to the coordinates of R.
        None where a gradient is missing.
        """
        dense, seen = self.gathered, self.R.grad
        if dense is None or seen is None:
            return None
        inside = self.down(dense)
        energy = inside.square().sum()
        scale = torch.where(energy > 0, (whole(seen) * inside).sum() / energy, 1.0)
        return dense.mul_(scale), inside.mul_(scale)

    def discard(self) -> None:
        """Forget what was collected, and go on collecting."""
        if self.probe is not None:
            self.probe.grad = None

    def forget(self) -> None:
        self.gather(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self.probe is not None:  # begun in another dtype or on another device
            self.probe = None
            self.gather()
        return self

    def forward(self, x: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        rows = x.reshape(-1, self.in_features).to(dtype)
        if self.probe is not None and not torch.compiler.is_compiling():
            self._begin_anew()
        weight = self.base if self.attached else self.dense().detach()
        y: Tensor = _ProjectedGradient.apply(  # type: ignore[no-untyped-call]
            rows, weight, *self.table(), self.R, self.bias, self.probe, self.side
        )
        return y.view(*x.shape[:-1], self.out_features)

    def _begin_anew(self) -> None:
        """In a step's first micro-batch, drop what is left of a step that was skipped.

        (Under torch.compile it stays; an overflow's gradient is not finite, and is not used then.)
        """
        R = None if self._stepped is None else self._stepped()
        if torch.is_grad_enabled() and R is not None and R.grad is None:
            self.discard()


def _chosen(table: Tensor, index: Tensor | None) -> Tensor:
    return table if index is None else table[index]


class _ProjectedGradient(torch.autograd.Function):
    """y = x Wᵀ + bias with the weight's gradient formed in the subspace.

    4 B m n + 2 B r (m + n) operations, not 6 B m n; kept for the backward pass: x (B, n), W (m, n).
    Where the dense gradient is formed as well, 6 B m n + 2 r m n.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (B, n)
        weight: Tensor,  # (m, n)
        table: Tensor,  # (r, a) or (a, a), where a is m or n
        index: Tensor | None,  # (r,) rows of `table`; None: all of them
        R: Tensor,  # (r, n) or (m, r); enters only through its gradient
        bias: Tensor | None,  # (m,)
        probe: Tensor | None,  # (m, n); enters only through its gradient, the dense one
        side: str,
    ) -> Tensor:  # (B, m)
        ctx.save_for_backward(x, weight, table, index)
        ctx.side, ctx.factor_dtype = side, R.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @own_backward
    def backward(ctx: Any, gy: Tensor) -> Gradients:
        x, weight, table, index = ctx.saved_tensors
        gy = gy.to(x.dtype)
        rows = _chosen(table, index).to(x.dtype)
        left = ctx.side == "left"
        # Cast again, not kept: under autocast that would be a second copy of W until here.
        grad_x = gy @ weight.to(x.dtype) if ctx.needs_input_grad[0] else None
        grad_bias = gy.sum(0).to(ctx.bias_dtype) if ctx.needs_input_grad[5] else None
        dense = gy.mT @ x if ctx.needs_input_grad[6] else None
        if dense is not None:  # fewer operations than from B tokens
            grad_R = rows @ dense if left else dense @ rows.mT
            dense = dense.to(ctx.factor_dtype)
        else:
            grad_R = thin_product(gy @ rows.mT, x) if left else gy.mT @ (x @ rows.mT)
        grad_R = grad_R.to(ctx.factor_dtype)
        return grad_x, None, None, None, grad_R, grad_bias, dense, None
