"""Curves of losses and scores, read from run directories and averaged over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectrain.runs.files import read_rows
from spectrain.runs.records import FINITE
from spectrain.tasks.score import Score

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Losses of one run, or of several seeds averaged where all of them have a value."""

    steps: Array
    seconds: Array  # training time at `steps`
    loss: Array  # smoothed training loss
    deviation: Array  # over seeds; zeros for one
    validation_steps: Array
    validation: Array

    def seconds_at(self, steps: Array) -> Array:
        """Training time at ``steps``, starting from 0 at step 0."""
        at: Array = np.interp(steps, np.append(0.0, self.steps), np.append(0.0, self.seconds))
        return at


def read_curve(directory: Path) -> Curve | None:
    """The curve of one run directory; None before its first recorded loss."""
    rows = read_rows(directory / "metrics.jsonl")
    steps, losses = column(rows, "loss")
    if not len(steps):
        return None
    timed, seconds = column(read_rows(directory / "timing.jsonl"), "seconds")
    at = np.interp(steps, timed, seconds) if len(timed) else np.full_like(steps, np.nan)
    validation_steps, validation = column(rows, "validation_loss")
    return Curve(steps, at, _smooth(losses), np.zeros_like(steps), validation_steps, validation)


@dataclass(frozen=True)
class ScoreCurve:
    """A score on validation data of one run, or of several seeds averaged where all have a value."""

    steps: Array
    values: Array  # as people read them
    deviation: Array  # over seeds; zeros for one


def read_scores(directory: Path, score: Score) -> ScoreCurve:
    """The curve of one run directory; without steps before its first validation."""
    steps, found = column(read_rows(directory / "metrics.jsonl"), f"validation_{score.key}")
    values = np.array([score.shown(score.cost(value)) for value in found], dtype=float)
    drawable = np.array([FINITE.holds(value) for value in values.tolist()], dtype=bool)
    return ScoreCurve(steps[drawable], values[drawable], np.zeros(drawable.sum()))


def mean_scores(curves: Sequence[ScoreCurve]) -> ScoreCurve:
    """Mean over seeds at the steps that all of them have: some may have stopped early."""
    steps = _common([curve.steps for curve in curves])
    values = np.stack([curve.values[np.isin(curve.steps, steps)] for curve in curves])
    deviation = values.std(0, ddof=1) if len(curves) > 1 else np.zeros_like(steps)
    return ScoreCurve(steps, values.mean(0), deviation)


def column(rows: Sequence[dict[str, Any]], name: str) -> tuple[Array, Array]:
    """(steps, values) of the rows that hold a finite ``name``, by step; of equal steps the last."""
    pairs = [(row.get("step"), row.get(name)) for row in rows]
    numbers = dict(pair for pair in pairs if all(map(FINITE.holds, pair)))
    table = np.array(sorted(numbers.items()), dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _smooth(values: Array) -> Array:
    """Trailing mean over the last 2 % of the points up to each point."""
    width = max(1, len(values) // 50)
    sums = np.cumsum(np.append(0.0, values))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    means: Array = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Mean over seeds at the steps that all of them have."""
    steps = _common([curve.steps for curve in curves])
    losses = _stack(curves, steps, "steps", "loss")
    seconds = _stack(curves, steps, "steps", "seconds")
    at = _common([curve.validation_steps for curve in curves])
    validation = _stack(curves, at, "validation_steps", "validation")
    deviation = losses.std(0, ddof=1) if len(curves) > 1 else np.zeros_like(steps)
    return Curve(steps, seconds.mean(0), losses.mean(0), deviation, at, validation.mean(0))


def _common(grids: Sequence[Array]) -> Array:
    steps = grids[0]
    for grid in grids[1:]:
        steps = np.intersect1d(steps, grid)
    return steps


def _stack(curves: Sequence[Curve], steps: Array, grid: str, name: str) -> Array:
    """(curves, steps) values of ``name`` at ``steps``."""
    return np.stack(
        [getattr(curve, name)[np.isin(getattr(curve, grid), steps)] for curve in curves]
    )
