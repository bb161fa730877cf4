"""TRP, trained rank pruning: dense weights that are truncated to low rank again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from spectrain.abstract import is_abstract
from spectrain.linalg import svd
from spectrain.method import Card, Event, register
from spectrain.methods.full import FullRank
from spectrain.moments import Moments
from spectrain.papers import TRP as PAPER
from spectrain.parametrizations.base import Parametrization
from spectrain.parametrizations.dense import Dense
from spectrain.settings import option
from spectrain.sharding import divided

Layers = Sequence[Dense]


@register
@dataclass(frozen=True)
class TRP(FullRank):
    """Every `truncate_every` steps W becomes its best approximation that has a share of its energy Σs².

    Between two truncations all of W trains, so that the loss recovers; W drifts towards low rank, and what
    is left at the end decomposes without fine-tuning (Xu et al. 2020). Moments stay. In the step after
    a truncation λ U_k V_kᵀ, a subgradient of λ ‖W‖_*, is added to the gradient, after clipping; it waits
    for that step in host memory. Linear layers alone: convolutions, which the paper is about, are not
    exchanged.

    A run whose steps are a multiple of `truncate_every` ends with truncated weights, and
    ``spectrain merge RUN --prune 1 --factored`` stores them as thin factors.
    """

    card: ClassVar[Card] = Card(
        key="trp",
        title="TRP",
        summary="dense weights that are truncated to low rank now and then, and recover in between",
        parametrization="dense W",
        initializer="the layer's own",
        step_rule="after a truncation: λ U Vᵀ added to the gradient",
        schedule="truncate W by its energy",
        paper_schedule="truncate about every 20 steps, in the first one too",
        papers=(PAPER,),
    )

    truncate_every: int = option(20, help="steps between truncations", symbol="T", minimum=1)
    energy: float = option(
        0.9,
        help="share of Σs² that the fewest singular values which stay have; 1: nothing is truncated",
        symbol="e",
        above=0.0,
        maximum=1.0,
    )
    nuclear: float = option(
        3e-4,
        help="weight of the nuclear norm, in the step after a truncation",
        symbol="λ",
        minimum=0.0,
    )

    def parametrize(self, linear: nn.Module) -> Dense:
        layer = super().parametrize(linear)
        if self.nuclear:
            place = torch.device("meta" if layer.weight.is_meta else "cpu")
            layer.hosted["subgradient"] = torch.zeros_like(layer.weight.detach(), device=place)
        return layer

    def before_update(
        self, layers: Sequence[Parametrization], moments: Moments, clock: int
    ) -> None:
        if not self.nuclear or not clock or clock % self.truncate_every:
            return
        for layer in cast(Layers, layers):
            gradient = layer.weight.grad
            if gradient is not None:
                own = layer.hosted["subgradient"].to(gradient.device)
                gradient.add_(divided(own, gradient), alpha=self.nuclear)

    def events(self) -> tuple[Event, ...]:
        return (Event("truncation", lambda layer: self.truncate_every, self._truncate_all),)

    @torch.no_grad()
    def _truncate_all(
        self, layers: Sequence[Parametrization], moments: Moments, clock: int
    ) -> None:
        for layer in cast(Layers, layers):
            if self.energy == 1.0 and not self.nuclear:
                continue
            U, s, V = svd(layer.weight)
            rank = _rank_at(s, self.energy)
            if rank < len(s):
                layer.weight.copy_(U[:rank].mT * s[:rank] @ V[:rank])
            if self.nuclear:
                layer.hosted["subgradient"].copy_(U[:rank].mT @ V[:rank])

    def schedule_text(self) -> str:
        return f"truncate every {self.truncate_every} steps to {self.energy:g} of the energy"

    def variations(self) -> list[str]:
        return ["the first truncation comes after truncate_every steps, not before the first step"]


def _rank_at(
    s: Tensor,  # (k,), descending
    energy: float,
) -> int:
    """The fewest singular values with Σ_{i ≤ r} s² ≥ energy · Σ s²; all of them at energy 1."""
    if energy == 1.0 or is_abstract(s):
        return len(s)
    sums = s.double().square().cumsum(0)
    return min(int((sums < energy * sums[-1]).sum()) + 1, len(s))
