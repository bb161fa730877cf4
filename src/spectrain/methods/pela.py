"""PELA: thin factors in the place of a pretrained matrix, trained beside it to do what it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

from torch import nn

from spectrain.initializers.low_rank import truncated_svd
from spectrain.method import Card, Method, register
from spectrain.moments import Moments
from spectrain.papers import PELA as PAPER
from spectrain.parametrizations.base import Parametrization, linear_shape
from spectrain.parametrizations.distilled import Distilled
from spectrain.settings import option

Layers = Sequence[Distilled]


@register
@dataclass(frozen=True)
class PELA(Method):
    """W = B A, at first the pretrained weight's best approximation, distilled from it (Guo et al. 2024).

    The frozen weight stays beside the factors as their teacher, until they are merged. To the loss that
    the loop computes come, as gradients right before the update: `feature` times the mean squared
    distance of the layers' outputs from their teachers', and `perturbation` times the mean over layers of
    (max |B A − teacher| − `tolerance`)²₊. No loop has to call anything for it, gradient scalers and
    accumulation change nothing in it, and gradient clipping sees the loop's own loss alone.

    A teacher is asked about the input that its student has, where the paper's sees what a whole second
    model, the teacher's, has computed up to there. That takes a second matrix, not a second forward
    pass, but each layer learns for itself: no layer makes up for those before it. Distance of logits,
    which the paper weighs with 0, is left out. It is for pretrained models; random weights teach nothing.
    """

    card: ClassVar[Card] = Card(
        key="pela",
        title="PELA",
        summary="thin factors of a pretrained matrix that learn from it to do what it does",
        parametrization="B A, beside the frozen W",
        initializer="leading triples of W, √s to each factor",
        step_rule="gradients of the distance from W's outputs, and of the largest |B A − W|",
        schedule="none",
        paper_schedule="none",
        papers=(PAPER,),
    )

    keeps_function = False

    rank: int | None = option(
        None, help="rank of the factors; default: what compression asks for", symbol="k", minimum=1
    )
    compression: float = option(
        2.0,
        help="a layer's numbers over its factors': k = ⌊mn / c(m + n)⌋, at least 1",
        symbol="c",
        minimum=1.0,
    )
    feature: float = option(
        1.0, help="weight of the outputs' distance from the teacher's", symbol="λ_f", minimum=0.0
    )
    perturbation: float = option(
        1.0, help="weight of the largest change of an entry", symbol="λ_w", minimum=0.0
    )
    tolerance: float = option(1e-3, help="change of an entry that costs nothing", minimum=0.0)

    def parametrize(self, linear: nn.Module) -> Distilled:
        m, n = linear_shape(linear)
        layer = Distilled(
            linear,
            self,
            rank=self.rank or max(1, int(m * n / (self.compression * (m + n)))),
            feature=self.feature,
            perturbation=self.perturbation,
            tolerance=self.tolerance,
        )
        truncated_svd(layer, layer.teacher.detach())
        return layer

    def begin_step(self, layers: Sequence[Parametrization], clock: int) -> None:
        for layer in cast(Layers, layers):
            layer.gather(bool(self.feature or self.perturbation))

    def before_update(
        self, layers: Sequence[Parametrization], moments: Moments, clock: int
    ) -> None:
        for layer in cast(Layers, layers):
            layer.learn(1 / layer.peers)

    def variations(self) -> list[str]:
        return ["each teacher sees its student's input, not its own model's"]
