"""What a comparison says: the rows of its table, and sentences that guard against reading too much.

The terminal and the report show the same `Summary`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from spectrain.runs.compare import Comparison, describe, failure, rate_text
from spectrain.runs.statistics import (
    Noise,
    gap_closed,
    mean,
    seed_noise,
    separable,
    standard_deviation,
)
from spectrain.runs.trials import Arm, Progress, Result, Trial, cost
from spectrain.tasks.score import LOSS, PERPLEXITY, Score

STATE = ("weights", "gradients", "optimizer")  # what has to be in memory all through training
FULL_RANK = "full"  # key of the arm that gaps are measured against

_FIRST = {
    "method": "numbers in brackets refer to the notes on how it differs from the published method",
    "learning rate": "of the factorised matrices, chosen by validation {score}",
}
_LAST = {
    "gap closed": "share of the {score} between the best other low-rank method (0 %) and full rank "
    "(100 %) that the method makes up; – where there is no gap beyond the noise",
    "ms/step": "median time of a training step",
    "state MiB": "measured memory of weights, gradients and optimizer state; without activations "
    "and what an event needs for a moment",
    "trainable": "trained parameters (M: millions)",
}


def columns_of(scores: Sequence[Score]) -> dict[str, str]:
    """The headings of a comparison's table, and what they mean."""
    shown = {f"test {score.title}": _meaning(score) for score in _in_print(scores)}
    columns = {**_FIRST, **shown, **_LAST}
    return {name: text.format(score=scores[0].title) for name, text in columns.items()}


def _in_print(scores: Sequence[Score]) -> list[Score]:
    """Scores in the order of columns: a perplexity stands before the loss it is made of."""
    return sorted(scores, key=lambda score: not score.exponential)


def _meaning(score: Score) -> str:
    if score == PERPLEXITY:
        return "exp(loss) on test data, lower is better: mean ± standard deviation"
    if score == LOSS:
        return "nats per token: mean ± standard deviation"
    better = "higher" if score.higher_is_better else "lower"
    unit = "per cent" if score.factor == 100 else score.unit
    return f"{unit} on test data, {better} is better: mean ± standard deviation over seeds"


@dataclass(frozen=True)
class Row:
    """One method's line in the table."""

    arm: Arm
    best: Trial | None  # its trial in the sweep with the chosen rates
    costs: tuple[
        tuple[float, ...], ...
    ]  # for each score, of the trials that did not diverge: one per seed
    share: float | None  # of the gap to full rank
    step_seconds: float
    state_bytes: float
    trainable: int | None

    @property
    def losses(self) -> tuple[float, ...]:
        """Costs on test data by the score that decides."""
        return self.costs[0]

    def shown(self, scores: Sequence[Score], score: Score) -> list[float]:
        """A score as people read it, one per seed."""
        return [score.shown(value) for value in self.costs[list(scores).index(score)]]


@dataclass(frozen=True)
class Summary:
    """A comparison's table and what must be said with it."""

    rows: tuple[Row, ...]  # best first
    columns: dict[str, str]  # headings, and what they mean
    cells: tuple[tuple[str, ...], ...]  # the same rows in print, one text per heading
    sentences: tuple[str, ...]
    footnotes: tuple[str, ...]  # how arms differ from the published methods


def summarise(comparison: Comparison) -> Summary:
    """Evaluate a comparison, finished or not."""
    plan, progress, results = comparison.plan, comparison.progress, comparison.results
    trials = _reported_trials(comparison, progress)
    costs = {arm.key: _costs(arm, plan.scores, trials, results) for arm in plan.arms}
    noise = seed_noise([own[0] for own in costs.values()])
    rows = [
        _row(
            arm,
            progress.best.get(arm.key),
            plan.arms,
            costs,
            noise,
            [results[trial] for trial in trials if trial.arm == arm.key],
        )
        for arm in plan.arms
    ]
    rows.sort(key=lambda row: mean(row.losses) if row.losses else math.inf)
    footnotes = tuple(
        f"{arm.title}: {variation}" for arm in plan.arms for variation in arm.variations
    )
    sentences = (
        *_status(comparison, progress, trials),
        *_noise_sentences(rows, noise, plan.score),
        *_gap_sentences(rows, noise),
        *_warnings(comparison, progress),
    )
    cells = tuple(_cells(row, footnotes, plan.ordinary_swept, plan.scores) for row in rows)
    return Summary(tuple(rows), columns_of(plan.scores), cells, sentences, footnotes)


