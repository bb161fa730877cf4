"""report.html: a run or a comparison as one file that needs no network, no script and no server."""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from spectrain.errors import UsageError
from spectrain.runs.compare import Comparison, load_comparison, rate_text, scores_from, shown
from spectrain.runs.files import read_rows, write_atomic
from spectrain.runs.memory import beside
from spectrain.runs.plots import plot_comparison, plot_run, shown_trials
from spectrain.runs.records import FINITE, read_config, read_result
from spectrain.runs.summary import summarise
from spectrain.runs.trials import Plan, cost
from spectrain.tasks.score import LOSS, PERPLEXITY, Score

CAPTIONS = {
    "loss_by_step.png": "Loss against step. Lines: training loss, smoothed, mean over seeds, with "
    "a band of one standard deviation. Markers: validation loss, the last on more of the data.",
    "loss_by_time.png": "The same losses against training time, evaluation excluded.",
    "perplexity_by_memory.png": "Test perplexity (mean, and standard deviation over seeds) against "
    "the memory of weights, gradients and optimizer state. Lower and further left is better.",
    "score_by_step.png": "Score on validation data against step: mean over seeds, with a band of one "
    "standard deviation.",
    "score_by_memory.png": "Test score (mean, and standard deviation over seeds) against the memory of "
    "weights, gradients and optimizer state.",
    "score.png": "Scores on validation data against step. Dotted: the step that results are of.",
    "embedding.png": "Where the model puts the nodes, in two dimensions, coloured by class: hyperbolic "
    "ones in the Poincaré disk, around their centroid, each at its own distance from it.",
    "loss.png": "Training loss (smoothed), validation loss and learning rate against step.",
    "spectra.png": "Singular values of weight matrices at the start (dashed) and at the end (solid).",
}

STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --soft: #5b6168; --page: #fff; --line: #d9dce0;
  --shade: #f4f5f7; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8ea; --soft: #a3a9b0; --page: #16181b;
  --line: #3a3f45; --shade: #202327; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; color: var(--text); background: var(--page);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.2; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p, li, dd { max-width: 48rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; } th { overflow-wrap: normal; vertical-align: bottom; }
tr:last-child > td { border-bottom: 0; } thead th { background: var(--shade); font-weight: 600; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--page); }
thead th:first-child { background: var(--shade); }
.words td, .words th { text-align: left; white-space: normal; overflow-wrap: normal; }
.words td { min-width: 9rem; vertical-align: top; } .words td:first-child { width: 25%; }
.key, figcaption, footer { color: var(--soft); font-size: .88rem; }
.key p { margin: .15rem 0; }
@media (max-width: 40rem) { table { font-size: .85rem; } th, td { padding: .3rem .4rem; }
  ul { padding-left: 1.2rem; } .words td { min-width: 6rem; } }
