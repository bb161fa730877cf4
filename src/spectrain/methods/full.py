"""Full-rank training: the baseline, through the same door as every method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from spectrain.method import Card, Method, register
from spectrain.parametrizations.dense import Dense


@register
@dataclass(frozen=True)
class FullRank(Method):
    """Every entry of W trains. The matrices form the factors' group, so they can have a learning
    rate apart from embeddings and head, as every other method's factors have.
    """

    card: ClassVar[Card] = Card(
        key="full",
        title="Full rank",
        summary="ordinary training of every weight",
        parametrization="dense W",
        initializer="the layer's own",
        step_rule="none",
        schedule="none",
        paper_schedule="none",
    )

    def parametrize(self, linear: nn.Module) -> Dense:
        return Dense(linear, self)
