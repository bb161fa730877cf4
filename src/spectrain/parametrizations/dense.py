"""The full-rank forms: W itself, trainable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrain.linalg import svd, working
from spectrain.parametrizations.base import Parametrization

if TYPE_CHECKING:
    from spectrain.method import Method


class Dense(Parametrization):
    """y = x Wᵀ + b with W (m, n) trainable: what the layer was, through the common door."""

    def __init__(self, linear: nn.Module, method: Method) -> None:
        super().__init__(linear, method)
        self.weight = nn.Parameter(self.take_weight().to(self.weight_dtype))

    def dense(self) -> Tensor:
        return working(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Truncated(Dense):
    """W (m, n) trainable, set back to a low rank now and then.

    `kept` is the rank that was left of it the latest time, 0 before the first. `direction` (m, n) frozen,
    if it is wanted: U Vᵀ of what was left, the gradient of the sum of its singular values.
    """

    kept: Tensor

    def __init__(self, linear: nn.Module, method: Method, *, direction: bool) -> None:
        super().__init__(linear, method)
        weight = self.weight.detach()
        self.register_buffer("kept", torch.zeros((), dtype=torch.int64, device=weight.device))
        self.direction = (
            self.parameter(torch.zeros_like(weight), trainable=False) if direction else None
        )

    @torch.no_grad()
    def truncate(self, energy: float) -> None:
        """Keep the fewest of the largest singular values with that share of the sum of their squares."""
        U, s, V = svd(self.weight)
        shares = s.double().square().cumsum(0)
        # The last singular values of a low-rank W are rounding errors: a share of 1 keeps them, too.
        rank = 1 + (shares < energy * shares[-1]).sum()
        keeps = (torch.arange(len(s), device=s.device) < rank).to(s.dtype)
        self.kept.copy_(rank)
        self.weight.copy_((U.mT * (s * keeps)) @ V)
        if self.direction is not None:
            self.direction.copy_((U.mT * keeps) @ V)
