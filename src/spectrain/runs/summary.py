"""What a comparison says: the rows of its table, and sentences that guard against reading too much.

The terminal and the report show the same `Summary`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spectrain.runs.compare import Comparison
from spectrain.runs.rows import Row, measure
from spectrain.runs.scores import table_order
from spectrain.runs.sentences import sentences
from spectrain.runs.statistics import mean, standard_deviation
from spectrain.runs.trials import Plan
from spectrain.runs.words import rate_text
from spectrain.tasks.score import LOSS, Score


@dataclass(frozen=True)
class Summary:
    """A comparison's table and what must be said with it."""

    columns: Mapping[str, str]  # headings, and what they mean
    rows: tuple[Row, ...]  # best first
    cells: tuple[tuple[str, ...], ...]  # the same rows in print, one text per column
    sentences: tuple[str, ...]
    footnotes: tuple[str, ...]  # how arms differ from the published methods


def summarise(comparison: Comparison) -> Summary:
    """Evaluate a comparison, finished or not."""
    plan = comparison.plan
    rows, noise = measure(comparison)
    footnotes = tuple(
        f"{arm.title}: {variation}" for arm in plan.arms for variation in arm.variations
    )
    return Summary(
        _columns(plan),
        tuple(rows),
        tuple(_cells(row, footnotes, plan) for row in rows),
        sentences(comparison, rows, noise),
        footnotes,
    )


def _columns(plan: Plan) -> dict[str, str]:
    first = plan.scores[0].title
    gap = first if plan.scores[0] == LOSS else f"difference in {first}"
    alike = " at the same rank" if any(arm.group for arm in plan.arms) else ""
    return {
        "method": "numbers in brackets refer to the notes on how it differs from the published "
        "method",
        "learning rate": f"of the factorised matrices, chosen by validation {first}",
        **{f"test {score.title}": _meaning(score) for score in table_order(plan.scores)},
        "gap closed": f"share of the {gap} between the best other low-rank method{alike} (0 %) "
        "and full rank (100 %) that the method makes up; – where there is no gap beyond the noise",
        "ms/step": "median time of a training step",
        "state MiB": "measured memory of weights, gradients and optimizer state; without "
        "activations and what an event needs for a moment",
        "trainable": "trained parameters (M: millions)",
    }


def _meaning(score: Score) -> str:
    spread = "mean ± standard deviation"
    if score == LOSS:
        return f"nats per token: {spread}"
    better = "higher" if score.higher_is_better else "lower"
    what = f"exp({score.key})" if score.exponential else score.unit
    return f"{what} on test data, {better} is better: {spread}"


def _cells(row: Row, footnotes: Sequence[str], plan: Plan) -> tuple[str, ...]:
    marks = [
        str(footnotes.index(f"{row.arm.title}: {variation}") + 1)
        for variation in row.arm.variations
    ]
    rate = rate_text(row.best.lr) if row.best else "–"
    if row.best and plan.ordinary_swept:
        rate += f" ({rate_text(row.best.lr_ordinary)})"
    missing = "diverged" if row.best and not row.costs else "–"
    return (
        row.arm.title + (f" [{','.join(marks)}]" if marks else ""),
        rate,
        *(
            _spread(row.values[score], score.digits) if row.values[score] else missing
            for score in table_order(plan.scores)
        ),
        "–" if row.share is None else f"{100 * row.share:.0f} %".replace("-", "−"),
        "–" if math.isnan(row.step_seconds) else f"{1000 * row.step_seconds:.1f}",
        "–" if math.isnan(row.state_bytes) else f"{row.state_bytes / 2**20:.1f}",
        "–" if row.trainable is None else f"{row.trainable / 1e6:.2f} M",
    )


def _spread(values: Sequence[float], digits: int) -> str:
    """``39.29 ± 0.41``, or the mean alone for a single value."""
    deviation = standard_deviation(values)
    return f"{mean(values):.{digits}f}" + (
        "" if deviation is None else f" ± {deviation:.{digits}f}"
    )
