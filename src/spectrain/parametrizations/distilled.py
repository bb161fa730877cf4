"""Two thin factors that learn from the frozen matrix in whose place they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spectrain.linalg import working
from spectrain.parametrizations.base import Gradients, compute_dtype, own_backward
from spectrain.parametrizations.gathering import Gathering
from spectrain.parametrizations.low_rank import low_rank_product
from spectrain.sharding import divided

if TYPE_CHECKING:
    from spectrain.method import Method


class Distilled(Gathering):
    """W = B A with `A` (r, n) and `B` (m, r) trainable, and beside it `teacher` (m, n), frozen.

    The factors are zero until an initializer fills them.

    What backward passes gather is the gradient that the distance D = B A − teacher gives the factors:
    of `feature` times the mean over tokens and outputs of (x Dᵀ)², with x the layer's own input, and of
    `perturbation` times the square of what the largest |D_ij| has above `tolerance`. It is the same
    whatever the loss is, and whatever that is multiplied by.
    """

    resident = ("probe",)

    def __init__(
        self,
        linear: nn.Module,
        method: Method,
        *,
        rank: int,
        feature: float,
        perturbation: float,
        tolerance: float,
    ) -> None:
        super().__init__(linear, method)
        weight = self.take_weight()
        self.rank = rank
        self.losses = feature, perturbation, tolerance
        self.teacher = self.parameter(weight, trainable=False)
        self.A = self.parameter(weight.new_zeros(rank, self.in_features), trainable=True)
        self.B = self.parameter(weight.new_zeros(self.out_features, rank), trainable=True)

    def _probed(self) -> tuple[nn.Parameter, tuple[int, ...]]:
        return self.A, (1 + self.rank * (self.out_features + self.in_features),)

    def dense(self) -> Tensor:
        return working(self.B) @ working(self.A)

    def forward(self, x: Tensor) -> Tensor:
        self._begin_anew()
        x = x.to(compute_dtype(x))
        y = low_rank_product(x, self.A, self.B, self.bias, 1.0)
        if self.probe is None or not self.training:
            return y
        rows = x.detach().reshape(-1, self.in_features)
        parts = rows, self.A.detach(), self.B.detach(), self.teacher
        heard: Tensor = _Distance.apply(y, *parts, self.probe, *self.losses)  # type: ignore[no-untyped-call]
        return heard

    @torch.no_grad()
    def learn(self, weight: float) -> None:
        """Add `weight` times what was gathered to the factors' gradients, as a mean over the tokens."""
        gathered = self.gathered
        if gathered is not None:
            tokens, grad_A, grad_B = torch.split(gathered, [1, *_sizes(self.A, self.B)])
            for factor, own in ((self.A, grad_A), (self.B, grad_B)):
                if factor.grad is not None:
                    mean = own.view(factor.shape) * (weight / tokens.clamp(min=1))
                    factor.grad.add_(divided(mean, factor.grad))
        self.discard()


def _sizes(*tensors: Tensor) -> list[int]:
    return [t.numel() for t in tensors]


class _Distance(torch.autograd.Function):
    """y as it is; in the backward pass the probe's gradient: tokens, and sums over them for A and B.

    2 T m n + 4 T r (m + n) + 2 m n r operations for T tokens, and D, which is dropped again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,  # (T, n)
        A: Tensor,  # (r, n)
        B: Tensor,  # (m, r)
        teacher: Tensor,  # (m, n)
        probe: Tensor,  # (1 + r n + m r,); enters only through its gradient
        feature: float,
        perturbation: float,
        tolerance: float,
    ) -> Tensor:
        ctx.save_for_backward(x, A, B, teacher)
        ctx.losses = feature, perturbation, tolerance
        return y.view_as(y)

    @staticmethod
    @own_backward
    def backward(ctx: Any, gy: Tensor) -> Gradients:
        x, A, B, teacher = ctx.saved_tensors
        feature, perturbation, tolerance = ctx.losses
        tokens, (m, n) = x.shape[0], teacher.shape
        A, B = working(A), working(B)
        distance = torch.addmm(working(teacher), B, A, beta=-1)
        grad_A, grad_B = torch.zeros_like(A), torch.zeros_like(B)
        if feature:
            errors = x @ distance.to(x.dtype).mT  # (T, m)
            scale = 2 * feature / m
            grad_A.add_((errors @ B.to(x.dtype)).mT @ x, alpha=scale)
            grad_B.add_(errors.mT @ (x @ A.to(x.dtype).mT), alpha=scale)
        if perturbation:
            flat = distance.flatten()
            where = flat.abs().argmax().view(1)
            worst, row, column = flat[where], where // n, where % n
            excess = (worst.abs() - tolerance).clamp(min=0) * worst.sign()
            scale = (
                2 * perturbation * tokens
            )  # so that the mean over tokens is no other than itself
            grad_A.index_add_(1, column, excess * B[row].mT, alpha=scale)
            grad_B.index_add_(0, row, excess * A[:, column].mT, alpha=scale)
        summed = torch.cat((grad_A.new_full((1,), tokens), grad_A.flatten(), grad_B.flatten()))
        return gy, None, None, None, None, summed, None, None, None
