"""The additive form: a frozen W₀ and a trainable low-rank update beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrain.linalg import working
from spectrain.parametrizations.base import Factored

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
        y = F.linear(x, self.base, self.bias)
        dropped = F.dropout(x, self.dropout, self.training) if self.dropout else x
        inner = F.linear(dropped.to(self.A.dtype), self.A)
        return y + (F.linear(inner, self.B) * self.scale).to(y.dtype)

    @torch.no_grad()
    def fold(self) -> None:
        """W₀ ← W₀ + scale · B A, computed in at least float32; the factors are left as they are."""
        self.base.copy_(self.dense())
