"""GaLore: Adam in the leading subspace of the gradient, the basis refreshed now and then."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from spectrain.abstract import is_abstract
from spectrain.errors import SpectrainWarning
from spectrain.linalg import leading_basis, random_basis, randomized_svd, subspace_step
from spectrain.method import Card, Event, Method, register
from spectrain.moments import Moments
from spectrain.papers import GALORE
from spectrain.parametrizations.base import Parametrization, event_generator
from spectrain.parametrizations.bases import StoredBasis
from spectrain.settings import option

Layers = Sequence[StoredBasis]


@register
@dataclass(frozen=True)
class GaLore(Method):
    """W ← W + scale · P ΔR, where ΔR is any optimizer's update for R's gradient Pᵀ G (or G Q).

    P spans the r leading singular directions of the gradient, on the shorter side of W by default
    (Zhao et al. 2024, algorithm 2). Weight decay of the factors' group acts on W, decoupled.
    """

    card: ClassVar[Card] = Card(
        key="galore",
        title="GaLore",
        summary="dense weights whose optimizer works in a low-rank subspace of the gradient",
        parametrization="W + P R, R folded into W after every step",
        initializer="SVD of the gradient",
        step_rule="fold: W ← W + scale · P R, R ← 0",
        schedule="refresh the basis P",
        paper_schedule="refresh every 200 steps (500 at 7B)",
        papers=(GALORE,),
    )

    rank: int = option(help="rank of the subspace", symbol="r", minimum=1)
    refresh_every: int = option(200, help="steps between refreshes", symbol="T", minimum=1)
    scale: float = option(0.25, help="factor on the update of W", symbol="α", above=0.0)
    side: str = option(
        "std",
        help="side of the basis: the shorter (std), the longer (reverse_std), rows or columns",
        choices=("std", "reverse_std", "left", "right"),
    )
    projector: str = option(
        "subspace",
        help="basis from one subspace step from the old basis, an exact SVD (published) or a randomised "
        "one",
        choices=("subspace", "svd", "randomized"),
    )
    moments: str = option(
        "rotate",
        help="Adam's moments at a refresh: rotated into the new basis, kept as they are (published), or "
        "reset",
        choices=("rotate", "keep", "reset"),
    )
    refresh: str = option(
        "next_step",
        help="the basis from a step's gradient serves from the next step, or in the same step "
        "(published; not with gradient clipping or a gradient scaler)",
        choices=("next_step", "same_step"),
    )
    stagger: bool = option(
        False,
        help="spread the layers' refreshes, but for the first, over the period",
    )

    def parametrize(self, linear: nn.Module) -> StoredBasis:
        layer = StoredBasis(linear, self, rank=self.rank, side=self.side)
        start = random_basis(self.rank, layer.length, layer.initial_generator(), like=layer.basis)
        layer.basis.data.copy_(start)
        return layer

    def begin_step(self, layers: Sequence[Parametrization], clock: int) -> None:
        for layer in cast(Layers, layers):
            layer.gather(self._wants_refresh(layer, clock))

    def before_update(
        self, layers: Sequence[Parametrization], moments: Moments, clock: int
    ) -> None:
        if self.refresh == "same_step":
            for layer in cast(Layers, layers):
                gradient = layer.gathered if self._wants_refresh(layer, clock) else None
                if gradient is not None and layer.R.grad is not None:
                    layer.require_untouched_gradient()
                    if self._refresh(layer, gradient, moments, clock):
                        layer.R.grad.copy_(layer.down(gradient))

    def after_update(self, layers: Sequence[Parametrization], moments: Moments, clock: int) -> None:
        for layer in cast(Layers, layers):
            group = moments.group(layer.R)
            rate = group["lr"]
            awaited = self.refresh == "next_step" and self._wants_refresh(layer, clock)
            self._move(layer, rate, rate * group.get("weight_decay", 0.0), awaited)
            if not awaited:
                layer.discard()

    def _move(self, layer: StoredBasis, rate: float, decay: float, awaited: bool) -> None:
        """Take the update R into W; `awaited`: the dense gradient is needed after that."""
        layer.fold(self.scale, decay)

    def events(self) -> tuple[Event, ...]:
        if self.refresh == "same_step":  # it comes before the update
            return ()
        return (
            Event(
                "refresh",
                lambda layer: self.refresh_every,
                self._refresh_all,
                offset=lambda layer: self._offset(layer) + 1,
                waits=lambda layer: cast(StoredBasis, layer).gathered is not None,
                of_gradient=True,
            ),
        )

    def _refresh_all(self, layers: Sequence[Parametrization], moments: Moments, clock: int) -> None:
        for layer in cast(Layers, layers):
            if layer.gathered is not None:
                self._refresh(layer, layer.gathered, moments, clock - 1)
                layer.discard()

    def _offset(self, layer: Parametrization) -> int:
        return layer.index * self.refresh_every // layer.peers if self.stagger else 0

    def _wants_refresh(self, layer: StoredBasis, clock: int) -> bool:
        """True from a scheduled step on until it could be done; the first basis is random: at once."""
        passed = clock - self._offset(layer)
        scheduled = clock - passed % self.refresh_every if passed >= 0 else 0
        if is_abstract(layer.refreshed_at):
            return clock == scheduled
        return layer.last_refresh < scheduled or layer.last_refresh < 0

    @torch.no_grad()
    def _refresh(self, layer: StoredBasis, gradient: Tensor, moments: Moments, clock: int) -> bool:
        """A new basis from the dense `gradient`; False if it has to wait, as none can be had from it."""
        if not is_abstract(gradient):
            if not gradient.any():  # a layer that was not used
                return False
            if not torch.isfinite(gradient).all():
                text = f"{self.title}: NaN or infinite gradient; the basis waits a step"
                warnings.warn(text, SpectrainWarning, stacklevel=2)
                return False
        is_first = clock == 0 if is_abstract(gradient) else layer.last_refresh < 0
        old = layer.basis.clone()
        side = gradient if layer.side == "left" else gradient.mT
        layer.take_basis(self._leading(layer, side, clock, is_first), clock)
        if is_first or self.moments == "reset":  # the basis before the first was random
            moments.clear(layer.R)
        elif self.moments == "rotate":
            moments.rotate(layer.R, layer.basis @ old.mT, dim=0 if layer.side == "left" else 1)
        return True

    def _leading(self, layer: StoredBasis, gradient: Tensor, clock: int, is_first: bool) -> Tensor:
        """The r leading left singular vectors of `gradient` (a, ·), as rows (r, a)."""
        if self.projector == "randomized":
            return randomized_svd(gradient, self.rank, event_generator(layer, clock))[0]
        if self.projector == "subspace" and not is_first:
            return subspace_step(gradient, layer.basis)
        return leading_basis(gradient, self.rank)

    def against_processes(self) -> str | None:
        if self.refresh == "same_step":
            return "refresh='same_step' is decided by each for itself; use refresh='next_step'"
        return None

    def against_layerwise(self, accumulate: int) -> str | None:
        if accumulate > 1 and not self.stagger:
            return (
                "at a refresh the dense gradients of all layers would add up together; "
                "stagger=True spreads the refreshes, or take one backward pass in a step"
            )
        return None

    def schedule_text(self) -> str:
        return f"refresh every {self.refresh_every} steps"

    def variations(self) -> list[str]:
        notes = []
        if self.refresh == "next_step":
            notes.append("a new basis serves from the next step (refresh='same_step': published)")
        if self.projector == "subspace":
            notes.append("warm-started basis (projector='svd': published)")
        if self.projector == "randomized":
            notes.append("randomised basis (projector='svd': published)")
        if self.stagger:
            notes.append("refreshes of the layers spread over the period")
        if self.moments != "keep":
            word = {"rotate": "rotated into", "reset": "cleared for"}[self.moments]
            notes.append(f"moments {word} the new basis (moments='keep': published)")
        return notes
