"""The additive form: a frozen W₀ and a trainable low-rank update beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrain.linalg import working
from spectrain.parametrizations.base import (
    Factored,
    Gradients,
    compute_dtype,
    is_autocast,
    own_backward,
    thin_product,
)

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
        dtype = compute_dtype(x)
        one_dtype = is_autocast(x) or x.dtype == self.base.dtype == self.A.dtype
        if one_dtype and not (self.dropout and self.training):
            rows = x.reshape(-1, self.in_features).to(dtype)
            y = _Product.apply(rows, self.base, self.A, self.B, self.bias, self.scale)  # type: ignore[no-untyped-call]
            whole: Tensor = y.view(*x.shape[:-1], self.out_features)
            return whole
        # Dropout; or a half-precision model, whose update is formed in the precision of its factors.
        y = F.linear(x, self.base, self.bias)
        dropped = F.dropout(x, self.dropout, self.training) if self.dropout else x
        inner = F.linear(dropped.to(self.A.dtype), self.A)
        return y + (F.linear(inner, self.B) * self.scale).to(y.dtype)

    @torch.no_grad()
    def fold(self) -> None:
        """W₀ ← W₀ + scale · B A, computed in at least float32; the factors are left as they are."""
        self.base.copy_(self.dense())


class _Product(torch.autograd.Function):
    """y = x (W₀ + scale · B A)ᵀ + b for T tokens.

    4 T m n + 4 T r (m + n) + 4 m n r operations with the sum built for the call, in forward and again
    in backward; 4 T m n + 6 T r (m + n) + 2 T r n without it. x Aᵀ is recomputed: x (T, n) is all that is
    kept.
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
        ctx.scale, ctx.bias_dtype = scale, None if bias is None else bias.dtype
        bias = None if bias is None else bias.to(x.dtype)
        if _sum_is_cheaper(x, base):
            return F.linear(x, torch.addmm(base, B, A, alpha=scale), bias)
        y = F.linear(x, base.to(x.dtype), bias)
        return y.addmm_(x @ A.mT.to(x.dtype), B.mT.to(x.dtype), alpha=scale)

    @staticmethod
    @own_backward
    def backward(ctx: Any, gy: Tensor) -> Gradients:
        x, base, A, B = ctx.saved_tensors
        (m, n), r, scale, tokens, dtype = base.shape, A.shape[0], ctx.scale, x.shape[0], x.dtype
        gy, a, b = gy.to(dtype), A.to(dtype), B.to(dtype)
        summed = _sum_is_cheaper(x, base)
        through_M = 2 * m * n * (tokens + 2 * r) < 4 * tokens * r * (m + n)  # from about r = d/4
        inner = gy @ b if not (summed and through_M) else gy[:, :0]  # (T, r)
        if through_M:
            M = gy.mT @ x
            grad_A, grad_B = b.mT @ M, M @ a.mT
            del M
        else:
            grad_A, grad_B = thin_product(inner, x), gy.mT @ (x @ a.mT)
        grad_x = None
        if ctx.needs_input_grad[0] and summed:
            grad_x = gy @ torch.addmm(base, B, A, alpha=scale)
        elif ctx.needs_input_grad[0]:
            grad_x = (gy @ base.to(dtype)).addmm_(inner, a, alpha=scale)
        grad_bias = gy.sum(0).to(ctx.bias_dtype) if ctx.needs_input_grad[4] else None
        factors = grad_A.mul_(scale).to(A.dtype), grad_B.mul_(scale).to(B.dtype)
        return grad_x, None, *factors, grad_bias, None


def _sum_is_cheaper(x: Tensor, base: Tensor) -> bool:
    """4 m n r operations for the sum, against 2 T r (m + 2 n) for products with the factors alone.

    Never in half precision, where an update far smaller than W₀ would be rounded away.
    """
    m, n = base.shape
    return x.dtype == base.dtype and x.dtype.itemsize >= 4 and 2 * m * n < x.shape[0] * (m + 2 * n)
