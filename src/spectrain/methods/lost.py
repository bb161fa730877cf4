"""LOST: the leading singular directions in two factors, and whole columns for the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from spectrain.errors import UsageError
from spectrain.initializers.low_rank import complementary_columns
from spectrain.method import Card, Method, register
from spectrain.papers import LOST as PAPER
from spectrain.parametrizations.base import linear_shape, linear_weight
from spectrain.parametrizations.low_rank_columns import LowRankColumns
from spectrain.settings import option


@register
@dataclass(frozen=True)
class LOST(Method):
    """y = γ B σ(A x) + (1 − γ) C x_I (Li et al. 2025): B A is the best approximation of the layer's weight,
    C the columns of the weight where the singular values behind it lie; all of them train.

    With activation="silu" a layer is no matrix any more and cannot be merged; with "none" it is one.
    """

    card: ClassVar[Card] = Card(
        key="lost",
        title="LOST",
        summary="leading singular directions in two factors with SiLU between them, and the columns that "
        "they leave the most of",
        parametrization="γ B σ(A x) + (1 − γ) C x_I",
        initializer="SVD of W; its columns by what the SVD leaves",
        step_rule="none",
        schedule="none",
        paper_schedule="none",
        papers=(PAPER,),
    )
    keeps_function: ClassVar[bool] = False

    rank: int = option(help="rank of the factors", symbol="r", minimum=1)
    density: float = option(
        0.05, help="share of W's columns that are trained", symbol="δ", above=0.0, maximum=1.0
    )
    mixing: float = option(
        0.7,
        help="weight of the factors; that of the columns is 1 − γ",
        symbol="γ",
        above=0.0,
        below=1.0,
    )
    activation: str = option(
        "silu", help="between the factors: silu, or none", choices=("silu", "none")
    )
    complement: int = option(
        256, help="singular triples behind the r-th that choose the columns", symbol="k", minimum=1
    )

    def parametrize(self, linear: nn.Module) -> LowRankColumns:
        weight, (m, n) = linear_weight(linear), linear_shape(linear)
        if self.rank >= min(m, n):
            raise UsageError(
                f"{self.title}: a rank of {self.rank} leaves no singular value of a layer of {m} × {n} to "
                "choose columns by; take a lower rank, or exclude the layer"
            )
        layer = LowRankColumns(
            linear,
            self,
            rank=self.rank,
            channels=math.ceil(self.density * n),
            mixing=self.mixing,
            curved=self.activation == "silu",
        )
        complementary_columns(layer, weight, self.complement)
        return layer

    def against_merge(self) -> str | None:
        if self.activation == "silu":
            return "SiLU stands between its factors, and so no single matrix does the same"
        return None