def _costs(
    arm: Arm, scores: Sequence[Score], trials: Sequence[Trial], results: Mapping[Trial, Result]
) -> tuple[tuple[float, ...], ...]:
    """For each score the arm's costs on test data, one for each trial that did not diverge."""
    own = [results[trial] for trial in trials if trial.arm == arm.key]
    done = [result for result in own if math.isfinite(cost(result, scores[0], "test"))]
    return tuple(tuple(cost(result, score, "test") for result in done) for score in scores)


def _reported_trials(comparison: Comparison, progress: Progress) -> list[Trial]:
    """The trials whose test losses are printed: those of the report seeds as soon as every method
    has one, else those the sweep has chosen (none before it is complete)."""
    done = [trial for trial in progress.trials if trial in comparison.results]
    report = [trial for trial in done if trial.purpose == "report"]
    if report and {trial.arm for trial in report} == set(progress.best):
        return report
    return list(progress.best.values())


def _row(
    arm: Arm,
    best: Trial | None,
    arms: Sequence[Arm],
    costs: dict[str, tuple[tuple[float, ...], ...]],
    noise: Noise | None,
    results: Sequence[Result],
) -> Row:
    others = [
        costs[other.key][0]
        for other in arms
        if other.key not in (arm.key, FULL_RANK) and other.group == arm.group
    ]
    full = costs[FULL_RANK][0] if FULL_RANK in costs else ()
    share = None if arm.key == FULL_RANK else gap_closed(costs[arm.key][0], full, others, noise)
    times = [result["seconds_per_step"] for result in results if result.get("seconds_per_step")]
    known = [sizes for result in results if (sizes := result.get("bytes"))]
    states = [sum(sizes[part] for part in STATE) for sizes in known]
    counts = [n for result in results if (n := result.get("trainable_parameters")) is not None]
    return Row(
        arm=arm,
        best=best,
        costs=costs[arm.key],
        share=share,
        step_seconds=median(times) if times else math.nan,
        state_bytes=max(states, default=math.nan),
        trainable=counts[0] if counts else None,
    )


