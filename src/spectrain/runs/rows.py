"""What a comparison has measured of each arm, and which of its trials are shown."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from spectrain.runs.compare import Comparison
from spectrain.runs.scores import cost_of
from spectrain.runs.statistics import Noise, gap_closed, mean, seed_noise
from spectrain.runs.trials import Arm, Result, Trial
from spectrain.tasks.score import Score

STATE = ("weights", "gradients", "optimizer")  # what has to be in memory all through training
FULL_RANK = "full"  # key of the arm that gaps are measured against


@dataclass(frozen=True)
class Row:
    """One method's line in the table."""

    arm: Arm
    best: Trial | None  # its trial in the sweep with the chosen rates
    costs: tuple[float, ...]  # on test data, by the score that decides, one per seed that has it
    values: Mapping[Score, tuple[float, ...]]  # what people read, on test data, of those seeds
    share: float | None  # of the gap to full rank
    step_seconds: float
    state_bytes: float
    trainable: int | None


def measure(comparison: Comparison) -> tuple[list[Row], Noise | None]:
    """The rows, best first, and the noise in their differences."""
    plan, progress = comparison.plan, comparison.progress
    shown = reported_trials(comparison)
    results = {
        arm.key: [comparison.results[trial] for trial in shown if trial.arm == arm.key]
        for arm in plan.arms
    }
    costs = {key: _costs(found, plan.scores[0]) for key, found in results.items()}
    noise = seed_noise(list(costs.values()))
    rows = [
        _row(arm, progress.best.get(arm.key), results[arm.key], costs, noise, comparison)
        for arm in plan.arms
    ]
    rows.sort(key=lambda row: mean(row.costs) if row.costs else math.inf)
    return rows, noise


def _costs(results: Sequence[Result], score: Score) -> tuple[float, ...]:
    costs = (cost_of(result, "test", score) for result in results)
    return tuple(cost for cost in costs if math.isfinite(cost))


def reported_trials(comparison: Comparison) -> list[Trial]:
    """The trials whose test results are printed: those of the report seeds as soon as every method
    has one, else those the sweep has chosen (none before it is complete)."""
    progress = comparison.progress
    done = [trial for trial in progress.trials if trial in comparison.results]
    report = [trial for trial in done if trial.purpose == "report"]
    if report and {trial.arm for trial in report} == set(progress.best):
        return report
    return list(progress.best.values())


def drawn_trials(comparison: Comparison) -> dict[str, list[Trial]]:
    """Finished trials to draw, by arm: those of the report seeds; before there are any, each
    method's best so far, or its first."""
    progress, results = comparison.progress, comparison.results
    done = [trial for trial in progress.trials if trial in results]
    shown = {}
    for arm in comparison.plan.arms:
        own = [trial for trial in done if trial.arm == arm.key]
        report = [trial for trial in own if trial.purpose == "report"]
        best = progress.best.get(arm.key)
        if chosen := report or ([best] if best else own[:1]):
            shown[arm.key] = chosen
    return shown


def rivals(arm: Arm, arms: Sequence[Arm]) -> list[Arm]:
    """The low-rank arms that a low-rank arm is measured against: other methods in its group."""
    own = arm.method or arm.key
    return [
        other
        for other in arms
        if other.key != FULL_RANK
        and other.group == arm.group
        and (other.method or other.key) != own
    ]


def _row(
    arm: Arm,
    best: Trial | None,
    results: Sequence[Result],
    costs: Mapping[str, tuple[float, ...]],
    noise: Noise | None,
    comparison: Comparison,
) -> Row:
    plan = comparison.plan
    full, others = costs.get(FULL_RANK, ()), [costs[o.key] for o in rivals(arm, plan.arms)]
    times = [result["seconds_per_step"] for result in results if result.get("seconds_per_step")]
    known = [sizes for result in results if (sizes := result.get("bytes"))]
    states = [sum(sizes[part] for part in STATE) for sizes in known]
    counts = [n for result in results if (n := result.get("trainable_parameters")) is not None]
    judged = [result for result in results if _costs([result], plan.scores[0])]
    return Row(
        arm=arm,
        best=best,
        costs=costs[arm.key],
        values={
            score: tuple(score.shown(cost) for cost in _costs(judged, score))
            for score in plan.scores
        },
        share=None if arm.key == FULL_RANK else gap_closed(costs[arm.key], full, others, noise),
        step_seconds=median(times) if times else math.nan,
        state_bytes=max(states, default=math.nan),
        trainable=counts[0] if counts else None,
    )
