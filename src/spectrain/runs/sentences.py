"""Sentences that guard against reading too much into a comparison's table."""

import math
from collections.abc import Sequence
from itertools import pairwise

from spectrain.runs.compare import Comparison
from spectrain.runs.rows import FULL_RANK, Row, reported_trials, rivals
from spectrain.runs.scores import LANGUAGE, cost_of
from spectrain.runs.statistics import Noise, mean, separable
from spectrain.runs.words import describe, failure, rate_text
from spectrain.tasks.score import Score


def sentences(comparison: Comparison, rows: Sequence[Row], noise: Noise | None) -> tuple[str, ...]:
    """What must be said with the rows of a comparison, finished or not."""
    score = comparison.plan.scores[0]
    return (
        *_status(comparison),
        *_noise_sentences(rows, noise, score),
        *_gap_sentences(rows, noise),
        *_warnings(comparison),
    )


def _status(comparison: Comparison) -> list[str]:
    plan, progress = comparison.plan, comparison.progress
    shown = reported_trials(comparison)
    said = []
    if not comparison.finished:
        done = sum(trial in comparison.results for trial in progress.trials)
        said.append(
            f"Not finished: {done} of the {len(progress.trials)} trials known to be needed so far "
            "are done. The same command continues."
        )
    if not shown:
        return said
    sweeps = [trial for trial in progress.trials if trial.purpose == "sweep"]
    each = len(sweeps) // len(plan.arms)
    chosen = (
        f"Rates were chosen by validation {plan.scores[0].title} with seed {plan.sweep_seed}, "
        f"{each} trials for each method"
        if each > 1
        else f"Rates were given, not swept (one trial for each method with seed {plan.sweep_seed})"
    )
    if shown[0].purpose == "report":
        seeds = ", ".join(str(seed) for seed in sorted({trial.seed for trial in shown}))
        said.append(f"{chosen}; the results are on test data with seeds {seeds}.")
    else:
        said.append(f"{chosen}; the results are those same trials', on test data.")
    ordinary = " (embeddings, head, norms)" if plan.scores == LANGUAGE else ""
    if not plan.ordinary_swept and plan.ordinary_rates[0] is not None:
        said.append(
            f"Parameters that no method factorises{ordinary} had the rate "
            f"{rate_text(plan.ordinary_rates[0])} in every trial."
        )
    elif plan.ordinary_swept:
        said.append(
            f"The rate in brackets is that of the parameters that no method factorises{ordinary}."
        )
    return said


def _noise_sentences(rows: Sequence[Row], noise: Noise | None, score: Score) -> list[str]:
    ranked = [row for row in rows if row.costs]
    if not ranked:
        return []
    if noise is None:
        return [
            "One seed: no noise floor. Differences between methods may be chance, and no share of "
            "the gap is given; run more seeds to tell."
        ]
    count = max(len(row.costs) for row in ranked)
    results = "losses" if score.title == "loss" else f"{score.title} scores"
    said = [
        f"Noise floor: {_difference(score, noise.floor(count, count))} {score.unit}. A seed gives "
        "every method the same initial weights and data; beyond what it does to all methods alike, "
        f"it moves a method's {score.title} by a standard deviation of "
        f"{_difference(score, noise.deviation)} {score.unit} ({noise.dof} degrees of freedom). Two "
        f"methods with {count} seeds each are separable (95 % confidence, each pair on its own) if "
        f"their mean {results} differ by more than the noise floor."
    ]
    alike = [
        f"{better.arm.title} and {worse.arm.title} are not separable: they differ by "
        f"{_difference(score, mean(worse.costs) - mean(better.costs))} {score.unit}, the noise floor "
        f"for {_seeds(better, worse)} is "
        f"{_difference(score, noise.floor(len(better.costs), len(worse.costs)))}."
        for better, worse in pairwise(ranked)
        if not separable(better.costs, worse.costs, noise)
    ]
    if not alike and len(ranked) > 1:
        said.append("Each method is separable from the next in the table.")
    return said + alike


def _difference(score: Score, value: float) -> str:
    """With the score's digits; up to three where those would show a zero."""
    digits = score.digits
    while digits < 3 and float(f"{value:.{digits}f}") == 0:
        digits += 1
    return f"{value:.{digits}f}"


def _seeds(a: Row, b: Row) -> str:
    counts = sorted({len(a.costs), len(b.costs)})
    return f"{' and '.join(str(count) for count in counts)} seeds"


def _gap_sentences(rows: Sequence[Row], noise: Noise | None) -> list[str]:
    """Why no share of the gap is printed, where the noise floor does not already say it."""
    if noise is None or any(row.share is not None for row in rows):
        return []
    low_rank = [row.arm for row in rows if row.arm.key != FULL_RANK and row.costs]
    if len(low_rank) == len(rows) or not any(rivals(arm, low_rank) for arm in low_rank):
        return []
    which = " of any rank" if any(arm.group for arm in low_rank) else ""
    return [
        f"No share of the gap is given: full rank does not beat the best low-rank method{which} by "
        "more than the noise."
    ]


def _warnings(comparison: Comparison) -> list[str]:
    """Diverged trials, and grids whose best rate is still at an edge."""
    plan, progress, results = comparison.plan, comparison.progress, comparison.results
    score = plan.scores[0]
    said = []
    for trial in progress.trials:
        if trial in results and math.isinf(cost_of(results[trial], "validation", score)):
            kind = "" if trial.purpose == "sweep" else " and is missing from the results above"
            reason = failure(results[trial], score)
            said.append(f"Diverged: {describe(plan, trial)} ({reason}){kind}.")
    grown = {0: "", 1: ", even after 1 extension of the grid"}.get(
        progress.extensions, f", even after {progress.extensions} extensions of the grid"
    )
    for edge in progress.edges:
        title = plan.arm(edge.arm).title
        if edge.arm not in progress.best:
            said.append(f"{title} diverged at every rate tried{grown}: try lower ones.")
            continue
        beyond = "lower" if edge.side == "lowest" else "higher"
        said.append(
            f"The best {edge.axis} of {title}, {rate_text(edge.rate)}, is the {edge.side} tried"
            f"{grown}: a {beyond} one may be better."
        )
    return said
