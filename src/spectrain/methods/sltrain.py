"""SLTrain: a low-rank product, and single entries at fixed random places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from spectrain.initializers.low_rank import largest_left, random_places
from spectrain.method import Card, Method, register
from spectrain.papers import SLTRAIN
from spectrain.parametrizations.base import linear_weight
from spectrain.parametrizations.low_rank_sparse import LowRankSparse
from spectrain.settings import option


@register
@dataclass(frozen=True)
class SLTrain(Method):
    """W = scale · B A + S, with a share δ of S's entries trained at places drawn once (Han et al. 2024).

    r (m + n) + ⌊δ m n⌋ numbers train per layer. The sparse part makes W of full rank.
    """

    card: ClassVar[Card] = Card(
        key="sltrain",
        title="SLTrain",
        summary="a low-rank product, and a few single entries at fixed random places",
        parametrization="scale · B A + S, S sparse",
        initializer="B = 0, A Kaiming-uniform, S ~ U(−1/√n, 1/√n); or the SVD of W and what it leaves",
        step_rule="none",
        schedule="none",
        paper_schedule="none",
        papers=(SLTRAIN,),
    )
    keeps_function: ClassVar[bool] = False

    rank: int = option(help="rank of the product", symbol="r", minimum=1)
    density: float = option(
        0.03, help="share of W's entries that are trained", symbol="δ", above=0.0, maximum=1.0
    )
    alpha: float | None = option(
        None, help="the scale is alpha/r; default: a scale of 1", symbol="α", above=0.0
    )
    init: str = option(
        "random",
        help="start: random, or svd (the best approximation of the layer's weight, and the largest "
        "entries that it leaves)",
        choices=("random", "svd"),
    )

    def parametrize(self, linear: nn.Module) -> LowRankSparse:
        weight = linear_weight(linear)
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        entries = int(self.density * weight.numel())
        layer = LowRankSparse(linear, self, rank=self.rank, scale=scale, entries=entries)
        if self.init == "svd":
            largest_left(layer, weight)
        else:
            random_places(layer, layer.initial_generator())
        return layer

    def variations(self) -> list[str]:
        own = ["scale 1 (published: 8/r to 32/r)"] if self.alpha is None else []
        return own + (["started from the weight's SVD"] if self.init == "svd" else [])
