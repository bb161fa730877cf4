"""Settings of the SST paper's translation experiments (Zhao et al. 2025, tables 8 and 9).

Where LayerNorm stands is not said there; HyboNet's code, whose set-up IWSLT'14 follows, is built on
OpenNMT, which has it before each part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spectrain.errors import UsageError

_IWSLT14 = {
    "source": "en",
    "target": "de",
    "lowercase": True,
    "vocab_size": 10_000,
    "dim": 64,
    "layers": 6,
    "heads": 4,
    "label_smoothing": 0.1,
    "attention_dropout": 0.1,
    "batch_tokens": 10_240,
    "accumulate": 4,
    "steps": 40_000,
    "schedule": "noam",
    "warmup": 0.15,  # 6,000 steps
    "beam": 2,
    "optimizer": "Adam",
}
_LARGE = {
    "source": "de",
    "target": "en",
    "dim": 512,
    "feedforward": 2048,
    "layers": 6,
    "heads": 8,
    "batch_size": 128,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "label_smoothing": 0.0,
    "schedule": "constant",
    "warmup": 0.0,
    "lr": 3e-4,  # of low-rank factors
    "lr_ordinary": 1e-4,
}
RECIPES: dict[str, dict[str, Any]] = {
    "iwslt14": _IWSLT14,
    "multi30k": _LARGE | {"steps": 100_000, "weight_decay": 1.0, "patience": 100_000},
    "iwslt17": _LARGE | {"steps": 150_000, "weight_decay": 0.1, "patience": 150_000},
}
NOTES = {
    "iwslt17": "the paper has SST resample every 400 steps there (--method.resample-every, "
    "--sst.resample-every)"
}
NOAM = {"euclidean": 5.0, "hyperbolic": 2.0}  # factors of the published rates of iwslt14
FULL_RATE = 1e-4  # of full rank in the other two


def recipe_for(name: str, given: Mapping[str, Any], full_rank: bool) -> dict[str, Any]:
    """The options that the recipe sets, for those given. Raises UsageError if there is none of that name.

    The published noam schedule gives factor · d^-½ · min(step^-½, step · warmup^-3/2); here --lr is its
    peak, factor · (d · warmup)^-½, for the warm-up's steps and the d that the run has.
    """
    if name == "none":
        return {}
    if name not in RECIPES:
        raise UsageError(f"--recipe {name}: there is none, {', '.join(RECIPES)}")
    values = dict(RECIPES[name])
    hyperbolic = given.get("geometry") == "hyperbolic"
    if not hyperbolic:
        values["norm"] = "pre"
    if name == "iwslt14":
        run = {**values, **given}
        warm = max(1.0, run["warmup"] * run["steps"])
        values["lr"] = (
            NOAM["hyperbolic" if hyperbolic else "euclidean"] * (run["dim"] * warm) ** -0.5
        )
        return values | ({"dropout": 0.1, "clip": 0.5} if hyperbolic else {"dropout": 0.0})
    if full_rank:
        values["lr"] = FULL_RATE
    return values
