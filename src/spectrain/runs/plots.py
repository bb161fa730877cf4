"""Pictures of runs and comparisons, as PNG files. Markers and line styles carry what colours do."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from spectrain.runs.compare import Comparison, scores_from
from spectrain.runs.curves import Curve, column, mean_curve, read_curve
from spectrain.runs.files import read_rows, write_atomic
from spectrain.runs.records import FINITE, SPECTRA, read_config, read_record, read_result
from spectrain.runs.summary import Row, summarise
from spectrain.runs.trials import Trial
from spectrain.tasks.score import PERPLEXITY, Score

# The colours of Okabe and Ito, told apart by all kinds of colour vision.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)))
LAYERS = 4  # at most so many layers in a run's picture of spectra


def plot_comparison(comparison: Comparison) -> list[Path]:
    """Draw what a comparison has so far into its directory; the files written."""
    shown = shown_trials(comparison)
    curves: dict[str, Curve] = {}
    for arm, trials in shown.items():
        found = [read_curve(comparison.trial_directory(trial)) for trial in trials]
        if known := [curve for curve in found if curve is not None]:
            mean = mean_curve(known)
            if len(mean.steps):  # that all seeds have
                curves[arm] = mean
    titles = {arm.key: _legible(arm.title) for arm in comparison.plan.arms}
    spectra = {
        arm: content
        for arm, trials in shown.items()
        if (content := read_record(comparison.trial_directory(trials[0]) / "spectra.json", SPECTRA))
    }
    scores = comparison.plan.scores
    words = "loss (nats per token)" if PERPLEXITY in scores else "loss"
    shown_score = PERPLEXITY if PERPLEXITY in scores else scores[0]
    name = "perplexity" if shown_score == PERPLEXITY else "score"
    figures = {
        "loss_by_step.png": _losses(curves, titles, words, by_time=False),
        "loss_by_time.png": _losses(curves, titles, words, by_time=True),
        "score_by_step.png": _scores_of_arms(comparison, shown, titles),
        f"{name}_by_memory.png": _memory(comparison, titles, shown_score),
        "spectra.png": _spectra_of_arms(spectra, titles),
    }
    return [
        _save(figure, comparison.directory / name)
        for name, figure in figures.items()
        if figure is not None
    ]


def shown_trials(comparison: Comparison) -> dict[str, list[Trial]]:
    """Finished trials to draw: those of the report seeds; before there are any, each method's best
    so far, or its first."""
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


def _style(titles: dict[str, str], arm: str) -> dict[str, Any]:
    """The same look for a method in every picture of a comparison."""
    place = list(titles).index(arm)
    return {
        "color": COLOURS[place % len(COLOURS)],
        # Where the colours begin anew the markers are one further.
        "marker": MARKERS[(place + place // len(COLOURS)) % len(MARKERS)],
        "linestyle": LINES[(place + place // len(COLOURS)) % len(LINES)],
    }


def _losses(
    curves: dict[str, Curve], titles: dict[str, str], words: str, *, by_time: bool
) -> Figure | None:
    """Smoothed training loss as lines with bands, validation loss as markers."""
    if by_time:
        curves = {arm: curve for arm, curve in curves.items() if np.isfinite(curve.seconds).all()}
    if not curves:
        return None
    figure, axes = _canvas("training time (s)" if by_time else "step", words)
    top, bottom = -np.inf, np.inf
    for arm, curve in curves.items():
        style = _style(titles, arm)
        x = curve.seconds if by_time else curve.steps
        at = curve.seconds_at(curve.validation_steps) if by_time else curve.validation_steps
        axes.plot(x, curve.loss, color=style["color"], linestyle=style["linestyle"], linewidth=1.4)
        lower, upper = curve.loss - curve.deviation, curve.loss + curve.deviation
        axes.fill_between(x, lower, upper, color=style["color"], alpha=0.15, linewidth=0)
        axes.plot(at, curve.validation, color=style["color"], marker=style["marker"], ls="", ms=5)
        axes.plot([], [], **style, label=titles[arm])
        # The steep first fifth would squeeze the rest into a line.
        late = curve.loss[curve.steps >= curve.steps[-1] / 5]
        top = max(top, late.max(), curve.validation[-1:].max(initial=-np.inf))
        bottom = min(bottom, late.min(), curve.validation.min(initial=np.inf))
    margin = 0.05 * (top - bottom) or 0.1
    axes.set_ylim(bottom - margin, top + margin)
    measured = any(len(curve.validation) for curve in curves.values())
    axes.legend(title="lines: training, markers: validation" if measured else None, frameon=False)
    return figure


def _scores_of_arms(
    comparison: Comparison, shown: dict[str, list[Trial]], titles: dict[str, str]
) -> Figure | None:
    """The deciding score on validation data against step; None where that is the loss, shown already."""
    score = comparison.plan.score
    if score.key == "loss":
        return None
    figure, axes = _canvas("step", f"validation {score.title}")
    drawn = False
    for arm, trials in shown.items():
        found = [_validations(comparison.trial_directory(trial), score) for trial in trials]
        steps = sorted(set.intersection(*(set(own) for own in found)))
        if not steps:
            continue
        values = np.array([[own[step] for step in steps] for own in found])
        mean, style = values.mean(0), _style(titles, arm)
        axes.plot(steps, mean, **style, markevery=max(1, len(steps) // 8), ms=5, label=titles[arm])
        if len(found) > 1:
            spread = values.std(0, ddof=1)
            band = {"color": style["color"], "alpha": 0.12, "linewidth": 0}
            axes.fill_between(steps, mean - spread, mean + spread, **band)
        drawn = True
    axes.legend(frameon=False, fontsize=8)
    return figure if drawn else None


def _validations(directory: Path, score: Score) -> dict[float, float]:
    """A run's score on validation data, as it is shown, by step."""
    steps, values = column(read_rows(directory / "metrics.jsonl"), f"validation_{score.key}")
    return {s: score.shown(score.cost(v)) for s, v in zip(steps, values, strict=True)}


