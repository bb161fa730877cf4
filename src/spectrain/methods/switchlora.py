"""SwitchLoRA: LoRA whose single vectors change places with candidates, a few in every step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import nn

from spectrain.correction import correct_bias
from spectrain.errors import UsageError
from spectrain.initializers.pools import uniform_pools
from spectrain.method import Card, Method, register
from spectrain.moments import Moments
from spectrain.papers import SWITCHLORA
from spectrain.parametrizations.base import Parametrization, seeded_generator
from spectrain.parametrizations.switched import Switched
from spectrain.settings import option

Layers = Sequence[Switched]
SHRUNK = 0.3  # what is left of the rate of switching after `decay_steps`
PUBLISHED_DECAY = 4000  # steps, a tenth of the paper's runs


@register
@dataclass(frozen=True)
class SwitchLoRA(Method):
    """W = W₀ + α/r · B A, of whose r row-column pairs a few are switched in every step (Zhou et al. 2024).

    A switched row a_k goes back to its pool and another candidate c takes its place, while W₀ takes up
    b_k (a_k − c)ᵀ, so that W stays. b_k, whose gradient is another one now, loses its moments and rests
    for `freeze` updates: neither gradient nor weight decay moves it. Columns of B likewise, and then the
    row of A rests. With Adam and AdamW each vector has a bias correction of its own from then on
    (`correct_bias`). A layer at full rank has no candidates left, and is never switched.

    Each pool has min(m, n) candidates in host memory, together as many numbers as W if it is square.
    W₀ is rounded at every switch: weights should be in float32 (under autocast, say), since in half
    precision the roundings of thousands of switches add up. Dropout on the update, which the released
    code has, is left out: a switch would change what training computes.
    """

    card: ClassVar[Card] = Card(
        key="switchlora",
        title="SwitchLoRA",
        summary="LoRA whose single vectors change places with candidates in host memory, a few in every "
        "step",
        parametrization="W₀ + α/r · B A, vectors from two pools",
        initializer="pools uniform, B A taken out of W₀",
        step_rule="switch vectors; counterparts lose moments and rest; bias correction by vector",
        schedule="switching slows down exponentially",
        paper_schedule="each vector every 40 steps at first, 0.3 times as often after a tenth of the steps",
        papers=(SWITCHLORA,),
    )

    rank: int = option(help="rank of the update", symbol="r", minimum=1)
    alpha: float = option(1.0, help="numerator of the scale α/r", symbol="α", above=0.0)
    interval: int = option(
        40,
        help="steps between two switches of a vector, at the start; at least twice freeze",
        symbol="interval₀",
        minimum=2,
    )
    freeze: int = option(
        5, help="updates for which a switched vector's counterpart rests", symbol="N", minimum=1
    )
    decay_steps: int | None = option(
        None,
        help="steps in which switching falls to 0.3 of its rate; default: a tenth of the run's, in a loop "
        "of one's own 4000",
        symbol="T_d",
        minimum=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interval < 2 * self.freeze:
            raise UsageError(
                f"{self.title}: interval is {self.interval}, but vectors that rest for freeze="
                f"{self.freeze} updates can be switched every {2 * self.freeze} steps at most; raise "
                "interval or lower freeze"
            )

    def parametrize(self, linear: nn.Module) -> Switched:
        layer = Switched(linear, self, rank=self.rank, scale=self.alpha / self.rank)
        uniform_pools(layer, layer.initial_generator())
        return layer

    def phases(self, steps: int) -> list[tuple[Method, int]]:
        decay = self.decay_steps or max(1, steps // 10)
        return [(dataclasses.replace(self, decay_steps=decay), steps)]

    def before_update(
        self, layers: Sequence[Parametrization], moments: Moments, clock: int
    ) -> None:
        for layer in cast(Layers, layers):
            count = self._count(layer, clock)
            if count:
                rows, columns = layer.switch(count)
                # ∂L/∂b_k is a multiple of x a_k, which is new; that of a_k still is one of b_k.
                moments.clear(layer.B, rows, dim=1)
                moments.clear(layer.A, columns, dim=0)
                layer.column_age[rows] = layer.row_age[columns] = -self.freeze
            layer.hold()

    def after_update(self, layers: Sequence[Parametrization], moments: Moments, clock: int) -> None:
        for layer in cast(Layers, layers):
            for factor, age, dim in ((layer.A, layer.row_age, 0), (layer.B, layer.column_age, 1)):
                if factor.grad is not None:  # without one the optimizer left it out
                    age.add_(1)
                    correct_bias(factor, moments, age, dim)
            for factor, dim, index in layer.put_back():
                moments.clear(factor, index, dim)  # of coupled weight decay

    def _count(self, layer: Switched, clock: int) -> int:
        """How many rows, and columns, of `layer` are switched in this step.

        r / interval(t), its fraction drawn; no more than leaves the windows of rows and columns, and what
        rests behind them, apart.
        """
        if layer.rank == layer.size:
            return 0
        decay = self.decay_steps or PUBLISHED_DECAY
        exact = layer.rank / self.interval * math.exp((clock + 1) / decay * math.log(SHRUNK))
        draw = torch.rand((), generator=seeded_generator(layer.known_seed, clock), device="cpu")
        count = int(exact) + (float(draw) < exact % 1.0)
        return min(count, layer.rank // 2 - layer.frozen)

    def schedule_text(self) -> str:
        return f"switch each vector every {self.interval} steps at first, less often later"

    def variations(self) -> list[str]:
        return ["at rank 1 nothing is switched"] if self.rank == 1 else []
