"""TRP: ordinary training, in which every weight is set back to a low rank now and then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import nn

from spectrain.method import Card, Event, Method, register
from spectrain.moments import Moments
from spectrain.papers import TRP as PAPER
from spectrain.parametrizations.base import Parametrization
from spectrain.parametrizations.dense import Truncated
from spectrain.settings import option


@register
@dataclass(frozen=True)
class TRP(Method):
    """Every T steps W ← its truncated SVD of energy e, and in the step after that G ← G + λ U Vᵀ, the
    subgradient of λ ‖W‖ in the nuclear norm (Xu et al. 2020, algorithm 1). The optimizer's moments stay.

    Trains as much as full rank does. W drifts to a low rank, so that `spectrain merge --prune --factored`
    loses little in the end.
    """

    card: ClassVar[Card] = Card(
        key="trp",
        title="TRP",
        summary="full-rank training that sets every weight back to a low rank now and then, for a smaller "
        "model in the end",
        parametrization="dense W",
        initializer="the layer's own",
        step_rule="after a truncation: G ← G + λ U Vᵀ",
        schedule="truncate W by its singular values' energy",
        paper_schedule="every 20 steps, energy 0.9",
        papers=(PAPER,),
    )

    truncate_every: int = option(20, help="steps between truncations", symbol="T", minimum=1)
    energy: float = option(
        0.9,
        help="share of the sum of squared singular values that a truncation keeps",
        symbol="e",
        above=0.0,
        maximum=1.0,
    )
    nuclear: float = option(
        3e-4,
        help="weight of the nuclear norm's subgradient; 0: none, which saves a frozen matrix a layer",
        symbol="λ",
        minimum=0.0,
    )

    def parametrize(self, linear: nn.Module) -> Truncated:
        return Truncated(linear, self, direction=self.nuclear > 0)

    @torch.no_grad()
    def before_update(
        self, layers: Sequence[Parametrization], moments: Moments, clock: int
    ) -> None:
        if clock == 0 or clock % self.truncate_every or not self.nuclear:
            return
        for layer in cast("Sequence[Truncated]", layers):
            if layer.weight.grad is not None and layer.direction is not None:
                layer.weight.grad.add_(layer.direction, alpha=self.nuclear)

    def events(self) -> tuple[Event, ...]:
        return (Event("truncation", lambda layer: self.truncate_every, self._truncate),)

    def _truncate(self, layers: Sequence[Parametrization], moments: Moments, clock: int) -> None:
        for layer in cast("Sequence[Truncated]", layers):
            layer.truncate(self.energy)

    def schedule_text(self) -> str:
        return f"truncate every {self.truncate_every} steps"
