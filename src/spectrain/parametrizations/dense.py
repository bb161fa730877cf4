"""The full-rank form: W itself, trainable."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from spectrain.linalg import working
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
