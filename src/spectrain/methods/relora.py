"""ReLoRA, ReLoRA* and COLA: merge the low-rank update now and then, and start a new one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

from torch import nn

from spectrain.errors import UsageError
from spectrain.initializers.adapters import kaiming_zero
from spectrain.method import (
    Card,
    Event,
    Method,
    ramp,
    register,
)
from spectrain.methods.full import FullRank
from spectrain.methods.lora import LoRA
from spectrain.moments import Moments
from spectrain.papers import COLA, RELORA, SST
from spectrain.parametrizations.additive import Additive
from spectrain.parametrizations.base import Parametrization, event_generator
from spectrain.settings import option


@register
@dataclass(frozen=True)
class ReLoRA(LoRA):
    """Every `merge_every` steps: W₀ ← W₀ + scale · B A, A drawn anew, B = 0, moments edited, rate
    warmed up again. With the defaults this is ReLoRA* (no full-rank start, moments cleared); with
    `warm_start` and moments="prune" the original; with moments="fresh" and rewarm=0 COLA's chain.
    """

    card: ClassVar[Card] = Card(
        key="relora",
        title="ReLoRA*",
        summary="LoRA merged into the weights and restarted now and then",
        parametrization="W₀ + scale · B A",
        initializer="B = 0, A Kaiming-uniform",
        step_rule="none",
        schedule="merge and restart; moments cleared or pruned; rate warmed up again",
        paper_schedule="ReLoRA*: merge every 200 steps; ReLoRA: every 5000 after 5000 full-rank steps",
        papers=(RELORA, SST, COLA),
    )

    merge_every: int = option(200, help="steps between merges", symbol="T2", minimum=1)
    moments: str = option(
        "reset",
        help="optimizer moments of the factors at a merge: reset to zero, or prune; fresh clears "
        "the whole optimizer (COLA)",
        choices=("reset", "prune", "fresh"),
    )
    prune: str = option(
        "random", help="which moments pruning zeroes", choices=("random", "magnitude")
    )
    prune_ratio: float = option(
        0.99, help="share of moments that pruning zeroes", minimum=0.0, maximum=1.0
    )
    reset_every: int | None = option(
        None, help="steps between edits of the moments; default: at every merge", minimum=1
    )
    rewarm: int = option(20, help="steps of learning-rate warm-up after a restart", minimum=0)
    warm_start: int = option(
        0, help="full-rank steps before the first adapter (a phase of its own)", minimum=0
    )

    @property
    def title(self) -> str:
        original = self.warm_start or self.moments == "prune"
        return "COLA" if self.moments == "fresh" else "ReLoRA" if original else "ReLoRA*"

    def parametrize(self, linear: nn.Module) -> Additive:
        if self.warm_start:
            raise UsageError(
                f"{self.title}: warm_start is a phase of the run, trained with FullRank() before this "
                "method is applied; take both from method.phases(steps), and apply one after the other"
            )
        return super().parametrize(linear)

    def events(self) -> tuple[Event, ...]:
        return (
            Event("merge", lambda layer: self.merge_every, self._merge_and_restart),
            Event("restart", lambda layer: self._restart_every, self._edit_moments),
        )

    def warmup_factor(self, clock: int) -> float:
        first = clock < self._restart_every
        return 1.0 if first else ramp(clock % self._restart_every, self.rewarm)

    def phases(self, steps: int) -> list[tuple[Method, int]]:
        adapters = dataclasses.replace(self, warm_start=0)
        if not self.warm_start:
            return [(self, steps)]
        if self.warm_start >= steps:
            raise UsageError(
                f"{self.title}: warm_start is {self.warm_start}, which leaves nothing of {steps} steps "
                "for the adapters"
            )
        return [(FullRank(), self.warm_start), (adapters, steps - self.warm_start)]

    @property
    def prunes(self) -> bool:
        return self.moments == "prune"

    @property
    def _restart_every(self) -> int:
        return self.reset_every or self.merge_every

    def _merge_and_restart(
        self, layers: Sequence[Parametrization], moments: Moments, clock: int
    ) -> None:
        for layer in cast("Sequence[Additive]", layers):
            layer.fold()
            kaiming_zero(layer, event_generator(layer, clock))

    def _edit_moments(
        self, layers: Sequence[Parametrization], moments: Moments, clock: int
    ) -> None:
        if self.moments == "fresh":
            moments.clear_all()
            return
        for layer in layers:
            generator = event_generator(layer, -clock)  # other numbers than the restart's
            for factor in layer.factors().values():
                if self.moments == "reset":
                    moments.clear(factor)
                else:
                    moments.prune(factor, self.prune_ratio, self.prune, generator)

    def schedule_text(self) -> str:
        start = f"{self.warm_start} full-rank steps, then " if self.warm_start else ""
        return f"{start}merge every {self.merge_every} steps"

    def variations(self) -> list[str]:
        shared = "one mask prunes both moments (the released code draws one for each)"
        return [shared] if self.moments == "prune" else []
