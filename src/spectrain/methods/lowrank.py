"""LowRank: two factors instead of W, balanced and restarted now and then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

from torch import nn

from spectrain.initializers.low_rank import kaiming_product, truncated_svd
from spectrain.method import Card, Event, Method, ramp, register
from spectrain.moments import Moments
from spectrain.papers import RESTARTS
from spectrain.parametrizations.base import Parametrization, linear_weight
from spectrain.parametrizations.low_rank import LowRankProduct
from spectrain.settings import option


@register
@dataclass(frozen=True)
class LowRank(Method):
    """W = scale · B A. Every `restart_every` steps B ← U Σ^½, A ← Σ^½ Vᵀ of the SVD of B A, which stays as
    it is; the factors' moments are cleared and their rate is warmed up again (Glentis et al. 2025).

    W is of rank r from the start: with init="svd" the best approximation of the weight that was there.
    """

    card: ClassVar[Card] = Card(
        key="lowrank",
        title="LowRank",
        summary="two thin factors are all of W; balanced and restarted now and then",
        parametrization="scale · B A",
        initializer="A, B Kaiming-uniform, or the SVD of W",
        step_rule="none",
        schedule="balance the factors, clear their moments, rate warmed up again",
        paper_schedule="every 200 steps, warmed up over 10",
        papers=(RESTARTS,),
    )
    keeps_function: ClassVar[bool] = False

    rank: int = option(help="rank of W", symbol="r", minimum=1)
    alpha: float | None = option(
        None, help="the scale is alpha/r; default: a scale of 1", symbol="α", above=0.0
    )
    init: str = option(
        "kaiming",
        help="start: kaiming (random), or svd (the best approximation of the layer's weight)",
        choices=("kaiming", "svd"),
    )
    restart_every: int = option(200, help="steps between restarts", symbol="K", minimum=1)
    rewarm: int = option(10, help="steps of learning-rate warm-up after a restart", minimum=0)

    def parametrize(self, linear: nn.Module) -> LowRankProduct:
        weight = linear_weight(linear)
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        layer = LowRankProduct(linear, self, rank=self.rank, scale=scale)
        if self.init == "svd":
            truncated_svd(layer, weight, layer.scale)
        else:
            kaiming_product(layer, layer.initial_generator())
        return layer

    def events(self) -> tuple[Event, ...]:
        return (Event("restart", lambda layer: self.restart_every, self._restart),)

    def warmup_factor(self, clock: int) -> float:
        first = clock < self.restart_every
        return 1.0 if first else ramp(clock % self.restart_every, self.rewarm)

    def _restart(self, layers: Sequence[Parametrization], moments: Moments, clock: int) -> None:
        for layer in cast("Sequence[LowRankProduct]", layers):
            layer.balance()
            for factor in layer.factors().values():
                moments.clear(factor)

    def schedule_text(self) -> str:
        return f"restart every {self.restart_every} steps"

    def variations(self) -> list[str]:
        return ["scale 1 (published: 32/r)"] if self.alpha is None else []
