"""Attention between points of the hyperboloid."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from spectrain.errors import UsageError
from spectrain.hyperbolic.linear import LorentzLinear
from spectrain.hyperbolic.lorentz import centroid, inner_pairs


class LorentzAttention(nn.Module):
    """Multi-head attention: weights softmax(−d²(q, k)/c + b), values averaged by their centroid.

    As in Chen et al. (2021, section 3.2): queries, keys and values are Lorentz linear maps onto one
    hyperboloid a head, d² = 2/K − 2⟨q, k⟩; the heads' centroids stand side by side and a last Lorentz
    linear map merges them. c (`scale`, √features at the start) and b (`bias`) are learned.
    """

    def __init__(
        self,
        features: int,
        heads: int = 1,
        *,
        curvature: float = -1.0,
        dropout: float = 0.0,
        scale: float = 10.0,
    ) -> None:
        """dropout: of the attention weights; what is left is made to sum to 1 again.

        Raises UsageError if the heads do not divide `features` into two coordinates or more each.
        """
        super().__init__()
        if heads < 1 or features % heads or features // heads < 2:
            raise UsageError(
                f"LorentzAttention: {features} coordinates cannot be divided into {heads} heads of at "
                "least 2"
            )
        self.curvature, self.heads, self.dropout = curvature, heads, dropout
        how = {"curvature": curvature, "scale": scale}
        self.query = LorentzLinear(features, features, heads=heads, **how)  # type: ignore[arg-type]
        self.key = LorentzLinear(features, features, heads=heads, **how)  # type: ignore[arg-type]
        self.value = LorentzLinear(features, features, heads=heads, **how)  # type: ignore[arg-type]
        times = slice(None, None, features // heads)
        self.output = LorentzLinear(features, features, times=times, **how)  # type: ignore[arg-type]
        self.scale = nn.Parameter(torch.tensor(math.sqrt(features)))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(
        self,
        x: Tensor,  # (…, T, features): what asks
        context: Tensor | None = None,  # (…, S, features): what is asked; default x
        *,
        mask: Tensor | None = None,  # broadcast to (…, heads, T, S), True where it may look
        residual: Tensor | None = None,  # (…, T, features), for the last map
    ) -> Tensor:  # (…, T, features)
        context = x if context is None else context
        q, k, v = (
            layer(points).transpose(-3, -2)  # (…, heads, T, features / heads)
            for layer, points in ((self.query, x), (self.key, context), (self.value, context))
        )
        scores = (2 * inner_pairs(q, k) - 2 / self.curvature) / self.scale + self.bias
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = scores.softmax(-1)
        if self.dropout and self.training:
            kept = torch.rand_like(weights) >= self.dropout
            kept = kept | ~kept.any(-1, keepdim=True)  # never all of a row
            weights = weights * kept
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)
        together = centroid(weights @ v, self.curvature).transpose(-3, -2).flatten(-2)
        merged: Tensor = self.output(together, residual)
        return merged
