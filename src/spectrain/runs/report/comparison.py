"""The sections of a comparison."""

import math

from spectrain.runs.compare import Comparison
from spectrain.runs.curves import column
from spectrain.runs.files import read_rows
from spectrain.runs.records import read_config
from spectrain.runs.report.bars import bars_of, stacked
from spectrain.runs.report.exhibits import exhibits
from spectrain.runs.report.lines import Line, curves, ends_of_spectra, quality_by_memory
from spectrain.runs.report.page import (
    Section,
    bullets,
    details,
    grid,
    key,
    notes,
    paragraph,
    table,
)
from spectrain.runs.report.run import chapters, reproduce
from spectrain.runs.report.twin import beside_full_rank
from spectrain.runs.rows import drawn_trials
from spectrain.runs.scores import cost_of
from spectrain.runs.summary import summarise
from spectrain.runs.trials import Plan, Result, Trial
from spectrain.runs.words import describe, figure, rate_text


def sections_of_comparison(comparison: Comparison) -> tuple[str, list[Section]]:
    """(title, sections) of a comparison, finished or not. Raises RunError if its files are damaged."""
    summary, plan, settings = summarise(comparison), comparison.plan, comparison.settings
    lines = lines_of(comparison)
    looks = {arm.key: look for look, arm in enumerate(plan.arms)}
    shown = {key: trials[0] for key, trials in drawn_trials(comparison).items()}
    runs = [(describe(plan, trial), comparison.trial_directory(trial)) for trial in shown.values()]
    bars = [
        bar
        for key, trial in shown.items()
        for bar in bars_of(plan.arm(key).title, comparison.results[trial])
    ]
    first = next(iter(comparison.results), None)
    ran = read_config(comparison.trial_directory(first)) if first else None
    figures = grid(
        [*curves(lines, plan.scores), quality_by_memory(summary.rows, looks, plan.scores)]
    )
    title = f"{', '.join(arm.title for arm in plan.arms)}: a comparison of training methods"
    return title, [
        Section(
            "result",
            "Result",
            table(summary.columns, summary.cells)
            + key(summary.columns)
            + bullets(summary.sentences)
            + notes(summary.footnotes),
        ),
        Section("curves", "Curves", figures or paragraph("Nothing recorded yet.")),
        Section("memory", "Memory", stacked(bars)),
        Section("spectra", "Spectra", grid([ends_of_spectra(lines)])),
        Section("factors", "Factors", beside_full_rank(comparison) + chapters(runs)),
        *exhibits(runs),
        Section("schedules", "Schedules", _schedules(plan)),
        Section("trials", "All trials", _trials(comparison)),
        Section("asked", "What was asked", details("All options", settings.get("options"))),
        Section("reproduce", "To reproduce", reproduce(settings, ran or {})),
    ]


def lines_of(comparison: Comparison) -> list[Line]:
    """A line for each arm that has finished a trial: its runs with the report's seeds, if any."""
    shown = drawn_trials(comparison)
    return [
        Line(arm.title, look, tuple(comparison.trial_directory(t) for t in shown[arm.key]))
        for look, arm in enumerate(comparison.plan.arms)
        if arm.key in shown
    ]


def _schedules(plan: Plan) -> str:
    lead = "What happens to the factors during training, here and in each method's paper."
    rows = [(arm.title, arm.schedule, arm.paper_schedule) for arm in plan.arms]
    return paragraph(lead) + table(("method", "here", "in the paper"), rows, words=True)


def _trials(comparison: Comparison) -> str:
    plan = comparison.plan
    headings = (
        *("method", "purpose", "learning rate", "ordinary rate", "seed"),
        f"validation {plan.scores[0].title}",
        *(f"test {score.title}" for score in plan.scores),
        *("ms/step", "state"),
    )
    rows = [
        (
            plan.arm(trial.arm).title,
            trial.purpose,
            *(rate_text(trial.lr), rate_text(trial.lr_ordinary)),
            str(trial.seed),
            *_measured(comparison, trial),
        )
        for trial in comparison.progress.trials
    ]
    return table(headings, rows)


def _measured(comparison: Comparison, trial: Trial) -> tuple[str, ...]:
    scores, result = comparison.plan.scores, comparison.results.get(trial)
    if result is None:
        blank = ("–" for _ in scores)
        return (*blank, "–", "–", _progress(comparison, trial))
    validation = cost_of(result, "validation", scores[0])
    return (
        figure(scores[0], validation, scores[0].digits + 1),
        *(
            # One digit more than the means have; of exponentials those are digits enough.
            figure(s, cost_of(result, "test", s), s.digits + (not s.exponential))
            for s in scores
        ),
        _milliseconds(result),
        "diverged" if math.isinf(validation) else "done",
    )


def _milliseconds(result: Result) -> str:
    seconds = result.get("seconds_per_step")
    return f"{1000 * seconds:.1f}" if seconds and math.isfinite(seconds) else "–"


def _progress(comparison: Comparison, trial: Trial) -> str:
    """How far a trial has come that has no result."""
    steps, _ = column(read_rows(comparison.trial_directory(trial) / "metrics.jsonl"), "loss")
    return f"at step {steps[-1]:.0f}" if len(steps) else "not done yet"
