"""What is measured: every table of the benchmark, and what its targets ask of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Arms = tuple[tuple[str, int | None], ...]  # (key of a recipe, d/r or None for the recipe's own)


@dataclass(frozen=True)
class Plan:
    """One table: a shape, tokens a step, and the arms that take turns."""

    key: str
    shape: str
    tokens: int
    arms: Arms
    rounds: int
    blocks: int = 2
    whole: bool = False  # the whole model instead of blocks
    memory: bool = False  # also peak bytes, arm by arm

    @property
    def title(self) -> str:
        what = "whole model" if self.whole else "1 block" if self.blocks == 1 else "2 blocks"
        return f"{self.shape}, {what}, {self.tokens:,} tokens a step"


def _arms(*keys: str) -> Arms:
    return tuple((key, None) for key in keys)


OURS = _arms("full", "sst", "recompute", "frozen4", "residual", "lora", "relora", "galore")
OTHERS = _arms("plain", "peft", "galore-torch", "apollo-torch")
FEW = _arms("full", "sst", "lora", "galore")

TABLES = (
    Plan("60m-4096", "LLaMA 60M", 4096, OURS + OTHERS, rounds=12, memory=True),
    Plan(
        "60m-8192",
        "LLaMA 60M",
        8192,
        _arms("full", "sst", "frozen4", "residual", "lora", "galore"),
        rounds=10,
    ),
    Plan("opt-8192", "OPT-125M", 8192, _arms("full", "sst", "galore"), rounds=9),
    Plan("60m-2048", "LLaMA 60M", 2048, FEW, rounds=7),
    Plan("60m-16384", "LLaMA 60M", 16384, _arms("full", "sst"), rounds=3),
    Plan("20m-2048", "LLaMA 20M", 2048, FEW, rounds=9),
    Plan("20m-4096", "LLaMA 20M", 4096, FEW, rounds=9),
    Plan("20m-8192", "LLaMA 20M", 8192, FEW, rounds=7),
    Plan("20m-16384", "LLaMA 20M", 16384, FEW, rounds=5),
    Plan("width-256", "d = 256", 2048, FEW, rounds=9, blocks=1),
    Plan("width-512", "d = 512", 2048, FEW, rounds=7, blocks=1),
    Plan("width-1024", "d = 1,024", 2048, FEW, rounds=5, blocks=1),
    Plan("width-2048", "d = 2,048", 2048, FEW, rounds=3, blocks=1),
    Plan(
        "ranks",
        "LLaMA 60M",
        4096,
        (("full", None), *((arm, d) for arm in ("sst", "lora", "galore") for d in (16, 8, 4, 2))),
        rounds=4,
    ),
    Plan(
        "whole",
        "LLaMA 60M",
        2048,
        _arms("full", "sst", "residual", "lora", "galore"),
        rounds=3,
        whole=True,
        memory=True,
    ),
)
QUICK = (
    Plan("20m-2048", "LLaMA 20M", 2048, OURS + OTHERS, rounds=5, memory=True),
    Plan("60m-2048", "LLaMA 60M", 2048, OURS + OTHERS, rounds=4),
)
TARGETED = ("60m-4096", "60m-8192", "opt-8192")  # what the targets below need, bytes apart

Row = Mapping[str, Any]
Tables = Mapping[str, Mapping[str, Row]]  # rows by table's key and arm's key


@dataclass(frozen=True)
class Target:
    """A bound from above; `measured` raises KeyError where its table was not run."""

    what: str
    bound: float
    measured: Callable[[Tables], float]


def _over_full(table: str, arm: str, column: str = "ratio") -> Callable[[Tables], float]:
    return lambda tables: tables[table][arm][column]


def _over(table: str, arm: str, other: str, column: str) -> Callable[[Tables], float]:
    return lambda tables: tables[table][arm][column] / tables[table][other][column]


def _worst(column: str, arms: tuple[str, ...]) -> Callable[[Tables], float]:
    def measured(tables: Tables) -> float:
        found = [
            rows[arm][column]
            for rows in tables.values()
            for arm in arms
            if column in rows.get(arm, ())
        ]
        if not found:
            raise KeyError(column)
        return max(found)

    return measured


TARGETS = (
    Target("SST / full rank, LLaMA 60M, 4,096 tokens", 1.05, _over_full("60m-4096", "sst")),
    Target("SST / full rank, LLaMA 60M, 8,192 tokens", 1.02, _over_full("60m-8192", "sst")),
    Target("SST / full rank, OPT-125M, 8,192 tokens", 0.98, _over_full("opt-8192", "sst")),
    Target("SST above its operation count, the worst table", 0.05, _worst("deviation", ("sst",))),
    Target("SST residual / full rank, 8,192 tokens", 0.90, _over_full("60m-8192", "residual")),
    Target("SST frozen_s_every=4 / full rank, 8,192", 0.93, _over_full("60m-8192", "frozen4")),
    Target(
        "SST / plain three-product SST, 4,096", 0.65, _over("60m-4096", "sst", "plain", "ratio")
    ),
    Target(
        "GaLore / full rank, refreshes amortised, 4,096",
        0.90,
        _over_full("60m-4096", "galore", "ratio_with_events"),
    ),
    Target(
        "GaLore / full rank, refreshes amortised, 8,192",
        0.90,
        _over_full("60m-8192", "galore", "ratio_with_events"),
    ),
    Target(
        "GaLore / galore-torch, refreshes amortised",
        0.88,
        _over("60m-4096", "galore", "galore-torch", "ratio_with_events"),
    ),
    Target(
        "refresh / galore-torch's refresh, the bases",
        0.25,
        _over("60m-4096", "galore", "galore-torch", "basis_ms"),
    ),
    Target("LoRA / peft LoRA", 0.93, _over("60m-4096", "lora", "peft", "ratio")),
    Target("ReLoRA* / peft LoRA", 0.93, _over("60m-4096", "relora", "peft", "ratio")),
    Target(
        "SST's and GaLore's events, share of the run, the worst table",
        0.02,
        _worst("events_share", ("sst", "residual", "galore")),
    ),
    Target("bytes of the replaced layers, SST, r = d/16", 0.57, _over_full("bytes", "sst")),
    Target("the same with residual=True", 0.40, _over_full("bytes", "residual")),
)
