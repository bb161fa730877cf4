"""Graph convolution on the hyperboloid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from spectrain.hyperbolic.linear import LorentzLinear
from spectrain.hyperbolic.lorentz import centroid


class LorentzGraphConvolution(nn.Module):
    """A Lorentz linear layer, then each node's centroid of its neighbours (Chen et al. 2021, section 3.3).

    `linear` is a LorentzLinear and takes its settings. No activation follows: it acts on the next layer's
    input.
    """

    def __init__(
        self, in_features: int, out_features: int, *, curvature: float = -1.0, **settings: Any
    ) -> None:
        super().__init__()
        self.curvature = curvature
        self.linear = LorentzLinear(in_features, out_features, curvature=curvature, **settings)

    def forward(
        self,
        x: Tensor,  # (N, in_features)
        mean: Callable[[Tensor], Tensor],  # A x, where A's rows are weights ≥ 0 that sum to 1
    ) -> Tensor:  # (N, out_features)
        return centroid(mean(self.linear(x)), self.curvature)
