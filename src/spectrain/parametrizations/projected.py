"""The projected form: a dense frozen W whose update lives in a small subspace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrain.linalg import working
from spectrain.parametrizations.base import (
    Gradients,
    compute_dtype,
    own_backward,
    thin_product,
)
from spectrain.parametrizations.gathering import Gathering
from spectrain.sharding import divided, replicated, whole

if TYPE_CHECKING:
    from spectrain.method import Method


class Projected(Gathering):
    """W = base + basisᵀ R (side "left") or base + R basis (side "right").

    `base` (m, n) is frozen, and so are the r rows of the basis, of length a: m on the left, n on the
    right (parametrizations/bases.py says where they are kept). `R` (r, n) or (m, r) trains. Its
    gradient is the projection of the dense one and is formed without it: (gy basisᵀ)ᵀ x or
    gyᵀ (x basisᵀ). An attached method takes R out after every step, so R is zero in every forward pass
    and costs nothing there.

    What backward passes gather is the dense gradient (m, n); R's is its projection then.
    """

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
        self.resident = ("probe",) if gathers else ()
        self.base = self.parameter(weight, trainable=False)
        self.R = nn.Parameter(weight.new_zeros((rank, n) if self.side == "left" else (m, rank)))

    def _probed(self) -> tuple[nn.Parameter, tuple[int, ...]]:
        return self.R, (self.out_features, self.in_features)

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

    def forward(self, x: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        rows = x.reshape(-1, self.in_features).to(dtype)
        self._begin_anew()
        weight = self.base if self.attached else self.dense().detach()
        y: Tensor = _ProjectedGradient.apply(  # type: ignore[no-untyped-call]
            rows, weight, *self.table(), self.R, self.bias, self.probe, self.side
        )
        return y.view(*x.shape[:-1], self.out_features)


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
