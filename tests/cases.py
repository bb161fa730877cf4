"""The table behind the test matrix: which instances of which methods meet every invariant.

Every registered method is in it with a small default instance, made from its fields alone; VARIANTS
adds instances whose options change what the method does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping

import pytest
import torch
from torch import Tensor

from spectrain import (
    APOLLO,
    DCT,
    LOST,
    PELA,
    SST,
    TRP,
    Fira,
    GaLore,
    LoRA,
    LowRank,
    ReLoRA,
    SLTrain,
    SwitchLoRA,
)
from spectrain.method import Method, registered
from spectrain.parametrizations.additive import Additive
from spectrain.parametrizations.base import Parametrization
from spectrain.parametrizations.bases import CosineBasis, SeededBasis, StoredBasis
from spectrain.parametrizations.dense import Dense
from spectrain.parametrizations.distilled import Distilled
from spectrain.parametrizations.low_rank import LowRankProduct
from spectrain.parametrizations.low_rank_columns import LowRankColumns
from spectrain.parametrizations.low_rank_sparse import LowRankSparse
from spectrain.parametrizations.residual import SpectralResidual
from spectrain.parametrizations.spectral import Spectral
from spectrain.parametrizations.switched import Switched

RANK, PERIOD = 4, 3


def small(cls: type[Method]) -> Method:
    """`cls` with rank 4 and every period 3, all else at its default."""
    settings = {}
    for field in dataclasses.fields(cls):
        if field.name == "rank":
            settings["rank"] = RANK
        elif field.name.endswith("_every") and "int" in str(field.type):
            settings[field.name] = PERIOD
    return cls(**settings)


def _sst(**settings: object) -> SST:
    return SST(
        **{"rank": RANK, "resample_every": 3, "iterations_per_round": 2, "warmup": 2} | settings
    )


def _relora(**settings: object) -> ReLoRA:
    return ReLoRA(**{"rank": RANK, "merge_every": 3, "rewarm": 2} | settings)


def _galore(**settings: object) -> GaLore:
    return GaLore(**{"rank": RANK, "refresh_every": 3} | settings)


def _fira(**settings: object) -> Fira:
    return Fira(**{"rank": RANK, "refresh_every": 3} | settings)


VARIANTS: dict[str, Method] = {
    "sst-rounds": _sst(),
    "sst-default-gradient": _sst(gradient="default"),
    "sst-magnitude": _sst(sampling="magnitude"),
    "sst-uniform": _sst(sampling="uniform"),
    "sst-sequential": _sst(sampling="sequential"),
    "sst-top": _sst(sampling="top"),
    "sst-bf16": _sst(frozen_dtype="bfloat16"),
    "sst-frozen-s": _sst(frozen_s_every=2),
    "sst-recompute": _sst(recompute=True),
    "sst-stagger": _sst(stagger=True),
    "sst-residual-randomized": _sst(residual=True, decomposition="randomized"),
    "sst-residual": _sst(residual=True),
    "sst-residual-default-gradient": _sst(residual=True, gradient="default"),
    "lora-alpha": LoRA(RANK, alpha=2.0),
    "rslora": LoRA(RANK, alpha=3.0, scaling="rslora"),
    "lora-dropout": LoRA(RANK, alpha=2.0, dropout=0.3),
    "lowrank-svd": LowRank(RANK, alpha=2.0, init="svd", restart_every=3, rewarm=2),
    "sltrain-svd": SLTrain(RANK, density=0.2, alpha=2.0, init="svd"),
    "lost-linear": LOST(RANK, density=0.3, activation="none"),
    "relora-prune-random": _relora(moments="prune", prune_ratio=0.5),
    "relora-prune-magnitude": _relora(moments="prune", prune="magnitude", prune_ratio=0.9),
    "relora-fresh": _relora(moments="fresh", rewarm=0),
    "relora-reset-every": _relora(reset_every=4),
    "relora-warm-start": _relora(warm_start=2).phases(10)[-1][0],
    "galore-reverse": _galore(side="reverse_std"),
    "galore-left": _galore(side="left"),
    "galore-right": _galore(side="right"),
    "galore-published": _galore(projector="svd", moments="keep", refresh="same_step"),
    "galore-randomized": _galore(projector="randomized"),
    "galore-svd": _galore(projector="svd"),
    "galore-keep": _galore(moments="keep"),
    "galore-reset": _galore(moments="reset"),
    "galore-stagger": _galore(stagger=True, refresh_every=5),
    "galore-same-step": _galore(refresh="same_step"),
    "fira-left": _fira(side="left"),
    "fira-published": _fira(
        projector="svd", moments="keep", refresh="same_step", complement="released"
    ),
    "fira-stagger": _fira(stagger=True, refresh_every=5),
    "apollo-tensor": APOLLO(RANK, refresh_every=3, scaling="tensor"),
    "dct-every-step": DCT(RANK),
    "switchlora-often": SwitchLoRA(RANK, interval=2, freeze=1),
    "switchlora-freeze": SwitchLoRA(RANK, interval=4, freeze=2, decay_steps=9),
    "trp-nuclear": TRP(truncate_every=3, energy=0.7, nuclear=0.1),
    "trp-plain": TRP(truncate_every=2, energy=0.8, nuclear=0.0),
    "pela-feature": PELA(RANK, perturbation=0.0, feature=3.0),
    "dct-error-feedback": DCT(RANK, refresh_every=2, norm="l2", error_feedback=True),
}

DEFAULTS: dict[str, Method] = {name: small(cls) for name, cls in registered().items()}
CASES: dict[str, Method] = DEFAULTS | VARIANTS

every_method = pytest.mark.parametrize("method", CASES.values(), ids=CASES.keys())
every_default = pytest.mark.parametrize("method", DEFAULTS.values(), ids=DEFAULTS.keys())


def _with_matrix(cases: Mapping[str, Method]) -> pytest.MarkDecorator:
    """`method`, of those whose layers are equal to a matrix W, and so can be merged."""
    chosen = {name: method for name, method in cases.items() if not method.against_merge()}
    return pytest.mark.parametrize("method", chosen.values(), ids=chosen.keys())


every_matrix, every_default_matrix = _with_matrix(CASES), _with_matrix(DEFAULTS)


# One of each kind of form and of what is done around steps, for tests that take seconds each.
KINDS = ("full", "lora", "sst", "galore", "fira", "switchlora", "sltrain")


def some_of(cases: Mapping[str, Method], now: Collection[str]) -> pytest.MarkDecorator:
    """`method` from `cases`; what is not in `now` is left to `make test-all`, where each takes seconds."""
    params = [
        pytest.param(method, id=name, marks=() if name in now else pytest.mark.slow)
        for name, method in cases.items()
    ]
    return pytest.mark.parametrize("method", params)


# (trainable, frozen) numbers that stand for W (m, n) at rank r, from the methods' cards.
COUNTS: dict[type[Parametrization], Callable[[Parametrization, int, int, int], tuple[int, int]]] = {
    Dense: lambda layer, m, n, r: (m * n, 0),
    Additive: lambda layer, m, n, r: (r * (m + n), m * n),
    Distilled: lambda layer, m, n, r: (r * (m + n), m * n),
    Switched: lambda layer, m, n, r: (r * (m + n), m * n),
    LowRankProduct: lambda layer, m, n, r: (r * (m + n), 0),
    LowRankColumns: lambda layer, m, n, r: (
        r * (m + n) + m * math.ceil(layer.method.density * n),
        0,
    ),
    LowRankSparse: lambda layer, m, n, r: (r * (m + n) + int(layer.method.density * m * n), 0),
    Spectral: lambda layer, m, n, r: (r * (m + n) + min(m, n), (min(m, n) - r) * (m + n)),
    SpectralResidual: lambda layer, m, n, r: (r * (m + n) + r, m * n),
    StoredBasis: lambda layer, m, n, r: (
        (r * n, m * n + r * m) if layer.side == "left" else (r * m, m * n + r * n)
    ),
    SeededBasis: lambda layer, m, n, r: (r * max(m, n), m * n),
    CosineBasis: lambda layer, m, n, r: (r * max(m, n), m * n * (1 + (layer.error is not None))),
}


def declared(layer: Parametrization, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a layer's gradients should be, from the exact ones of its factors."""
    if isinstance(layer, Spectral | SpectralResidual) and layer.enhanced:
        scale = layer.s[: layer.rank, None]
        factors = {"U_active": 1 / scale, "V_active": 1 / scale}
        return {name: g * factors.get(name, 1.0) for name, g in gradients.items()}
    return gradients


def precision(method: Method) -> float:
    """Relative rounding that the storage of frozen parts costs, above that of the model's dtype."""
    stored = getattr(method, "frozen_dtype", None)
    return torch.finfo(getattr(torch, stored)).eps if stored else 0.0


def periods(method: Method, layers: list[Parametrization]) -> set[int]:
    """The periods of all that the method does at times: its events, and whatever is called …_every."""
    found = {event.period(layer) for event in method.events() for layer in layers}
    named = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    return found | {v for k, v in named.items() if k.endswith("_every") and isinstance(v, int)}
