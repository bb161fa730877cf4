"""Attention between points of the hyperboloid."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrain.errors import UsageError
from spectrain.hyperbolic.linear import LorentzLinear
from spectrain.hyperbolic.lorentz import centroid
from spectrain.parametrizations.base import full_precision

LEAST = 1e-12  # sum of attention weights that dropout has left


class LorentzAttention(nn.Module):
    """Multi-head attention: weights softmax(−d²(q, k)/c), values averaged by their centroid.

    As in Chen et al. (2021, section 3.2): queries, keys and values are Lorentz linear maps onto one
    hyperboloid a head, d² = 2/K − 2⟨q, k⟩; the heads' centroids stand side by side and a last Lorentz
    linear map merges them. c (`scale`, √features at the start) is learned. What is the same for all keys
    leaves a softmax as it is, so their bias is left out, and 2⟨q, k⟩/c is all that is computed: ordinary
    attention between points whose keys have the time's sign turned.
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
        """dropout: of the attention weights; the others are then made to sum to 1.

        scale: as in `LorentzLinear`.

        Raises UsageError if the heads do not divide `features` into two coordinates or more each.
        """
        super().__init__()
        if heads < 1 or features % heads or features // heads < 2:
            raise UsageError(
                f"LorentzAttention: {features} coordinates cannot be divided into {heads} heads of at "
                "least 2"
            )
        self.curvature, self.heads, self.dropout = curvature, heads, dropout

        def linear(heads: int = 1, times: slice | int = 0) -> LorentzLinear:
            return LorentzLinear(
                features, features, heads=heads, times=times, curvature=curvature, scale=scale
            )

        self.query, self.key, self.value = linear(heads), linear(heads), linear(heads)
        self.output = linear(times=slice(None, None, features // heads))
        self.scale = nn.Parameter(torch.tensor(math.sqrt(features)))

    def forward(
        self,
        x: Tensor,  # (…, T, features): what asks
        context: Tensor | None = None,  # (…, S, features): what is asked; default x
        *,
        mask: Tensor | None = None,  # broadcast to (…, heads, T, S), True where it may look
        residual: Tensor | None = None,  # (…, T, features), for the last map
    ) -> Tensor:  # (…, T, features)
        keys = self.keys_values(x if context is None else context)
        return self.attend(x, *keys, mask=mask, residual=residual)

    def keys_values(
        self,
        context: Tensor,  # (…, S, features)
    ) -> tuple[
        Tensor, Tensor
    ]:  # (…, heads, S, features / heads) each, to be kept for later queries
        k, v = (self._heads(layer(context)) for layer in (self.key, self.value))
        return torch.cat((-k[..., :1], k[..., 1:]), -1), v

    def attend(
        self,
        x: Tensor,  # (…, T, features)
        keys: Tensor,  # both as `keys_values` gave them
        values: Tensor,
        *,
        mask: Tensor | None = None,  # broadcast to (…, heads, T, S), True where it may look
        causal: bool = False,  # each of T = S may look at itself and what is before it
        residual: Tensor | None = None,
    ) -> Tensor:  # (…, T, features)
        dropout = self.dropout if self.training else 0.0
        q = self._heads(self.query(x)) * (2 / self.scale)
        with full_precision(x):  # half of it would blur ⟨q, k⟩, a difference of large products
            if dropout:  # a column of ones finds what dropout leaves of the weights' sum
                values = F.pad(values, (0, 1), value=1.0)
            z = F.scaled_dot_product_attention(
                q, keys, values, mask, dropout, is_causal=causal, scale=1.0
            )
            if dropout:
                # A centroid does not change with the length of z, so no gradient comes to the sum.
                z, total = z[..., :-1], z[..., -1:].detach()
                # Where next to nothing is left, all large weights dropped: the origin. The rest may be as
                # small as float32 can tell, and has no direction that a gradient could be taken of.
                z = z / torch.where(total > LEAST, total, 1.0)
            together = centroid(z, self.curvature).transpose(-3, -2).flatten(-2)
        merged: Tensor = self.output(together, residual)
        return merged

    def _heads(self, x: Tensor) -> Tensor:
        """(…, heads, T, features / heads) of (…, T, features), or of points in heads already."""
        x = x if self.heads > 1 else x.unsqueeze(-2)
        return x.transpose(-3, -2)
