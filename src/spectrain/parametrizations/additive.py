"""The additive form: a frozen W₀ and a trainable low-rank update beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from spectrain.linalg import working
from spectrain.parametrizations.base import Factored, compute_dtype

if TYPE_CHECKING:
    from spectrain.method import Method


class Additive(Factored):
    """y = x W₀ᵀ + scale · drop(x) Aᵀ Bᵀ + b, that is W = W₀ + scale · B A (Hu et al. 2022, eq. 3).

    `base` W₀ (m, n) frozen, `A` (r, n) and `B` (m, r) trainable, zero until an initializer fills
    them; dropout acts on the update only.
    """

    def __init__(
        self, linear: nn.Module, method: Method, *, rank: int, scale: float, dropout: float = 0.0
    ) -> None:
        super().__init__(linear, method)
        weight = self.take_weight()
        self.scale = scale
        self.dropout = dropout
        self.base = self.parameter(weight, trainable=False)
        self.A = self.parameter(weight.new_zeros(rank, self.in_features), trainable=True)
        self.B = self.parameter(weight.new_zeros(self.out_features, rank), trainable=True)

    def dense(self) -> Tensor:
        return torch.addmm(working(self.base), working(self.B), working(self.A), alpha=self.scale)

    def forward(self, x: Tensor) -> Tensor:
        if self._sum_is_cheaper(x):
            rows = x.reshape(-1, self.in_features)
            y = _SumProduct.apply(rows, self.base, self.A, self.B, self.bias, self.scale)  # type: ignore[no-untyped-call]
            whole: Tensor = y.view(*x.shape[:-1], self.out_features)
            return whole
        y = F.linear(x, self.base, self.bias)
        dropped = F.dropout(x, self.dropout, self.training) if self.dropout else x
        inner = F.linear(dropped.to(self.A.dtype), self.A)
        return y + (F.linear(inner, self.B) * self.scale).to(y.dtype)

    def _sum_is_cheaper(self, x: Tensor) -> bool:
        """True if W₀ + scale · B A is best built for the call: 4 m n r operations for 2 B r (m + n).

        Not in half precision, where an update far smaller than W₀ would be rounded away.
        """
        m, n, tokens = self.out_features, self.in_features, x.numel() // self.in_features
        dtypes = {compute_dtype(x), x.dtype, self.base.dtype, self.A.dtype}
        full = len(dtypes) == 1 and dtypes <= {torch.float32, torch.float64}
        dropping = bool(self.dropout) and self.training
        return full and not dropping and 2 * m * n < tokens * (m + n)

    @torch.no_grad()
    def fold(self) -> None:
        """W₀ ← W₀ + scale · B A, computed in at least float32; the factors are left as they are."""
        self.base.copy_(self.dense())


class _SumProduct(torch.autograd.Function):
    """y = x Wᵀ + b with W = W₀ + scale · B A built for the call, in forward and again in backward.

    4 T m n + 4 T r (m + n) + 4 m n r operations for T tokens; x Aᵀ is recomputed, and x (T, n) is all
    that is kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (T, n)
        base: Tensor,  # (m, n)
        A: Tensor,  # (r, n)
        B: Tensor,  # (m, r)
        bias: Tensor | None,  # (m,)
        scale: float,
    ) -> Tensor:  # (T, m)
        ctx.save_for_backward(x, base, A, B)
        ctx.scale = scale
        return F.linear(x, torch.addmm(base, B, A, alpha=scale), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, base, A, B = ctx.saved_tensors
        (m, n), r, scale, tokens = base.shape, A.shape[0], ctx.scale, x.shape[0]
        if 2 * m * n * (tokens + 2 * r) < 4 * tokens * r * (m + n):  # from about r = d/4
            M = gy.mT @ x
            grad_A, grad_B = (B.mT @ M).mul_(scale), (M @ A.mT).mul_(scale)
        else:
            grad_A = ((gy @ B).mT @ x).mul_(scale)
            grad_B = (gy.mT @ (x @ A.mT)).mul_(scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = gy @ torch.addmm(base, B, A, alpha=scale)
        grad_bias = gy.sum(0) if ctx.needs_input_grad[4] else None
        return grad_x, None, grad_A, grad_B, grad_bias, None
