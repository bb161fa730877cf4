"""What all pictures have in common: colours that all can tell apart, axes, spectra, PNG files."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from spectrain.runs.curves import Array
from spectrain.runs.files import write_atomic
from spectrain.tasks.score import LOSS, Score

# The colours of Okabe and Ito, told apart by all kinds of colour vision, and two of Tol's.
COLOURS = (
    *("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#882255", "#999933"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
LINES: tuple[Any, ...] = (
    *("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3))),
    *((0, (8, 2, 1, 2)), (0, (3, 3)), (0, (12, 3))),
)


def style_of(place: int) -> dict[str, Any]:
    """The look of the arm at ``place``: 9 colours with 10 markers and lines are 90 combinations."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": LINES[place % len(LINES)],
    }


def loss_label(scores: Sequence[Score]) -> str:
    """Of the axis of losses: only those that are a score have a unit."""
    return "loss (nats per token)" if LOSS in scores else "loss"


def draw_spectrum(axes: Any, spectrum: Array, **style: Any) -> None:
    """Descending singular values over their index, from 1."""
    axes.set_yscale("log")
    axes.plot(np.arange(1, len(spectrum) + 1), spectrum, linewidth=1.4, **style)


def legible(name: str) -> str:
    """A name from a file as text for a picture: in one line, not too long, no formula."""
    shown = "".join(character if character.isprintable() else "?" for character in name[:60])
    return shown.replace("$", r"\$")


def new_figure(xlabel: str, ylabel: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(6, 4.2), dpi=180, layout="constrained")  # legible on a phone too
    axes = figure.subplots()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Figure, path: Path) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomic(path, buffer.getvalue())
    return path