def _cells(
    row: Row, footnotes: Sequence[str], ordinary_swept: bool, scores: Sequence[Score]
) -> tuple[str, ...]:
    marks = [
        str(footnotes.index(f"{row.arm.title}: {variation}") + 1)
        for variation in row.arm.variations
    ]
    rate = rate_text(row.best.lr) if row.best else "–"
    if row.best and ordinary_swept:
        rate += f" ({rate_text(row.best.lr_ordinary)})"
    missing = "diverged" if row.best else "–"
    return (
        row.arm.title + (f" [{','.join(marks)}]" if marks else ""),
        rate,
        *(
            _spread(row.shown(scores, score), score.digits) if row.losses else missing
            for score in _in_print(scores)
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


def _status(comparison: Comparison, progress: Progress, shown: Sequence[Trial]) -> list[str]:
    plan = comparison.plan
    sentences = []
    if not comparison.finished:
        done = sum(trial in comparison.results for trial in progress.trials)
        sentences.append(
            f"Not finished: {done} of the {len(progress.trials)} trials known to be needed so far "
            "are done. The same command continues."
        )
    if not shown:
        return sentences
    sweeps = [trial for trial in progress.trials if trial.purpose == "sweep"]
    each = len(sweeps) // len(plan.arms)
    chosen = (
        f"Rates were chosen by validation {plan.score.title} with seed {plan.sweep_seed}, {each} trials "
        "for each method"
        if each > 1
        else f"Rates were given, not swept (one trial for each method with seed {plan.sweep_seed})"
    )
    if shown[0].purpose == "report":
        seeds = ", ".join(str(seed) for seed in sorted({trial.seed for trial in shown}))
        sentences.append(f"{chosen}; the results are on test data with seeds {seeds}.")
    else:
        sentences.append(f"{chosen}; the results are those same trials', on test data.")
    if not plan.ordinary_swept and plan.ordinary_rates[0] is not None:
        sentences.append(
            "Parameters that no method factorises (embeddings, head, norms) had the rate "
            f"{rate_text(plan.ordinary_rates[0])} in every trial."
        )
    elif plan.ordinary_swept:
        sentences.append(
            "The rate in brackets is that of the parameters that no method factorises "
            "(embeddings, head, norms)."
        )
    return sentences


def _noise_sentences(rows: Sequence[Row], noise: Noise | None, score: Score) -> list[str]:
    ranked = [row for row in rows if row.losses]
    if not ranked:
        return []
    if noise is None:
        return [
            "One seed: no noise floor. Differences between methods may be chance, and no share of "
            "the gap is given; run more seeds to tell."
        ]
    count, digits = max(len(row.losses) for row in ranked), score.digits
    sentences = [
        f"Noise floor: {noise.floor(count, count):.{digits}f} {score.unit}. A seed gives every method "
        "the same initial weights and data; beyond what it does to all methods alike, it moves a method's "
        f"{score.title} by a standard deviation of {noise.deviation:.{digits}f} {score.unit} ({noise.dof} "
        f"degrees of freedom). Two methods with {count} seeds each are separable (95 % confidence, each "
        f"pair on its own) if their mean {score.plural} differ by more than the noise floor."
    ]
    alike = [
        f"{better.arm.title} and {worse.arm.title} are not separable: they differ by "
        f"{mean(worse.losses) - mean(better.losses):.{digits}f} {score.unit}, the noise floor for "
        f"{_seeds(better, worse)} is {noise.floor(len(better.losses), len(worse.losses)):.{digits}f}."
        for better, worse in pairwise(ranked)
        if not separable(better.losses, worse.losses, noise)
    ]
    if not alike and len(ranked) > 1:
        sentences.append("Each method is separable from the next in the table.")
    return sentences + alike


def _seeds(a: Row, b: Row) -> str:
    counts = sorted({len(a.losses), len(b.losses)})
    return f"{' and '.join(str(count) for count in counts)} seeds"


def _gap_sentences(rows: Sequence[Row], noise: Noise | None) -> list[str]:
    """Why no share of the gap is printed, where the noise floor does not already say it."""
    if noise is None or any(row.share is not None for row in rows):
        return []
    low_rank = [row for row in rows if row.arm.key != FULL_RANK and row.losses]
    if len(low_rank) < 2 or len(low_rank) == len(rows):
        return []
    return [
        "No share of the gap is given: full rank does not beat the best low-rank method by more "
        "than the noise."
    ]


def _warnings(comparison: Comparison, progress: Progress) -> list[str]:
    """Diverged trials, and grids whose best rate is still at an edge."""
    plan, results = comparison.plan, comparison.results
    sentences = []
    for trial in progress.trials:
        if trial in results and math.isinf(cost(results[trial], plan.score, "validation")):
            kind = "" if trial.purpose == "sweep" else " and is missing from the results above"
            reason = failure(results[trial])
            sentences.append(f"Diverged: {describe(plan, trial)} ({reason}){kind}.")
    grown = {0: "", 1: ", even after 1 extension of the grid"}.get(
        progress.extensions, f", even after {progress.extensions} extensions of the grid"
    )
    for edge in progress.edges:
        title = plan.arm(edge.arm).title
        if edge.arm not in progress.best:
            sentences.append(f"{title} diverged at every rate tried{grown}: try lower ones.")
            continue
        beyond = "lower" if edge.side == "lowest" else "higher"
        sentences.append(
            f"The best {edge.axis} of {title}, {rate_text(edge.rate)}, is the {edge.side} tried"
            f"{grown}: a {beyond} one may be better."
        )
    return sentences
