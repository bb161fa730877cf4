"""Pictures of a single run."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from spectrain.runs.canvas import (
    COLOURS,
    LINES,
    MARKERS,
    draw_spectrum,
    legible,
    loss_label,
    new_figure,
    save,
)
from spectrain.runs.curves import column, read_curve, read_spectra, scores_of
from spectrain.runs.files import read_rows
from spectrain.runs.records import read_config, read_result
from spectrain.runs.scores import scores_from_json
from spectrain.tasks.score import LOSS, Score

LAYERS = 4  # at most so many layers in a run's picture of spectra


def plot_run(directory: Path) -> list[Path]:
    """Draw one run's loss, learning rate, scores and spectra into its directory; the files written."""
    scores = scores_from_json(read_config(directory) or {})
    figures = {
        "loss.png": _run_loss(directory, scores),
        "score.png": _run_scores(directory, scores),
        "spectra.png": _run_spectra(directory),
    }
    return [
        save(figure, directory / name) for name, figure in figures.items() if figure is not None
    ]


def _run_loss(directory: Path, scores: Sequence[Score]) -> Figure | None:
    curve = read_curve(directory)
    if curve is None:
        return None
    figure, axes = new_figure("step", loss_label(scores))
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
    """Every score but the loss, which has a picture of its own, on validation data."""
    curves = {
        score: curve
        for score in scores
        if score.key != LOSS.key and (curve := scores_of([directory], score)) is not None
    }
    if not curves:
        return None
    titles = [legible(score.title) for score in curves]
    figure, axes = new_figure("step", f"validation {', '.join(titles)}")
    for place, (title, curve) in enumerate(zip(titles, curves.values(), strict=True)):
        look = {
            "color": COLOURS[(place + 1) % len(COLOURS)],
            "linestyle": LINES[place % len(LINES)],
        }
        mark = {"marker": MARKERS[place % len(MARKERS)], "markersize": 4, "linewidth": 1.4}
        every = max(1, len(curve.steps) // 12)
        axes.plot(curve.steps, curve.values, **look, **mark, markevery=every, label=title)
    best = (read_result(directory) or {}).get("best_step")
    if best is not None:
        axes.axvline(best, color="0.4", linestyle=":", linewidth=1.2, label=f"best step: {best:,}")
    axes.legend(frameon=False)
    return figure


def _run_spectra(directory: Path) -> Figure | None:
    spectra = read_spectra(directory)
    layers = list(spectra)[:LAYERS]
    if not layers:
        return None
    figure, axes = new_figure("index of singular value", "singular value")
    for place, layer in enumerate(layers):
        colour = COLOURS[place]
        draw_spectrum(axes, spectra[layer]["initial"], color=colour, linestyle="--")
        style = {"color": colour, "marker": MARKERS[place], "markersize": 5}
        every = max(1, len(spectra[layer]["final"]) // 8)
        draw_spectrum(axes, spectra[layer]["final"], **style, markevery=every, label=legible(layer))
    axes.legend(title="dashed: initial, solid: final", frameon=False, fontsize=8)
    return figure
