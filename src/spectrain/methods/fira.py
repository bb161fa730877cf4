"""Fira: GaLore, and beside it what GaLore leaves out of the gradient, scaled as Adam scales the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import nn

from spectrain.method import Card, Method, register
from spectrain.methods.galore import GaLore
from spectrain.papers import FIRA
from spectrain.parametrizations.base import Parametrization
from spectrain.parametrizations.bases import StoredBasis
from spectrain.scaling import limit_growth, scaling
from spectrain.settings import option
from spectrain.sharding import whole


@register
@dataclass(frozen=True)
class Fira(GaLore):
    """W ← W + scale · P ΔR − η S, with S = (G − P Pᵀ G) ∘ φ (Chen et al. 2024, algorithm 1).

    φ is ‖N‖ / ‖Pᵀ G‖ for each column of W (each row, where the basis is on the right), and N = −ΔR / η
    whatever the optimizer did, so that any optimizer works. ‖S‖ grows by at most γ from step to step.
    G is needed in every step, as at full rank: all layers' at once, or one at a time with `LayerWise`.
    Basis, moments and weight decay are GaLore's.
    """

    card: ClassVar[Card] = Card(
        key="fira",
        title="Fira",
        summary="GaLore whose updates have full rank: the rest of the gradient moves W, too, scaled as "
        "the optimizer scales the projected part",
        parametrization="W + P R, R folded into W after every step",
        initializer="SVD of the gradient",
        step_rule="fold: W ← W + scale · P R − η (G − P Pᵀ G) ∘ φ, R ← 0",
        schedule="refresh the basis P",
        paper_schedule="refresh every 200 steps (500 at 7B)",
        papers=(FIRA,),
    )

    gathers = True

    complement: str = option(
        "orthogonal",
        help="what beside P Pᵀ G moves W: G − P Pᵀ G, or G − scale · P Pᵀ G (the released code, and so the "
        "published numbers)",
        choices=("orthogonal", "released"),
    )
    limiter: float = option(
        1.01, help="how much the residual's norm may grow in a step", symbol="γ", minimum=1.0
    )

    def parametrize(self, linear: nn.Module) -> StoredBasis:
        layer = super().parametrize(linear)
        layer.resident = ("probe",)
        layer.register_buffer("residual_norm", layer.R.detach().new_zeros(()))
        return layer

    def begin_step(self, layers: Sequence[Parametrization], clock: int) -> None:
        for layer in layers:
            cast(StoredBasis, layer).gather()

    @torch.no_grad()
    def _move(self, layer: StoredBasis, rate: float, decay: float, awaited: bool) -> None:
        residual = None
        found = layer.clipped() if rate > 0 else None
        if found is not None:
            gradient, inside = found
            residual = gradient.clone() if awaited else gradient
            rows = whole(layer.rows())
            factor = scaling(whole(layer.R), inside, layer.rank_dim)
            left, right = (rows.mT, inside) if layer.side == "left" else (inside, rows)
            residual.addmm_(
                left, right, alpha=-1 if self.complement == "orthogonal" else -self.scale
            )
            norm = layer.get_buffer("residual_norm")
            limit_growth(residual.mul_(factor), norm, float(rate), self.limiter)
        layer.fold(self.scale, decay)
        if residual is not None:
            layer.descend(residual)

    def against_layerwise(self, accumulate: int) -> str | None:
        return Method.against_layerwise(self, accumulate)

    def variations(self) -> list[str]:
        notes = super().variations()
        if self.complement == "released":
            notes.append("scale · P Pᵀ G taken out of the residual, as released")
        return notes
