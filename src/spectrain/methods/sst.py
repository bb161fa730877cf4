"""Sparse Spectral Training: all singular values every step, a sampled few singular vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import nn

from spectrain.errors import UsageError
from spectrain.linalg import svd
from spectrain.method import Card, Event, Method, event_generator, ramp, register
from spectrain.moments import Moments
from spectrain.papers import SST as PAPER
from spectrain.parametrizations.base import Parametrization
from spectrain.parametrizations.spectral import Spectral, SpectralResidual
from spectrain.sampling import SCHEMES, draw
from spectrain.settings import option

Layers = Sequence[Spectral | SpectralResidual]


@register
@dataclass(frozen=True)
class SST(Method):
    """W = U diag(s) Vᵀ (Zhao et al. 2025, algorithm 2). r (m + n) + k numbers train per layer.

    A round is `iterations_per_round` iterations of `resample_every` steps; each iteration trains
    the r sampled singular vectors and all k singular values; a round ends with a new SVD.
    """

    card: ClassVar[Card] = Card(
        key="sst",
        title="SST",
        summary="all singular values and a sampled few singular vectors, decomposed anew at times",
        parametrization="U diag(s) Vᵀ, r active triples",
        initializer="SVD of the layer's weight",
        step_rule="enhanced gradient; unit vectors, s ≥ 0",
        schedule="resample vectors, clear moments, warm up; re-SVD every round",
        paper_schedule="resample every 200 steps, re-SVD every d/r resamplings, warm-up 20",
        papers=(PAPER,),
    )

    rank: int = option(help="singular vectors trained at a time", symbol="r", minimum=1)
    resample_every: int = option(200, help="steps of an iteration", symbol="T3", minimum=1)
    iterations_per_round: int | None = option(
        None, help="iterations between re-SVDs; default: k/r rounded up", symbol="T2", minimum=1
    )
    warmup: int = option(20, help="warm-up steps at the start of every iteration", minimum=0)
    sampling: str = option(
        "mixture",
        help="draw vectors half uniformly and half by s (mixture), by s alone (magnitude), "
        "uniformly, sequentially (all before any twice), or always the top r",
        choices=SCHEMES,
    )
    gradient: str = option(
        "enhanced",
        help="gradient of the vectors without the factor s (enhanced) or exact (default)",
        choices=("enhanced", "default"),
    )
    residual: bool = option(
        False, help="keep the frozen part as one dense matrix: LoRA's memory, frozen s do not move"
    )
    frozen_dtype: str | None = option(
        None,
        help="storage of the frozen vectors; default: the weight's dtype",
        choices=("float32", "bfloat16", "float16"),
    )

    def __post_init__(self) -> None:
        if self.frozen_dtype is not None:  # torch.bfloat16 is as good as "bfloat16"
            object.__setattr__(self, "frozen_dtype", str(self.frozen_dtype).removeprefix("torch."))
        super().__post_init__()
        if self.residual and (self.sampling == "sequential" or self.frozen_dtype):
            raise UsageError(
                "SST: residual=True keeps no frozen vectors, so sampling='sequential' and "
                "frozen_dtype mean nothing with it; leave them at their defaults"
            )

    def parametrize(self, linear: nn.Module) -> Parametrization:
        enhanced = self.gradient == "enhanced"
        dtype = getattr(torch, self.frozen_dtype) if self.frozen_dtype else None
        layer: Spectral | SpectralResidual = (
            SpectralResidual(linear, self, rank=self.rank, enhanced=enhanced)
            if self.residual
            else Spectral(linear, self, rank=self.rank, enhanced=enhanced, frozen_dtype=dtype)
        )
        self._activate(layer, layer.initial_generator(), clock=0)
        return layer

    def after_update(self, layers: Sequence[Parametrization], moments: Moments, clock: int) -> None:
        for layer in cast(Layers, layers):
            layer.project()

    def events(self) -> tuple[Event, ...]:
        resample = Event("resampling", lambda layer: self.resample_every, self._resample)
        if self.residual:
            return (resample,)
        return Event("re-SVD", self._round, self._redecompose), resample

    def warmup_factor(self, clock: int) -> float:
        return ramp(clock % self.resample_every, self.warmup)

    def _round(self, layer: Parametrization) -> int:
        iterations = self.iterations_per_round or math.ceil(layer.size / self.rank)
        return self.resample_every * iterations

    def _redecompose(self, layers: Sequence[Parametrization], moments: Moments, clock: int) -> None:
        for layer in cast("Sequence[Spectral]", layers):
            layer.redecompose()

    def _resample(self, layers: Sequence[Parametrization], moments: Moments, clock: int) -> None:
        for layer in cast(Layers, layers):
            self._activate(layer, event_generator(layer, clock), clock)
            for factor in layer.factors().values():
                moments.clear(factor)

    def _activate(
        self, layer: Spectral | SpectralResidual, generator: torch.Generator, clock: int
    ) -> None:
        if isinstance(layer, SpectralResidual):
            U, s, V = svd(layer.dense())
            layer.hold(U, s, V, draw(self.sampling, s, self.rank, generator))
        else:
            chosen = draw(self.sampling, layer.s, self.rank, generator, layer.sampled_at)
            layer.activate(chosen, clock)

    def schedule_text(self) -> str:
        rounds = self.iterations_per_round
        every = f"{rounds * self.resample_every} steps" if rounds else "k/r resamplings"
        redo = "re-SVD at each" if self.residual else f"re-SVD every {every}"
        return f"resample every {self.resample_every} steps, {redo}, warm-up {self.warmup}"

    def variations(self) -> list[str]:
        notes = {
            "rates never reach their full value, as warm-up outlasts an iteration": self.warmup
            > self.resample_every,
            "residual form: frozen singular values do not move": self.residual,
            "exact instead of enhanced gradient": self.gradient == "default",
            f"{self.sampling} sampling": self.sampling != "mixture",
            f"frozen vectors in {self.frozen_dtype}": self.frozen_dtype is not None,
        }
        return [note for note, holds in notes.items() if holds]