def _memory(comparison: Comparison, titles: dict[str, str], score: Score) -> Figure | None:
    """The final score on test data against the bytes of training state."""
    rows = [row for row in summarise(comparison).rows if row.losses and row.state_bytes > 0]
    if not rows:
        return None
    figure, axes = _canvas(
        "training state: weights + gradients + optimizer (MiB)", f"test {score.title}"
    )
    means = {}
    for row in rows:
        style = _style(titles, row.arm.key) | {"linestyle": ""}
        values = np.array(row.shown(comparison.plan.scores, score))
        means[row.arm.key] = float(values.mean())
        error = values.std(ddof=1) if len(values) > 1 else None
        axes.errorbar(_mib(row), values.mean(), error, **style, markersize=8, capsize=4)
    axes.margins(y=0.15)
    axes.set_xlim(0, 1.3 * max(_mib(row) for row in rows))  # leaves room for the names
    _label(figure, axes, {row.arm.title: (_mib(row), means[row.arm.key]) for row in rows})
    return figure


def _label(figure: Figure, axes: Any, points: dict[str, tuple[float, float]]) -> None:
    """Write each name to the right of its point, moved up where names would overlap."""
    figure.draw_without_rendering()  # settles the layout, on which the positions depend
    scale = 72 / figure.dpi  # points per pixel
    taken: list[tuple[float, float]] = []
    for title, point in sorted(points.items(), key=lambda item: item[1][1]):
        x, y = (value * scale for value in axes.transData.transform(point))
        height = y
        for other_x, other_height in taken:
            if abs(other_x - x) < 70 and abs(other_height - height) < 12:
                height = other_height + 12
        taken.append((x, height))
        arrow = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6} if height > y else None
        axes.annotate(
            _legible(title),
            point,
            xytext=(14, height - y),
            textcoords="offset points",
            va="center",
            arrowprops=arrow,
        )


def _mib(row: Row) -> float:
    return row.state_bytes / 2**20


