"""Pictures of comparisons, as PNG files. Markers and line styles carry what colours do."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from spectrain.runs.canvas import (
    draw_spectrum,
    legible,
    loss_label,
    new_figure,
    save,
    style_of,
)
from spectrain.runs.compare import Comparison
from spectrain.runs.curves import (
    Array,
    Curve,
    ScoreCurve,
    curve_of,
    read_spectra,
    scores_of,
)
from spectrain.runs.rows import Row, drawn_trials
from spectrain.runs.scores import table_order
from spectrain.runs.summary import summarise
from spectrain.tasks.score import LOSS, Score


def plot_comparison(comparison: Comparison) -> list[Path]:
    """Draw what a comparison has so far into its directory; the files written."""
    shown = {
        arm: [comparison.trial_directory(trial) for trial in trials]
        for arm, trials in drawn_trials(comparison).items()
    }
    curves = {arm: curve for arm, runs in shown.items() if (curve := curve_of(runs)) is not None}
    scores = comparison.plan.scores
    titles = {arm.key: legible(arm.title) for arm in comparison.plan.arms}
    spectra = {arm: found for arm, runs in shown.items() if (found := read_spectra(runs[0]))}
    figures = {
        "loss_by_step.png": _losses(curves, titles, scores, by_time=False),
        "loss_by_time.png": _losses(curves, titles, scores, by_time=True),
        "score_by_step.png": _scores(_score_curves(shown, scores[0]), titles, scores[0]),
        memory_picture(scores): _memory(comparison, titles),
        "spectra.png": _spectra_of_arms(spectra, titles),
    }
    return [
        save(figure, comparison.directory / name)
        for name, figure in figures.items()
        if figure is not None
    ]


def memory_picture(scores: Sequence[Score]) -> str:
    """The name of the file."""
    known = table_order(scores)[0]
    return "perplexity_by_memory.png" if known.exponential else "score_by_memory.png"


def _score_curves(shown: Mapping[str, Sequence[Path]], score: Score) -> dict[str, ScoreCurve]:
    """Of the score that decides; the loss has pictures of its own."""
    if score.key == LOSS.key:
        return {}
    return {
        arm: curve for arm, runs in shown.items() if (curve := scores_of(runs, score)) is not None
    }


def _style(titles: dict[str, str], arm: str) -> dict[str, Any]:
    """The same look for a method in every picture of a comparison."""
    return style_of(list(titles).index(arm))


def _legend(axes: Any, title: str | None = None) -> None:
    many = len(axes.get_legend_handles_labels()[1]) > 8
    axes.legend(title=title, frameon=False, ncols=2 if many else 1, fontsize=8 if many else None)


def _losses(
    curves: dict[str, Curve], titles: dict[str, str], scores: Sequence[Score], *, by_time: bool
) -> Figure | None:
    """Smoothed training loss as lines with bands, validation loss as markers."""
    if by_time:
        curves = {arm: curve for arm, curve in curves.items() if np.isfinite(curve.seconds).all()}
    if not curves:
        return None
    figure, axes = new_figure("training time (s)" if by_time else "step", loss_label(scores))
    for arm, curve in curves.items():
        style = _style(titles, arm)
        x = curve.seconds if by_time else curve.steps
        at = curve.seconds_at(curve.validation_steps) if by_time else curve.validation_steps
        axes.plot(x, curve.loss, color=style["color"], linestyle=style["linestyle"], linewidth=1.4)
        lower, upper = curve.loss - curve.deviation, curve.loss + curve.deviation
        axes.fill_between(x, lower, upper, color=style["color"], alpha=0.15, linewidth=0)
        axes.plot(at, curve.validation, color=style["color"], marker=style["marker"], ls="", ms=5)
        axes.plot([], [], **style, label=titles[arm])
    _zoom(axes, [curve.settled() for curve in curves.values()])
    validated = LOSS in scores or any(len(curve.validation) for curve in curves.values())
    _legend(axes, "lines: training, markers: validation" if validated else None)
    return figure


def _scores(curves: dict[str, ScoreCurve], titles: dict[str, str], score: Score) -> Figure | None:
    """A score on validation data, with bands."""
    if not curves:
        return None
    figure, axes = new_figure("step", f"validation {legible(score.title)}")
    for arm, curve in curves.items():
        style = _style(titles, arm)
        lower, upper = curve.values - curve.deviation, curve.values + curve.deviation
        axes.fill_between(curve.steps, lower, upper, color=style["color"], alpha=0.15, linewidth=0)
        look = style | {"markersize": 5, "linewidth": 1.4, "label": titles[arm]}
        axes.plot(curve.steps, curve.values, **look, markevery=max(1, len(curve.steps) // 8))
    _zoom(axes, [curve.settled() for curve in curves.values()])
    _legend(axes)
    return figure


def _zoom(axes: Any, ranges: Sequence[tuple[float, float]]) -> None:
    """Show what lies between the lowest and the highest of ``ranges``."""
    bottom, top = min(low for low, _ in ranges), max(high for _, high in ranges)
    margin = 0.05 * (top - bottom) or 0.1
    axes.set_ylim(bottom - margin, top + margin)


def _memory(comparison: Comparison, titles: dict[str, str]) -> Figure | None:
    """Final test perplexity, or the score that decides, against the bytes of training state."""
    score = table_order(comparison.plan.scores)[0]
    rows = [row for row in summarise(comparison).rows if row.values[score] and row.state_bytes > 0]
    if not rows:
        return None
    figure, axes = new_figure(
        "training state: weights + gradients + optimizer (MiB)", f"test {legible(score.title)}"
    )
    for row in rows:
        style = _style(titles, row.arm.key) | {"linestyle": ""}
        values = np.array(row.values[score])
        error = values.std(ddof=1) if len(values) > 1 else None
        axes.errorbar(_mib(row), values.mean(), error, **style, markersize=8, capsize=4)
    axes.margins(y=0.15)
    axes.set_xlim(0, 1.3 * max(_mib(row) for row in rows))  # leaves room for the names
    _label(figure, axes, [(row, float(np.mean(row.values[score]))) for row in rows])
    return figure


def _label(figure: Figure, axes: Any, heights: Sequence[tuple[Row, float]]) -> None:
    """Write each method's name to the right of its point, moved up where names would overlap."""
    figure.draw_without_rendering()  # settles the layout, on which the positions depend
    scale = 72 / figure.dpi  # points per pixel
    taken: list[tuple[float, float]] = []
    for row, mean in sorted(heights, key=lambda pair: pair[1]):
        point = _mib(row), mean
        x, y = (value * scale for value in axes.transData.transform(point))
        height = y
        for other_x, other_height in taken:
            if abs(other_x - x) < 70 and abs(other_height - height) < 12:
                height = other_height + 12
        taken.append((x, height))
        arrow = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6} if height > y else None
        axes.annotate(
            legible(row.arm.title),
            point,
            xytext=(14, height - y),
            textcoords="offset points",
            va="center",
            arrowprops=arrow,
        )


def _mib(row: Row) -> float:
    return row.state_bytes / 2**20


def _spectra_of_arms(
    spectra: dict[str, dict[str, dict[str, Array]]], titles: dict[str, str]
) -> Figure | None:
    """Final singular values of one layer that all methods recorded, and the initial ones."""
    contents = list(spectra.values())
    layers = [name for name in contents[0] if all(name in c for c in contents)] if contents else []
    if not layers:
        return None
    figure, axes = new_figure("index of singular value", "singular value")
    axes.set_title(legible(layers[0]), fontsize=10)
    draw_spectrum(
        axes, contents[0][layers[0]]["initial"], color="0.5", linestyle="--", label="initial"
    )
    for arm, content in spectra.items():
        values = content[layers[0]]["final"]
        style = _style(titles, arm) | {"linestyle": "-", "markevery": max(1, len(values) // 8)}
        draw_spectrum(axes, values, **style, markersize=5, label=titles[arm])
    _legend(axes)
    return figure
