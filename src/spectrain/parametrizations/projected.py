"""The projected form: a dense frozen W whose update lives in a small subspace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spectrain.errors import UsageError
from spectrain.linalg import working
from spectrain.parametrizations.base import Factored, compute_dtype

if TYPE_CHECKING:
    from spectrain.method import Method


class Projected(Factored):
    """W = base + basisᵀ R (side "left") or base + R basis (side "right").

    `base` (m, n) and `basis` (r orthonormal rows of length m on the left, n on the right) are
    frozen; `R` (r, n) or (m, r) trains. Its gradient is the projection of the dense one and is
    formed without it: (gy basisᵀ)ᵀ x or gyᵀ (x basisᵀ). An attached method folds R into `base`
    after every step, so R is zero in every forward pass and costs nothing there.

    While `gathered` is a matrix (m, n) instead of None, each backward pass adds the dense gradient
    to it, beginning anew where R has no gradient yet: what a refresh of the basis is computed from.
    """

    def __init__(self, linear: nn.Module, method: Method, *, rank: int, side: str) -> None:
        """`side` is "left", "right", "std" (the shorter side of W) or "reverse_std" (the longer)."""
        super().__init__(linear, method)
        weight = self.take_weight()
        m, n = weight.shape
        shorter, longer = ("right", "left") if m >= n else ("left", "right")
        self.side = {"std": shorter, "reverse_std": longer}.get(side, side)
        self.gathered: Tensor | None = None
        self.base = self.parameter(weight, trainable=False)
        self.basis = nn.Parameter(
            weight.new_zeros(rank, m if self.side == "left" else n), requires_grad=False
        )
        self.R = nn.Parameter(weight.new_zeros((rank, n) if self.side == "left" else (m, rank)))

    def back(self) -> Tensor:
        """R in the coordinates of W (m, n)."""
        return self.basis.mT @ self.R if self.side == "left" else self.R @ self.basis

    def down(self, dense: Tensor) -> Tensor:
        """A matrix (m, n) projected to the coordinates of R."""
        dense = dense.to(self.basis.dtype)
        return self.basis @ dense if self.side == "left" else dense @ self.basis.mT

    def dense(self) -> Tensor:
        return working(self.base) + self.back()

    @torch.no_grad()
    def fold(self, scale: float, decay: float) -> None:
        """base ← (1 − decay) · base + scale · P R, then R ← 0."""
        left, right = (self.basis.mT, self.R) if self.side == "left" else (self.R, self.basis)
        if self.base.dtype == self.R.dtype:  # in place, without a second matrix of W's size
            self.base.addmm_(left, right, beta=1 - decay, alpha=scale)
        else:  # the product in R's precision, rounded once
            self.base.mul_(1 - decay).add_(left @ right, alpha=scale)
        self.R.zero_()

    def require_untouched_gradient(self) -> None:
        """Refuse a gradient of R that was clipped or scaled after the backward pass.

        A same-step refresh derives the new one from `gathered`, which would undo that.
        """
        if self.gathered is None or self.R.grad is None or not self.R.grad.isfinite().all():
            return
        expected = self.down(self.gathered)
        factor = (self.R.grad * expected).sum() / expected.square().sum()
        if abs(float(factor) - 1) > 1e-2:  # more than rounding in bf16
            raise UsageError(
                f"{self.method.title}: gradients were clipped or scaled between backward and step, "
                "which refresh='same_step' would undo; use refresh='next_step'"
            )

    def forget(self) -> None:
        self.gathered = None

    def forward(self, x: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        rows = x.reshape(-1, self.in_features).to(dtype)
        if self.gathered is not None and self.R.grad is None and torch.is_grad_enabled():
            self.gathered.zero_()  # first micro-batch: nothing of a step that was skipped may stay
        weight = self.base if self.attached else self.dense()
        frozen = weight.detach().to(dtype), self.basis
        y: Tensor = _ProjectedGradient.apply(  # type: ignore[no-untyped-call]
            rows, *frozen, self.R, self.side, self.gathered
        )
        y = y if self.bias is None else y + self.bias.to(dtype)
        return y.view(*x.shape[:-1], self.out_features)


class _ProjectedGradient(torch.autograd.Function):
    """y = x Wᵀ whose weight gradient is formed in the subspace: 2 B r (m + n) operations, not 2 B m n."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (B, n)
        weight: Tensor,  # (m, n)
        basis: Tensor,  # (r, m) or (r, n)
        R: Tensor,  # (r, n) or (m, r); enters only through its gradient
        side: str,
        gathered: Tensor | None,  # (m, n)
    ) -> Tensor:  # (B, m)
        ctx.save_for_backward(x, weight, basis)
        ctx.side, ctx.gathered, ctx.factor_dtype = side, gathered, R.dtype
        return x @ weight.mT

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, basis = ctx.saved_tensors
        gy = gy.to(x.dtype)
        projector = basis.mT.to(x.dtype)
        grad_R = (gy @ projector).mT @ x if ctx.side == "left" else gy.mT @ (x @ projector)
        if ctx.gathered is not None:
            ctx.gathered += gy.mT @ x
        grad_x = gy @ weight if ctx.needs_input_grad[0] else None
        return grad_x, None, None, grad_R.to(ctx.factor_dtype), None, None
