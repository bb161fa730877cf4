"""Sparse Spectral Training: all singular values every step, a sampled few singular vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from spectrain.errors import UsageError
from spectrain.method import (
    Card,
    Event,
    Method,
    ramp,
    register,
)
from spectrain.moments import Moments
from spectrain.papers import SST as PAPER
from spectrain.parametrizations.base import Parametrization, event_generator
from spectrain.parametrizations.residual import SpectralResidual
from spectrain.parametrizations.spectral import Spectral, project, redecompose
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
    frozen_s_every: int = option(
        1,
        help="steps from one update of the frozen singular values to the next; the others cost less",
        symbol="j",
        minimum=1,
    )
    residual: bool = option(
        False, help="keep the frozen part as one dense matrix: LoRA's memory, frozen s do not move"
    )
    decomposition: str = option(
        "svd",
        help="with residual: new triples from all of W's (svd), or from the leading 2r of a randomised "
        "SVD (randomized)",
        choices=("svd", "randomized"),
    )
    recompute: bool = option(
        False, help="recompute x Vᵀ in the backward pass: less memory, one more product"
    )
    stagger: bool = option(False, help="spread the layers' re-SVDs over the resamplings of a round")
    frozen_dtype: str | None = option(
        None,
        help="storage of the frozen vectors; default: the weight's dtype",
        choices=("float32", "bfloat16", "float16"),
    )

    def __post_init__(self) -> None:
        if self.frozen_dtype is not None:  # torch.bfloat16 is as good as "bfloat16"
            object.__setattr__(self, "frozen_dtype", str(self.frozen_dtype).removeprefix("torch."))
        super().__post_init__()
        frozen = "frozen_dtype", "frozen_s_every", "recompute", "stagger"
        given = [name for name in frozen if getattr(self, name) != getattr(SST, name)]
        given += ["sampling='sequential'"] if self.sampling == "sequential" else []
        if self.residual and given:
            raise UsageError(
                f"SST: residual=True keeps no frozen vectors, so {', '.join(given)} means nothing with "
                "it; leave it at its default"
            )
        if self.decomposition != "svd" and not self.residual:
            raise UsageError(
                "SST: decomposition='randomized' finds the leading triples alone, and only "
                "residual=True can do without the others; set that too, or leave it at 'svd'"
            )

    def parametrize(self, linear: nn.Module) -> Parametrization:
        enhanced = self.gradient == "enhanced"
        if self.residual:
            residual = SpectralResidual(linear, self, rank=self.rank, enhanced=enhanced)
            residual.renew(self.sampling, residual.initial_generator(), self._candidates)
            return residual
        layer = Spectral(
            linear,
            self,
            rank=self.rank,
            enhanced=enhanced,
            frozen_dtype=getattr(torch, self.frozen_dtype) if self.frozen_dtype else None,
            recompute=self.recompute,
        )
        self._resampled(layer, layer.initial_generator(), clock=0)
        return layer

    def begin_step(self, layers: Sequence[Parametrization], clock: int) -> None:
        for layer in layers if self.frozen_s_every > 1 else ():
            if isinstance(layer, Spectral):
                layer.frozen_s_rest = clock % self.frozen_s_every != 0

    def before_update(
        self, layers: Sequence[Parametrization], moments: Moments, clock: int
    ) -> None:
        for layer in layers if self.frozen_s_every > 1 else ():
            # With a gradient of zeros, not None, the momentum would move them.
            for s in layer.resting():
                s.grad = None

    def after_update(self, layers: Sequence[Parametrization], moments: Moments, clock: int) -> None:
        own = cast(Layers, layers)
        vectors: list[Tensor] = [p for layer in own for p in (layer.U_active, layer.V_active)]
        spectra: list[Tensor] = [layer.s_active for layer in own]
        project(vectors, spectra + [m.s_frozen for m in own if isinstance(m, Spectral)])

    def events(self) -> tuple[Event, ...]:
        resample = Event("resampling", lambda layer: self.resample_every, self._resample)
        if self.residual:
            return (resample,)
        return Event("re-SVD", self._round, self._redecompose, self._offset), resample

    def warmup_factor(self, clock: int) -> float:
        return ramp(clock % self.resample_every, self.warmup)

    def _iterations(self, layer: Parametrization) -> int:
        return self.iterations_per_round or math.ceil(layer.size / self.rank)

    def _round(self, layer: Parametrization) -> int:
        return self.resample_every * self._iterations(layer)

    def _offset(self, layer: Parametrization) -> int:
        return layer.index % self._iterations(layer) * self.resample_every if self.stagger else 0

    def _redecompose(self, layers: Sequence[Parametrization], moments: Moments, clock: int) -> None:
        redecompose(cast("Sequence[Spectral]", layers))

    def _resample(self, layers: Sequence[Parametrization], moments: Moments, clock: int) -> None:
        for layer in cast(Layers, layers):
            generator = event_generator(layer, clock)
            if isinstance(layer, SpectralResidual):
                layer.renew(self.sampling, generator, self._candidates)
            else:
                self._resampled(layer, generator, clock)
            for factor in layer.factors().values():
                moments.clear(factor)

    def _resampled(self, layer: Spectral, generator: torch.Generator, clock: int) -> None:
        chosen = draw(self.sampling, layer.s, self.rank, generator, layer.sampled_at)
        layer.activate(chosen, clock)

    @property
    def _candidates(self) -> int | None:
        return 2 * self.rank if self.decomposition == "randomized" else None

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
            f"frozen singular values move every {self.frozen_s_every} steps": self.frozen_s_every
            > 1,
            "triples drawn from the leading 2r alone": self.decomposition == "randomized",
            "re-SVDs of the layers spread over a round": self.stagger,
            "exact instead of enhanced gradient": self.gradient == "default",
            f"{self.sampling} sampling": self.sampling != "mixture",
            f"frozen vectors in {self.frozen_dtype}": self.frozen_dtype is not None,
        }
        return [note for note, holds in notes.items() if holds]
