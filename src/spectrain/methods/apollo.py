"""APOLLO: the whole gradient moves W, scaled by norms of what Adam makes of a random projection of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import nn

from spectrain.method import Card, Method, register
from spectrain.moments import Moments
from spectrain.papers import APOLLO as PAPER
from spectrain.parametrizations.base import Parametrization
from spectrain.parametrizations.bases import SeededBasis
from spectrain.scaling import limit_growth, scaling
from spectrain.settings import option
from spectrain.sharding import whole

Layers = Sequence[SeededBasis]


@register
@dataclass(frozen=True)
class APOLLO(Method):
    """W ← W − η · scale · G ∘ φ, φ = ‖N‖ / ‖Pᵀ G‖ channel by channel (Zhu et al. 2025, algorithm 1).

    N = −ΔR / η is what the optimizer makes of Pᵀ G (or G Q), where P, on the shorter side of W, has
    entries from N(0, 1/r). It is known by a seed alone, and held until the next is drawn. ‖G ∘ φ‖ grows
    by at most γ from step to step. Weight decay of the factors' group acts on W, decoupled. G is needed
    in every step, as at full rank: all layers' at once, or one at a time with `LayerWise`.
    """

    card: ClassVar[Card] = Card(
        key="apollo",
        title="APOLLO",
        summary="stochastic gradient descent with Adam's learning rates, one for each channel, "
        "estimated in a random subspace",
        parametrization="W + P R, P from a seed, R for the moments only",
        initializer="random P",
        step_rule="W ← W − η · scale · G ∘ φ, R ← 0",
        schedule="draw P anew",
        paper_schedule="draw anew every 200 steps",
        papers=(PAPER,),
    )

    gathers = True

    rank: int = option(help="rank of the random projection", symbol="r", minimum=1)
    refresh_every: int = option(200, help="steps between projections", symbol="T", minimum=1)
    scale: float = option(1.0, help="factor on the update of W", symbol="α", above=0.0)
    scaling: str = option(
        "channel",
        help="factors φ: one for each channel of the longer side, or one for the whole matrix",
        choices=("channel", "tensor"),
    )
    limiter: float = option(
        1.01, help="how much the norm of G ∘ φ may grow in a step", symbol="γ", minimum=1.0
    )

    def parametrize(self, linear: nn.Module) -> SeededBasis:
        layer = SeededBasis(linear, self, period=self.refresh_every, rank=self.rank, gathers=True)
        layer.register_buffer("update_norm", layer.R.detach().new_zeros(()))
        return layer

    def begin_step(self, layers: Sequence[Parametrization], clock: int) -> None:
        for layer in cast(Layers, layers):
            layer.draw(clock)
            layer.gather()

    @torch.no_grad()
    def after_update(self, layers: Sequence[Parametrization], moments: Moments, clock: int) -> None:
        for layer in cast(Layers, layers):
            group = moments.group(layer.R)
            rate = float(group["lr"])
            found, step = layer.clipped() if rate > 0 else None, None
            if found is not None:
                step, inside = found
                dim = layer.rank_dim if self.scaling == "channel" else None
                step.mul_(scaling(whole(layer.R), inside, dim))
                limit_growth(step, layer.get_buffer("update_norm"), rate, self.limiter)
            layer.descend(step, self.scale, decay=rate * group.get("weight_decay", 0.0))
            layer.discard()

    def schedule_text(self) -> str:
        return f"draw P anew every {self.refresh_every} steps"


@register
@dataclass(frozen=True)
class APOLLOMini(APOLLO):
    """APOLLO with a random vector for P and a single factor for each matrix (section 4.2)."""

    card: ClassVar[Card] = Card(
        key="apollo-mini",
        title="APOLLO-Mini",
        summary="APOLLO at rank one with a single factor for each matrix: moments of a vector's size",
        parametrization="W + P R, P from a seed, R for the moments only",
        initializer="random P",
        step_rule="W ← W − η · scale · φ G, R ← 0",
        schedule="draw P anew",
        paper_schedule="draw anew every 200 steps",
        papers=(PAPER,),
    )

    rank: int = option(1, help="rank of the random projection", symbol="r", minimum=1)
    scale: float = option(
        math.sqrt(128), help="factor on the update of W; √128", symbol="α", above=0.0
    )
    scaling: str = option(
        "tensor",
        help="factors φ: one for each channel of the longer side, or one for the whole matrix",
        choices=("channel", "tensor"),
    )
