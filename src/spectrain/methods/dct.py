"""DCT-AdamW's projection: those columns of one fixed cosine basis that a gradient is most along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from spectrain.method import Card, Method, register
from spectrain.moments import Moments
from spectrain.papers import DCT_ADAMW
from spectrain.parametrizations.base import Parametrization
from spectrain.parametrizations.bases import CosineBasis
from spectrain.settings import option
from spectrain.sharding import divided, whole

Layers = Sequence[CosineBasis]


@register
@dataclass(frozen=True)
class DCT(Method):
    """W ← W + P ΔR, where P is r columns of the DCT-II basis D (Modoranu et al. 2025, DCT-AdamW).

    Those of the largest ‖(Dᵀ G)_k‖, on the shorter side of W, are chosen from the step's own gradient,
    before the update; a layer stores their numbers. Moments of a column that stays go with it, those of
    a new one begin at zero (the paper's rotation, which among these columns is a permutation). With
    error feedback, what a projection leaves out is added to the next gradient. Weight decay of the
    factors' group acts on W, decoupled.

    Clipping and loss scaling see the projection onto the columns of the step before; what they did to
    it is done to the new one.
    """

    card: ClassVar[Card] = Card(
        key="dct",
        title="DCT",
        summary="DCT-AdamW's subspace for any optimizer: the columns of a fixed cosine basis along "
        "which the gradient is largest, without any SVD",
        parametrization="W + P R, P from a table that layers share, R folded into W after every step",
        initializer="the lowest frequencies",
        step_rule="select P; fold: W ← W + P R, R ← 0",
        schedule="select the columns of P",
        paper_schedule="select in every step",
        papers=(DCT_ADAMW,),
    )

    gathers = True

    rank: int = option(help="columns of the cosine basis", symbol="r", minimum=1)
    refresh_every: int = option(1, help="steps between selections", symbol="T_u", minimum=1)
    norm: str = option(
        "l1",
        help="by which norm of its coefficients a column is ranked; l2 leaves out the least energy",
        choices=("l1", "l2"),
    )
    error_feedback: bool = option(
        False,
        help="add what projections left out to the next gradient, at the price of a matrix like W",
    )

    def parametrize(self, linear: nn.Module) -> CosineBasis:
        every_step = self.error_feedback or self.refresh_every == 1
        return CosineBasis(
            linear, self, keeps_error=self.error_feedback, rank=self.rank, gathers=every_step
        )

    def begin_step(self, layers: Sequence[Parametrization], clock: int) -> None:
        for layer in cast(Layers, layers):
            layer.table()
            layer.gather(self.error_feedback or clock % self.refresh_every == 0)

    @torch.no_grad()
    def before_update(
        self, layers: Sequence[Parametrization], moments: Moments, clock: int
    ) -> None:
        for layer in cast(Layers, layers):
            found, seen = layer.clipped(), layer.R.grad
            if found is not None and seen is not None:
                self._project(layer, found[0], seen, moments, clock)
                layer.discard()

    def _project(
        self, layer: CosineBasis, gradient: Tensor, seen: Tensor, moments: Moments, clock: int
    ) -> None:
        """Select columns, and let R's gradient `seen` be the projection of the dense one (m, n) on them."""
        if layer.error is not None:
            gradient.add_(whole(layer.error))
        coefficients = layer.transform(gradient)
        if clock % self.refresh_every == 0:
            order = 1 if self.norm == "l1" else 2
            norms = torch.linalg.vector_norm(coefficients, ord=order, dim=1 - layer.rank_dim)
            changed = layer.choose(norms.topk(self.rank).indices)
            moments.clear(layer.R, index=changed, dim=layer.rank_dim)
        projected = coefficients.index_select(layer.rank_dim, layer.indices)
        seen.copy_(divided(projected, seen))
        if layer.error is not None:
            left, right = layer.rows().mT, projected
            left, right = (left, right) if layer.side == "left" else (right, left.mT)
            layer.error.copy_(divided(gradient.addmm_(left, right, alpha=-1), layer.error))

    def after_update(self, layers: Sequence[Parametrization], moments: Moments, clock: int) -> None:
        for layer in cast(Layers, layers):
            group = moments.group(layer.R)
            layer.fold(1.0, decay=group["lr"] * group.get("weight_decay", 0.0))

    def schedule_text(self) -> str:
        often = f"every {self.refresh_every} steps" if self.refresh_every > 1 else "in every step"
        return f"select columns {often}"
