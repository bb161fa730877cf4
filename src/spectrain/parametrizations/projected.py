"""The projected form: a dense frozen W whose update lives in a small subspace."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrain.abstract import is_abstract
from spectrain.errors import UsageError
from spectrain.linalg import orthogonality_error, working
from spectrain.parametrizations.base import (
    Factored,
    Gradients,
    compute_dtype,
    own_backward,
    thin_product,
)
from spectrain.sharding import replicated

if TYPE_CHECKING:
    from spectrain.method import Method


class Projected(Factored):
    """W = base + basisᵀ R (side "left") or base + R basis (side "right").

    `base` (m, n) and `basis` (r orthonormal rows of length m on the left, n on the right) are
    frozen; `R` (r, n) or (m, r) trains. Its gradient is the projection of the dense one and is
    formed without it: (gy basisᵀ)ᵀ x or gyᵀ (x basisᵀ). An attached method folds R into `base`
    after every step, so R is zero in every forward pass and costs nothing there.

    While `gather` is on, the backward passes form the dense gradient too, for a refresh of the basis
    to be computed from: as the gradient of a leaf (m, n) that has no storage, so that autograd adds
    up micro-batches as it does for any other.

    Buffer `refreshed_at`: number of the step whose gradient the basis is from, −1 for none.
    """

    refreshed_at: Tensor
    _passing = (*Factored._passing, "probe", "_stepped")

    def __init__(self, linear: nn.Module, method: Method, *, rank: int, side: str) -> None:
        """`side` is "left", "right", "std" (the shorter side of W) or "reverse_std" (the longer)."""
        super().__init__(linear, method)
        weight = self.take_weight()
        m, n = weight.shape
        shorter, longer = ("right", "left") if m >= n else ("left", "right")
        self.side = {"std": shorter, "reverse_std": longer}.get(side, side)
        self.probe: Tensor | None = None  # the leaf whose gradient the dense one is
        # R as the optimizer has it: under fully_shard another tensor than in a forward pass.
        self._stepped: weakref.ref[nn.Parameter] | None = None
        self.base = self.parameter(weight, trainable=False)
        self.basis = nn.Parameter(
            weight.new_zeros(rank, m if self.side == "left" else n), requires_grad=False
        )
        self.R = nn.Parameter(weight.new_zeros((rank, n) if self.side == "left" else (m, rank)))
        self._refreshed: int | None = None  # the buffer's value: looking there may stall a GPU
        self.register_buffer("refreshed_at", torch.full((), -1, device=weight.device))

    def back(self) -> Tensor:
        """R in the coordinates of W (m, n)."""
        return self.basis.mT @ self.R if self.side == "left" else self.R @ self.basis

    def down(self, dense: Tensor) -> Tensor:
        """A matrix (m, n) projected to the coordinates of R."""
        dense = dense.to(self.basis.dtype)
        return self.basis @ dense if self.side == "left" else dense @ self.basis.mT

    def dense(self) -> Tensor:
        return working(self.base) + self.back()

    def drift(self) -> Tensor:
        return orthogonality_error(self.basis)

    @torch.no_grad()
    def fold(self, scale: float, decay: float) -> None:
        """base ← (1 − decay) · base + scale · P R, then R ← 0."""
        R, basis = replicated(self.R), replicated(self.basis)
        left, right = (basis.mT, R) if self.side == "left" else (R, basis)
        if self.base.dtype == self.R.dtype:  # in place, without a second matrix of W's size
            self.base.addmm_(left, right, beta=1 - decay, alpha=scale)
        else:  # the product in R's precision
            self.base.mul_(1 - decay).add_(left @ right, alpha=scale)
        self.R.zero_()

    @property
    def last_refresh(self) -> int:
        """The value of `refreshed_at`."""
        if self._refreshed is None:
            self._refreshed = int(self.refreshed_at)
        return self._refreshed

    @torch.no_grad()
    def take_basis(self, basis: Tensor, step: int) -> None:
        """Hold `basis`, from the gradient of step number `step`."""
        self.basis.copy_(basis)
        self.refreshed_at.fill_(step)
        self.forget()

    def gather(self) -> None:
        """Collect the dense gradient from here on, until `forget`."""
        if self.probe is None:
            zero = torch.zeros((), dtype=self.R.dtype, device=self.R.device)
            shape = self.out_features, self.in_features
            self.probe = zero.expand(shape).detach().requires_grad_()
            self._stepped = weakref.ref(self.R)
            if self.accumulated is not None:
                self.probe.register_post_accumulate_grad_hook(self.accumulated)  # type: ignore[no-untyped-call]

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

    def require_untouched_gradient(self) -> None:
        """Refuse a gradient of R that was clipped or scaled after the backward pass.

        A same-step refresh derives the new one from `gathered`, which would undo that.
        """
        if self.gathered is None or self.R.grad is None or is_abstract(self.R):
            return
        if not self.R.grad.isfinite().all():
            return
        expected = self.down(self.gathered)
        factor = (self.R.grad * expected).sum() / expected.square().sum()
        if abs(float(factor) - 1) > 1e-2:  # more than rounding in bf16
            raise UsageError(
                f"{self.method.title}: gradients were clipped or scaled between backward and step, "
                "which refresh='same_step' would undo; use refresh='next_step'"
            )

    def discard(self) -> None:
        """Forget what was collected, and go on collecting."""
        if self.probe is not None:
            self.probe.grad = None

    def forget(self) -> None:
        self.discard()  # the graph of a backward pass still holds the leaf, and all it has
        self.probe = None
        self._refreshed = None

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
            rows, weight, self.basis, self.R, self.bias, self.probe, self.side
        )
        return y.view(*x.shape[:-1], self.out_features)

    def _begin_anew(self) -> None:
        """In a step's first micro-batch, drop what is left of a step that was skipped.

        (Under torch.compile it stays; an overflow's gradient is not finite, and a refresh waits then.)
        """
        R = None if self._stepped is None else self._stepped()
        if torch.is_grad_enabled() and R is not None and R.grad is None:
            self.discard()


class _ProjectedGradient(torch.autograd.Function):
    """y = x Wᵀ + bias with the weight's gradient formed in the subspace.

    4 B m n + 2 B r (m + n) operations, not 6 B m n; kept for the backward pass: x (B, n), W (m, n).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (B, n)
        weight: Tensor,  # (m, n)
        basis: Tensor,  # (r, m) or (r, n)
        R: Tensor,  # (r, n) or (m, r); enters only through its gradient
        bias: Tensor | None,  # (m,)
        probe: Tensor | None,  # (m, n); enters only through its gradient, the dense one
        side: str,
    ) -> Tensor:  # (B, m)
        ctx.save_for_backward(x, weight, basis)
        ctx.side, ctx.factor_dtype = side, R.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @own_backward
    def backward(ctx: Any, gy: Tensor) -> Gradients:
        x, weight, basis = ctx.saved_tensors
        gy = gy.to(x.dtype)
        projector = basis.mT.to(x.dtype)
        left = ctx.side == "left"
        grad_R = thin_product(gy @ projector, x) if left else gy.mT @ (x @ projector)
        # Cast again, not kept: under autocast that would be a second copy of W until here.
        grad_x = gy @ weight.to(x.dtype) if ctx.needs_input_grad[0] else None
        grad_bias = gy.sum(0).to(ctx.bias_dtype) if ctx.needs_input_grad[4] else None
        dense = (gy.mT @ x).to(ctx.factor_dtype) if ctx.needs_input_grad[5] else None
        return grad_x, None, None, grad_R.to(ctx.factor_dtype), grad_bias, dense, None
