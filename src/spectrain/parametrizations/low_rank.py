"""The product form: two thin factors and nothing beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrain.linalg import svd, working
from spectrain.parametrizations.base import Factored, is_autocast

if TYPE_CHECKING:
    from spectrain.method import Method


class LowRankProduct(Factored):
    """y = scale · x Aᵀ Bᵀ + b, that is W = scale · B A, of rank r at most.

    `A` (r, n) and `B` (m, r) trainable, zero until an initializer fills them. 2 T r (m + n) operations for
    T tokens, and twice as many backward; x Aᵀ (T, r) is kept for it.
    """

    def __init__(self, linear: nn.Module, method: Method, *, rank: int, scale: float) -> None:
        super().__init__(linear, method)
        weight = self.take_weight()
        self.scale = scale
        self.A = self.parameter(weight.new_zeros(rank, self.in_features), trainable=True)
        self.B = self.parameter(weight.new_zeros(self.out_features, rank), trainable=True)

    @property
    def rank(self) -> int:
        """r."""
        return self.A.shape[0]

    def dense(self) -> Tensor:
        return working(self.B) @ working(self.A) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return low_rank_product(x, self.A, self.B, self.bias, self.scale)

    @torch.no_grad()
    def balance(self) -> None:
        """B ← U Σ^½ and A ← Σ^½ Vᵀ, with U Σ Vᵀ the SVD of B A, which stays as it is.

        Of all pairs with this product the balanced one has the smallest condition number. By QR of both
        factors and the SVD of an r × r matrix: nothing as large as W is formed.
        """
        left, upper = torch.linalg.qr(working(self.B))  # (m, r), (r, r)
        right, lower = torch.linalg.qr(working(self.A).mT)  # (n, r), (r, r)
        U, s, V = svd(upper @ lower.mT)
        root = s.sqrt()
        self.B.copy_(left @ (U.mT * root))
        self.A.copy_((right @ (V.mT * root)).mT)


def low_rank_product(
    x: Tensor,  # (..., n)
    A: Tensor,  # (r, n)
    B: Tensor,  # (m, r)
    bias: Tensor | None,  # (m,)
    scale: float,
) -> Tensor:  # (..., m)
    """scale · x Aᵀ Bᵀ + b, in autocast's dtype, or in that of the factors and then in that of x."""
    lowered = is_autocast(x)
    inner = F.linear(x if lowered else x.to(A.dtype), A)
    inner = inner if scale == 1.0 else inner * scale
    if lowered:
        return F.linear(inner, B, bias)
    return F.linear(inner, B, None if bias is None else bias.to(B.dtype)).to(x.dtype)
