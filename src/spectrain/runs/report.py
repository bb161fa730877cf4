"""report.html: a run or a comparison as one file that needs no network, no script and no server."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectrain.errors import RunError, UsageError
from spectrain.runs.captions import EXHIBITS, Exhibit, captions
from spectrain.runs.compare import Comparison, load_comparison
from spectrain.runs.files import write_atomic
from spectrain.runs.page import (
    bullets,
    definitions,
    details,
    figures,
    folded,
    key,
    notes,
    preformatted,
    table,
    whole_page,
)
from spectrain.runs.plots import plot_comparison
from spectrain.runs.records import SAMPLES, read_config, read_record, read_result
from spectrain.runs.rows import drawn_trials
from spectrain.runs.run_plots import plot_run
from spectrain.runs.run_summary import run_summary
from spectrain.runs.scores import cost_of, scores_from_json
from spectrain.runs.summary import summarise
from spectrain.runs.trials import Plan, Result
from spectrain.runs.words import describe, figure, rate_text

PNG = b"\x89PNG\r\n\x1a\n"  # how such files begin


def write_report(directory: Path) -> Path:
    """Draw the plots of a run or comparison, finished or not, and write its report.html.

    Returns the report's path. Raises UsageError if ``directory`` holds neither, RunError if its
    files are damaged or the report cannot be written.
    """
    config = read_config(directory)
    if config is None:
        raise UsageError(f"{directory} holds no run and no comparison: it has no config.json")
    if config.get("kind") == "comparison":
        title, body = _comparison(load_comparison(directory))
    else:
        title, body = _run(directory, config)
    path = directory / "report.html"
    write_atomic(path, whole_page(title, body))
    return path


def _comparison(comparison: Comparison) -> tuple[str, str]:
    """(title, body) of a comparison's report."""
    summary = summarise(comparison)
    arms = comparison.plan.arms
    title = f"{', '.join(arm.title for arm in arms)}: a comparison of training methods"
    settings, under = comparison.settings, captions(comparison.plan.scores)
    first = next(iter(comparison.results), None)
    config = read_config(comparison.trial_directory(first)) if first else None
    parts = [
        "<h2>Result</h2>",
        table(summary.columns, summary.cells),
        key(summary.columns),
        bullets(summary.sentences),
        notes(summary.footnotes),
        "<h2>Curves</h2>",
        figures([(path, under[path.name]) for path in plot_comparison(comparison)]),
        *(part for exhibit in EXHIBITS for part in _of_arms(exhibit, comparison)),
        *_samples_of_arms(comparison),
        "<h2>Schedules</h2>",
        "<p>What happens to the factors during training, here and in each method's paper.</p>",
        table(
            ("method", "here", "in the paper"),
            [(arm.title, arm.schedule, arm.paper_schedule) for arm in arms],
            words=True,
        ),
        "<h2>All trials</h2>",
        _trials(comparison),
        "<h2>What was asked</h2>",
        preformatted(settings.get("command")),
        details("Options", settings.get("options")),
        _settings(config or {}),
    ]
    return title, "\n".join(parts)


def _of_arms(exhibit: Exhibit, comparison: Comparison) -> list[str]:
    """The section of an exhibit, one picture for each arm; none if the task drew none."""
    plan = comparison.plan
    first = [trials[0] for trials in drawn_trials(comparison).values()]
    pictures = [
        (path, f"{describe(plan, trial)}: {exhibit.of_arm}")
        for trial in first
        if (path := _drawn(exhibit, comparison.trial_directory(trial))) is not None
    ]
    if not pictures:
        return []
    return [f"<h2>{exhibit.heading}</h2>", f"<p>{exhibit.lead}</p>", figures(pictures)]


def _drawn(exhibit: Exhibit, directory: Path) -> Path | None:
    """The exhibit's picture in a run directory, if the task drew one."""
    path = directory / exhibit.file
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            known = file.read(len(PNG)) == PNG
    except OSError as error:
        raise RunError(f"could not read {path}: {error.strerror or error}") from error
    if not known:
        raise RunError(f"{path} is damaged (it is no PNG file): delete or restore it")
    return path


def _samples_of_arms(comparison: Comparison) -> list[str]:
    """What tasks showed of their outputs, folded, one table for each arm; no section without any."""
    plan = comparison.plan
    first = [trials[0] for trials in drawn_trials(comparison).values()]
    tables = [
        folded(describe(plan, trial), text)
        for trial in first
        if (text := _samples(comparison.trial_directory(trial)))
    ]
    return ["<h2>Samples</h2>", *tables] if tables else []


def _samples(directory: Path) -> str:
    """The table of what the task of a run showed, if it showed anything."""
    found = read_record(directory / "samples.json", SAMPLES)
    return table(found["columns"], found["rows"], words=True) if found else ""


def _trials(comparison: Comparison) -> str:
    plan, results = comparison.plan, comparison.results
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
            *_measured(plan, results.get(trial)),
        )
        for trial in comparison.progress.trials
    ]
    return table(headings, rows)


def _measured(plan: Plan, result: Result | None) -> tuple[str, ...]:
    if result is None:
        return (*("–" for _ in plan.scores), "–", "–", "not done yet")
    first = plan.scores[0]
    validation = cost_of(result, "validation", first)
    seconds = result.get("seconds_per_step")
    return (
        figure(first, validation, first.digits + 1),
        *(
            # One digit more than the means have; of exponentials those are digits enough.
            figure(s, cost_of(result, "test", s), s.digits + (not s.exponential))
            for s in plan.scores
        ),
        f"{1000 * seconds:.1f}" if seconds and math.isfinite(seconds) else "–",
        "diverged" if math.isinf(validation) else "done",
    )


def _run(directory: Path, config: Mapping[str, Any]) -> tuple[str, str]:
    """(title, body) of a single run's report."""
    method = config.get("method") or {}
    scores = scores_from_json(config)
    under = captions(scores)
    exhibits = (_drawn(exhibit, directory) for exhibit in EXHIBITS)
    drawn = [*plot_run(directory), *filter(None, exhibits)]
    parts = [
        "<h2>Summary</h2>",
        definitions(run_summary(directory, read_result(directory), scores)),
        "<h2>Curves</h2>",
        figures([(path, under[path.name]) for path in drawn]),
        *(["<h2>Samples</h2>", samples] if (samples := _samples(directory)) else []),
        "<h2>What was asked</h2>",
        preformatted(config.get("command")),
        details("Method", method),
        details("Options", config.get("options")),
        _settings(config),
    ]
    name = method.get("name") or "a model"
    return f"Training with {name}: {directory.resolve().name}", "\n".join(parts)


def _settings(config: Mapping[str, Any]) -> str:
    parts = [details(part.capitalize(), config.get(part)) for part in ("corpus", "environment")]
    return "".join(parts)