def _spectra_of_arms(spectra: dict[str, dict[str, Any]], titles: dict[str, str]) -> Figure | None:
    """Final singular values of one layer that all methods recorded, and the initial ones."""
    spectra = {arm: done for arm, content in spectra.items() if (done := _ended(content))}
    contents = list(spectra.values())
    layers = [name for name in contents[0] if all(name in c for c in contents)] if contents else []
    if not layers:
        return None
    figure, axes = _canvas("index of singular value", "singular value")
    axes.set_title(_legible(layers[0]), fontsize=10)
    _spectrum(axes, contents[0][layers[0]]["initial"], color="0.5", linestyle="--", label="initial")
    for arm, content in spectra.items():
        values = content[layers[0]]["final"]
        style = _style(titles, arm) | {"linestyle": "-", "markevery": max(1, len(values) // 8)}
        _spectrum(axes, values, **style, markersize=5, label=titles[arm])
    axes.legend(frameon=False)
    return figure


def _ended(spectra: dict[str, Any]) -> dict[str, Any]:
    """The layers whose final singular values are there: a diverged run has initial ones only."""
    both = "initial", "final"
    return {layer: v for layer, v in spectra.items() if all(v.get(when) for when in both)}


def _spectrum(axes: Any, values: Sequence[float], **style: Any) -> None:
    """Singular values over their index, from 1; zeros and rounding errors have no logarithm."""
    spectrum = np.sort(np.array(values, dtype=float))[::-1]
    spectrum[spectrum < 1e-7 * spectrum[0]] = np.nan
    axes.set_yscale("log")
    axes.plot(np.arange(1, len(spectrum) + 1), spectrum, linewidth=1.4, **style)


def plot_run(directory: Path) -> list[Path]:
    """Draw one run's loss, learning rate and spectra into its directory; the files written."""
    config = read_config(directory) or {}
    scores = scores_from(config.get("scores"))
    figures = {
        "loss.png": _run_loss(directory, scores),
        "score.png": _run_scores(directory, scores),
        "spectra.png": _run_spectra(directory),
    }
    return [
        _save(figure, directory / name) for name, figure in figures.items() if figure is not None
    ]


def _run_loss(directory: Path, scores: Sequence[Score]) -> Figure | None:
    curve = read_curve(directory)
    if curve is None:
        return None
    figure, axes = _canvas("step", "loss (nats per token)" if PERPLEXITY in scores else "loss")
    axes.plot(curve.steps, curve.loss, color=COLOURS[1], label="training loss (smoothed)")
    if len(curve.validation):
        marks = {"color": COLOURS[2], "marker": "o", "linestyle": ""}
        axes.plot(curve.validation_steps, curve.validation, **marks, label="validation loss")
    steps, rates = column(read_rows(directory / "metrics.jsonl"), "lr")
    if len(steps):
        other = axes.twinx()
        other.plot(steps, rates, color="0.5", linestyle=":", linewidth=1)
        other.set_ylabel("learning rate (dotted)")
        other.set_ylim(bottom=0)
        other.spines["top"].set_visible(False)
        axes.plot([], [], color="0.5", linestyle=":", label="learning rate")
    axes.legend(frameon=False)
    return figure


def _run_scores(directory: Path, scores: Sequence[Score]) -> Figure | None:
    """Scores other than the loss on validation data against step."""
    found = {
        s.title: own for s in scores if s.key != "loss" and (own := _validations(directory, s))
    }
    if not found:
        return None
    figure, axes = _canvas("step", "on validation data")
    for place, (title, values) in enumerate(found.items()):
        look = {"color": COLOURS[place + 1], "linestyle": LINES[place]}
        axes.plot(list(values), list(values.values()), **look, linewidth=1.4, label=title)
    best = (read_result(directory) or {}).get("best_step")
    if FINITE.holds(best):
        axes.axvline(best, color="0.5", linestyle=":", linewidth=1, label=f"best: step {best}")
    axes.legend(frameon=False)
    return figure


def _run_spectra(directory: Path) -> Figure | None:
    spectra = _ended(read_record(directory / "spectra.json", SPECTRA) or {})
    layers = list(spectra)[:LAYERS]
    if not layers:
        return None
    figure, axes = _canvas("index of singular value", "singular value")
    for place, layer in enumerate(layers):
        colour = COLOURS[place]
        _spectrum(axes, spectra[layer]["initial"], color=colour, linestyle="--")
        style = {"color": colour, "marker": MARKERS[place], "markersize": 5}
        every = max(1, len(spectra[layer]["final"]) // 8)
        _spectrum(axes, spectra[layer]["final"], **style, markevery=every, label=_legible(layer))
    axes.legend(title="dashed: initial, solid: final", frameon=False, fontsize=8)
    return figure


def _legible(name: str) -> str:
    """A name from a file as text for a picture: in one line, not too long, no formula."""
    shown = "".join(character if character.isprintable() else "?" for character in name[:60])
    return shown.replace("$", r"\$")


def _canvas(xlabel: str, ylabel: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(6, 4.2), dpi=180, layout="constrained")  # legible on a phone too
    axes = figure.subplots()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomic(path, buffer.getvalue())
    return path