.swipe { display: none; } @media (max-width: 40rem) { .swipe { display: block; } }
.figures { display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); }
figure { margin: 0; } img { width: 100%; height: auto; border-radius: 6px; background: #fff; }
pre { white-space: pre-wrap; background: var(--shade); padding: .7rem; border-radius: 6px; }
summary { cursor: pointer; font-weight: 600; margin: .6rem 0; }
"""


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
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n"
        "<footer><p>Written by spectrain.</p></footer>\n</body>\n</html>\n"
    )
    path = directory / "report.html"
    write_atomic(path, page.encode(errors="replace"))  # JSON may hold half a surrogate pair
    return path


def _comparison(comparison: Comparison) -> tuple[str, str]:
    """(title, body) of a comparison's report."""
    summary = summarise(comparison)
    arms = comparison.plan.arms
    title = f"{', '.join(arm.title for arm in arms)}: a comparison of training methods"
    settings = comparison.settings
    first = next(iter(comparison.results), None)
    config = read_config(comparison.trial_directory(first)) if first else None
    parts = [
        "<h2>Result</h2>",
        _table(summary.columns, summary.cells),
        _key(summary.columns),
        _list(summary.sentences),
        _notes(summary.footnotes),
        "<h2>Curves</h2>",
        _figures({path: CAPTIONS[path.name] for path in plot_comparison(comparison)}),
        _embeddings(comparison),
        "<h2>Schedules</h2>",
        "<p>What happens to the factors during training, here and in each method's paper.</p>",
        _table(
            ("method", "here", "in the paper"),
            [(arm.title, arm.schedule, arm.paper_schedule) for arm in arms],
            words=True,
        ),
        "<h2>All trials</h2>",
        _trials(comparison),
        "<h2>What was asked</h2>",
        _command(settings.get("command")),
        _details("Options", settings.get("options")),
        _settings(config or {}),
    ]
    return title, "\n".join(parts)


def _trials(comparison: Comparison) -> str:
    plan, results = comparison.plan, comparison.results
    headings = (
        *("method", "purpose", "learning rate", "ordinary rate", "seed"),
        f"validation {plan.score.title}",
        *(f"test {score.title}" for score in plan.scores),
        *("ms/step", "state"),
    )
    rows = []
    for trial in comparison.progress.trials:
        result = results.get(trial)
        rates = rate_text(trial.lr), rate_text(trial.lr_ordinary)
        rows.append(
            (
                plan.arm(trial.arm).title,
                trial.purpose,
                *rates,
                str(trial.seed),
                *_measured(plan, result),
            )
        )
    return _table(headings, rows)


def _measured(plan: Plan, result: Mapping[str, Any] | None) -> tuple[str, ...]:
    if result is None:
        return (*("–" for _ in (*plan.scores, "", "")), "not done yet")
    seconds = result.get("seconds_per_step")
    lost = math.isinf(cost(result, plan.score, "validation"))
    return (
        _exact(result, plan.score, "validation"),
        *(_exact(result, score, "test") for score in plan.scores),
        _number(1000 * seconds, 1) if seconds else "–",
        "diverged" if lost else "done",
    )


def _exact(result: Mapping[str, Any], score: Score, split: str) -> str:
    """A score with a digit more than in the table of results; a perplexity with as many."""
    found = cost(result, score, split)
    return _number(score.shown(found), score.digits + (not score.exponential))


def _embeddings(comparison: Comparison) -> str:
    """The first shown run's picture of its nodes, for each arm that has one."""
    first = {
        arm.title: comparison.trial_directory(trials[0]) / "embedding.png"
        for arm in comparison.plan.arms
        if (trials := shown_trials(comparison).get(arm.key))
    }
    pictures = {path: title for title, path in first.items() if path.is_file()}
    if not pictures:
        return ""
    return f"<h2>Embeddings</h2>\n<p>{escape(CAPTIONS['embedding.png'])}</p>\n{_figures(pictures)}"


def _pictures(directory: Path) -> list[Path]:
    """A run's plots, and the picture that its task has drawn."""
    embedding = directory / "embedding.png"
    return [*plot_run(directory), *([embedding] if embedding.is_file() else [])]


def _run(directory: Path, config: Mapping[str, Any]) -> tuple[str, str]:
    """(title, body) of a single run's report."""
    method = config.get("method") or {}
    result = read_result(directory)
    parts = [
        "<h2>Summary</h2>",
        _definitions(_run_summary(directory, result, scores_from(config.get("scores")))),
        "<h2>Curves</h2>",
        _figures({path: CAPTIONS[path.name] for path in _pictures(directory)}),
        "<h2>What was asked</h2>",
        _command(config.get("command")),
        _details("Method", method),
        _details("Options", config.get("options")),
        _settings(config),
    ]
    name = method.get("name") or "a model"
    return f"Training with {name}: {directory.resolve().name}", "\n".join(parts)


def _run_summary(
    directory: Path, result: Mapping[str, Any] | None, scores: Sequence[Score]
) -> dict[str, Any]:
    """What is known of a run, finished or not."""
    if result is None:
        rows = read_rows(directory / "metrics.jsonl")
        last = max((row["step"] for row in rows if FINITE.holds(row.get("step"))), default=0)
        summary: dict[str, Any] = {"state": f"not finished: recorded up to step {last}"}
        for name in dict.fromkeys(("loss", *(f"validation_{score.key}" for score in scores))):
            values = [row[name] for row in rows if FINITE.holds(row.get(name))]
            if values:
                summary[f"last {name.replace('_', ' ')}"] = f"{values[-1]:.4f}"
        return summary
    summary = {"state": f"failed: {result['failed']}" if result.get("failed") else "finished"}
    for split in ("validation", "test"):
        if tuple(scores) == (LOSS, PERPLEXITY):
            nats, words = (_exact(result, score, split) for score in scores)
            summary[f"{split} loss"] = f"{nats} (perplexity {words})"
        else:
            summary |= {f"{split} {s.title}": shown(result, s, split) for s in scores}
    for name in ("steps", "tokens", "best_step", "trainable_parameters", "frozen_parameters"):
        if isinstance(result.get(name), int):
            summary[name.replace("_", " ")] = f"{result[name]:,}"
    if FINITE.holds(result.get("seconds_per_step")):
        summary["time per step (median)"] = f"{1000 * result['seconds_per_step']:.1f} ms"
    for name, size in (result.get("bytes") or {}).items():
        if FINITE.holds(size):
            summary[f"memory: {name.replace('_', ' ')}"] = f"{size / 2**20:.1f} MiB"
    summary |= {f"memory: {what}": text for what, text in beside(result)}
    summary["learning rate"] = rate_text(result.get("lr"))
    summary["seed"] = result.get("seed")
    return summary


def _settings(config: Mapping[str, Any]) -> str:
    parts = [_details(part.capitalize(), config.get(part)) for part in ("corpus", "environment")]
    return "".join(parts)


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def _table(headings: Iterable[str], rows: Sequence[Sequence[str]], *, words: bool = False) -> str:
    """A table that scrolls within itself on a narrow screen, its first column staying in sight."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    body = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    kind = ' class="words"' if words else ""
    return (
        f'<div class="scroll" tabindex="0"><table{kind}>{head}\n<tbody>{body}</tbody></table></div>'
    )


def _key(columns: Mapping[str, str]) -> str:
    lines = (f"<p><b>{escape(name)}</b>: {escape(text)}</p>" for name, text in columns.items())
    swipe = '<p class="swipe">Swipe the table sideways for its other columns.</p>'
    return f'<div class="key">{swipe}{"".join(lines)}</div>'


def _list(sentences: Sequence[str]) -> str:
    return "<ul>" + "\n".join(f"<li>{escape(text)}</li>" for text in sentences) + "</ul>"


def _notes(footnotes: Sequence[str]) -> str:
    lines = (f"<p>[{number}] {escape(note)}</p>" for number, note in enumerate(footnotes, 1))
    return f'<div class="key">{"".join(lines)}</div>'


def _figures(captions: Mapping[Path, str]) -> str:
    if not captions:
        return "<p>Nothing recorded yet.</p>"
    figures = []
    for path, text in captions.items():
        data = base64.b64encode(path.read_bytes()).decode()
        caption = escape(text)
        figures.append(
            f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return f'<div class="figures">{"".join(figures)}</div>'


def _command(command: Any) -> str:
    return f"<pre>{escape(str(command))}</pre>" if command else ""


def _details(title: str, content: Any) -> str:
    """A section that opens on a tap; nothing if there is nothing in it."""
    if not isinstance(content, Mapping) or not content:
        return ""
    return f"<details><summary>{escape(title)}</summary>{_definitions(content)}</details>"


def _definitions(content: Mapping[str, Any]) -> str:
    """Names and values as a two-column table; nested names joined by dots."""
    return _table((), list(_flat(content)), words=True)


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield prefix + name, ", ".join(str(item) for item in value)
        else:
            yield prefix + name, "–" if value is None else str(value)
