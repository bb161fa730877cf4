"""Points as parameters: a table of embeddings on the hyperboloid."""

from __future__ import annotations

import torch
from geoopt import ManifoldParameter
from torch import Tensor, nn

from spectrain.hyperbolic.lorentz import Lorentz, from_tangent


def points(
    count: int,
    features: int,  # d + 1
    *,
    curvature: float = -1.0,
    deviation: float,
    pace: float = 1.0,
) -> ManifoldParameter:
    """Points around the origin, normal in the tangent space there, as one parameter (count, d + 1)."""
    tangent = deviation * torch.randn(count, features - 1)
    return ManifoldParameter(
        from_tangent(tangent, curvature), manifold=Lorentz(curvature, pace=pace)
    )


class LorentzEmbedding(nn.Module):
    """A point for each of `count` things; its rows are stepped by a Riemannian optimizer (geoopt's).

    features: coordinates of a point, time included. deviation: of the start around the origin. pace: length
    of a step of Riemannian Adam in learning rates; √features is that of ordinary Adam in an nn.Embedding.
    """

    def __init__(
        self,
        count: int,
        features: int,
        *,
        curvature: float = -1.0,
        deviation: float = 1e-2,
        pace: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = points(count, features, curvature=curvature, deviation=deviation, pace=pace)

    def forward(
        self,
        index: Tensor,  # (…), whole numbers
    ) -> Tensor:  # (…, features)
        found: Tensor = self.weight[index]
        return found
