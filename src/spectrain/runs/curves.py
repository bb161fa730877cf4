"""Curves of losses and scores, and spectra, read from run directories and averaged over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectrain.runs.files import read_rows
from spectrain.runs.records import FINITE, SPECTRA, read_record
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

    def settled(self) -> tuple[float, float]:
        """The lowest and the highest value to show: the steep first fifth would squeeze the rest."""
        late = self.loss[self.steps >= self.steps[-1] / 5]
        low = min(late.min(), self.validation.min(initial=np.inf))
        return float(low), float(max(late.max(), self.validation[-1:].max(initial=-np.inf)))


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

    def settled(self) -> tuple[float, float]:
        """The lowest and the highest value to show, as for losses."""
        late = self.steps >= self.steps[-1] / 5
        low, high = self.values - self.deviation, self.values + self.deviation
        return float(low[late].min()), float(high[late].max())


def read_scores(directory: Path, score: Score) -> ScoreCurve:
    """The curve of one run directory; without steps before its first validation."""
    steps, found = column(read_rows(directory / "metrics.jsonl"), f"validation_{score.key}")
    values = np.array([score.shown(score.cost(value)) for value in found], dtype=float)
    drawable = np.array([FINITE.holds(value) for value in values.tolist()], dtype=bool)
    return ScoreCurve(steps[drawable], values[drawable], np.zeros(drawable.sum()))


def scores_of(directories: Sequence[Path], score: Score) -> ScoreCurve | None:
    """The mean over run directories; None where it was not measured twice: one point is no curve."""
    found = [read_scores(directory, score) for directory in directories]
    known = [curve for curve in found if len(curve.steps)]
    mean = mean_scores(known) if known else None
    return mean if mean and len(mean.steps) > 1 else None


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


def curve_of(directories: Sequence[Path]) -> Curve | None:
    """The mean over run directories, as far as they have steps in common; None if they have none."""
    found = [read_curve(directory) for directory in directories]
    known = [curve for curve in found if curve is not None]
    mean = mean_curve(known) if known else None
    return mean if mean and len(mean.steps) else None


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


def read_spectra(directory: Path) -> dict[str, dict[str, Array]]:
    """The "initial" and "final" singular values of layers, those that have both: a diverged run has
    no final ones. Raises as `read_record` does."""
    found = read_record(directory / "spectra.json", SPECTRA) or {}
    both = "initial", "final"
    return {
        layer: {when: descending(values[when]) for when in both}
        for layer, values in found.items()
        if all(values.get(when) for when in both)
    }


def descending(values: Sequence[float]) -> Array:
    """Singular values from the largest on; NaN for rounding errors, which have no place on a scale of
    logarithms."""
    spectrum = np.sort(np.array(values, dtype=float))[::-1]
    spectrum[spectrum < 1e-7 * spectrum[0]] = np.nan
    return spectrum
