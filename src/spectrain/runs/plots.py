"""Pictures of runs and comparisons, as PNG files. Markers and line styles carry what colours do."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from spectrain.runs.compare import Comparison
from spectrain.runs.curves import Curve, column, mean_curve, read_curve
from spectrain.runs.files import read_rows, write_atomic
from spectrain.runs.records import SPECTRA, read_record
from spectrain.runs.summary import Row, summarise
from spectrain.runs.trials import Trial

# The colours of Okabe and Ito, told apart by all kinds of colour vision.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)))
LAYERS = 4  # at most so many layers in a run's picture of spectra


def plot_comparison(comparison: Comparison) -> list[Path]:
    """Draw what a comparison has so far into its directory; the files written."""
    shown = _shown_trials(comparison)
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
    figures = {
        "loss_by_step.png": _losses(curves, titles, by_time=False),
        "loss_by_time.png": _losses(curves, titles, by_time=True),
        "perplexity_by_memory.png": _memory(comparison, titles),
        "spectra.png": _spectra_of_arms(spectra, titles),
    }
    return [
        _save(figure, comparison.directory / name)
        for name, figure in figures.items()
        if figure is not None
    ]


def _shown_trials(comparison: Comparison) -> dict[str, list[Trial]]:
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
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": LINES[place % len(LINES)],
    }


def _losses(curves: dict[str, Curve], titles: dict[str, str], *, by_time: bool) -> Figure | None:
    """Smoothed training loss as lines with bands, validation loss as markers."""
    if by_time:
        curves = {arm: curve for arm, curve in curves.items() if np.isfinite(curve.seconds).all()}
    if not curves:
        return None
    figure, axes = _canvas("training time (s)" if by_time else "step", "loss (nats per token)")
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
    axes.legend(title="lines: training, markers: validation", frameon=False)
    return figure


def _memory(comparison: Comparison, titles: dict[str, str]) -> Figure | None:
    """Final test perplexity against the bytes of training state."""
    rows = [row for row in summarise(comparison).rows if row.losses and row.state_bytes > 0]
    if not rows:
        return None
    figure, axes = _canvas(
        "training state: weights + gradients + optimizer (MiB)", "test perplexity"
    )
    for row in rows:
        style = _style(titles, row.arm.key) | {"linestyle": ""}
        values = np.array(row.perplexities)
        error = values.std(ddof=1) if len(values) > 1 else None
        axes.errorbar(_mib(row), values.mean(), error, **style, markersize=8, capsize=4)
    axes.margins(y=0.15)
    axes.set_xlim(0, 1.3 * max(_mib(row) for row in rows))  # leaves room for the names
    _label(figure, axes, rows)
    return figure


def _label(figure: Figure, axes: Any, rows: Sequence[Row]) -> None:
    """Write each method's name to the right of its point, moved up where names would overlap."""
    figure.draw_without_rendering()  # settles the layout, on which the positions depend
    scale = 72 / figure.dpi  # points per pixel
    taken: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: float(np.mean(row.perplexities))):
        point = _mib(row), float(np.mean(row.perplexities))
        x, y = (value * scale for value in axes.transData.transform(point))
        height = y
        for other_x, other_height in taken:
            if abs(other_x - x) < 70 and abs(other_height - height) < 12:
                height = other_height + 12
        taken.append((x, height))
        arrow = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6} if height > y else None
        axes.annotate(
            _legible(row.arm.title),
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
    figures = {"loss.png": _run_loss(directory), "spectra.png": _run_spectra(directory)}
    return [
        _save(figure, directory / name) for name, figure in figures.items() if figure is not None
    ]


def _run_loss(directory: Path) -> Figure | None:
    curve = read_curve(directory)
    if curve is None:
        return None
    figure, axes = _canvas("step", "loss (nats per token)")
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
