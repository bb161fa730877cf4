"""LoRA and rsLoRA: a frozen W₀ and a trainable update of fixed rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from spectrain.errors import UsageError
from spectrain.initializers.adapters import kaiming_zero
from spectrain.method import Card, Method, register
from spectrain.papers import LORA, RSLORA
from spectrain.parametrizations.additive import Additive
from spectrain.settings import option


@register
@dataclass(frozen=True)
class LoRA(Method):
    """W = W₀ + scale · B A with W₀ frozen (Hu et al. 2022, eq. 3).

    From scratch, W₀ is the layer's random initial weight. r (m + n) numbers train per layer.
    """

    card: ClassVar[Card] = Card(
        key="lora",
        title="LoRA",
        summary="a trainable update of fixed rank beside frozen weights",
        parametrization="W₀ + scale · B A",
        initializer="B = 0, A Kaiming-uniform",
        step_rule="none",
        schedule="none",
        paper_schedule="none",
        papers=(LORA, RSLORA),
    )

    rank: int = option(help="rank of the update", symbol="r", minimum=1)
    alpha: float | None = option(
        None,
        help="numerator of the scale; default: the value that makes the scale 1",
        symbol="α",
        above=0.0,
    )
    scaling: str = option(
        "alpha/r",
        help="scale of the update: alpha/r, or alpha/√r (rsLoRA)",
        choices=("alpha/r", "rslora"),
    )
    dropout: float = option(0.0, help="dropout on the input of the update", minimum=0.0, below=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scaling == "rslora" and self.alpha is None:
            raise UsageError(f"{self.card.title}: scaling='rslora' is alpha/√r and needs alpha")

    def parametrize(self, linear: nn.Module) -> Additive:
        layer = Additive(linear, self, rank=self.rank, scale=self.scale, dropout=self.dropout)
        kaiming_zero(layer, layer.initial_generator())
        return layer

    @property
    def scale(self) -> float:
        """The factor on B A: α / r, or α / √r with scaling="rslora"; 1 where alpha is not given."""
        if self.alpha is None:
            return 1.0
        return self.alpha / (math.sqrt(self.rank) if self.scaling == "rslora" else self.rank)
