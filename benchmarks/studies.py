"""Arms that differ in one choice: the same data, rates, budget and seeds, so a difference is the choice's.

A seed gives all arms of a study the same initial weights, and the noise floor is that of paired
differences.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console

from spectrain.errors import SpectrainError
from spectrain.method import Method
from spectrain.runs.compare import load_comparison
from spectrain.runs.jobs import compare
from spectrain.runs.options import RunOptions
from spectrain.runs.statistics import seed_noise
from spectrain.runs.view import Terminal
from spectrain.tasks.score import Score
from spectrain.tasks.task import Task


@dataclass(frozen=True)
class Study:
    """Arms that differ in one choice; the first is what the others are compared with."""

    about: str
    arms: dict[str, Method]
    steps: int
    lr: float
    seeds: int = 3


def run(
    study: Study,
    out: Path,
    task: Task,
    console: Console,
    ordinary_rates: Sequence[float | None],
    **options: Any,  # of RunOptions
) -> None:
    """All trials of the study, or what of them is missing; leaves the program if one cannot be run."""
    settings = RunOptions(
        **{"eval_every": 0, "checkpoint_every": 0, "keep": 1, **options},
        steps=study.steps,
        lr=study.lr,
    )
    try:
        with Terminal(console, task.unit) as view:
            compare(
                task,
                study.arms,
                dict.fromkeys(study.arms, (study.lr,)),
                settings,
                ordinary_rates=ordinary_rates,
                report_seeds=tuple(
                    range(1, study.seeds)
                ),  # seed 0 chooses nothing, so it counts too
                max_extensions=0,
                out=out,
                view=view,
            )
    except SpectrainError as error:
        sys.exit(f"Error: {error}")


def table(
    study: Study, directory: Path, scores: Mapping[Score, Callable[[float], str]]
) -> list[str]:
    """The study's rows, of the arms that have finished all seeds: each score of test data, and how far
    it is from the first arm's, in bold where that is more than noise.

    scores: how a value of each is written.
    """
    if not (directory / "config.json").is_file():
        return []
    results = load_comparison(directory).results
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for trial, result in results.items():
        if not result.get("failed"):
            found.setdefault(trial.arm, {})[trial.seed] = result
    whole = {arm: found[arm] for arm in study.arms if len(found.get(arm, {})) == study.seeds}
    if len(whole) < 2:
        return []
    columns: list[list[str]] = []
    floors = []
    for score, written in scores.items():
        values = {
            arm: [float(of[seed][f"test_{score.key}"]) for seed in sorted(of)]
            for arm, of in whole.items()
        }
        noise = seed_noise(list(values.values()))
        floor = noise.floor(study.seeds, study.seeds) if noise else float("nan")
        floors.append(f"{written(floor)} ({score.title})")
        base = mean(next(iter(values.values())))
        columns.append([written(mean(of)) for of in values.values()])
        columns.append(
            ["–", *(_apart(mean(of) - base, floor, written) for of in list(values.values())[1:])]
        )
    heads = [head for score in scores for head in (f"test {score.title}", "against the first")]
    return [
        f"{study.seeds} seeds, rate {study.lr:g}; noise floor of a difference: {', '.join(floors)}. In "
        "bold: more than that.\n",
        f"| arm | {' | '.join(heads)} |",
        "|---" + "|--:" * len(heads) + "|",
        *(f"| {' | '.join(row)} |" for row in zip(whole, *columns, strict=True)),
    ]


def _apart(difference: float, floor: float, written: Callable[[float], str]) -> str:
    text = f"{'+' if difference >= 0 else '−'}{written(abs(difference))}"
    return f"**{text}**" if abs(difference) > floor else text
