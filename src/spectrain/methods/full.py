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

    def against_layerwise(self, accumulate: int) -> str | None:
        if accumulate > 1:
            return (
                "gradients that add up over backward passes would all exist together at full rank; "
                "take one backward pass in a step, or a low-rank method"
            )
        return None
