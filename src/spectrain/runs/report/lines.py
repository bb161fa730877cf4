"""Charts that lay runs over each other: losses, scores, learning rates, the end of spectra, memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spectrain.runs.curves import Curve, column, curve_of, read_spectra, scores_of
from spectrain.runs.files import read_rows
from spectrain.runs.records import read_result
from spectrain.runs.report.axes import Array
from spectrain.runs.report.chart import Chart, figure_of
from spectrain.runs.report.dynamics import Dynamics
from spectrain.runs.report.series import Rug, Series
from spectrain.runs.rows import Row
from spectrain.runs.scores import table_order
from spectrain.runs.statistics import mean, standard_deviation
from spectrain.tasks.score import LOSS, Score

ROWS_OF_EVENTS = 12  # at most so many
LAYERS = 4  # at most so many whose spectra are drawn
_BAND = "mean over seeds, with a band of one standard deviation"


@dataclass(frozen=True)
class Line:
    """What is drawn as one line: a run, or the runs of a method with different seeds."""

    name: str
    look: int
    directories: tuple[Path, ...]


def curves(lines: Sequence[Line], scores: Sequence[Score]) -> list[str]:
    """The figures of losses, of each other score, and of learning rates."""
    known = [(line, c) for line in lines if (c := curve_of(line.directories)) is not None]
    own_time = [(line, c) for line, c in known if np.isfinite(c.seconds).all()]
    others = {score.key: score for score in scores if score.key != LOSS.key}
    return [
        _losses(known, scores, _events(lines)),
        *(_score(lines, score) for score in others.values()),
        _losses(own_time, scores, (), by_time=True),
        _rates(lines),
    ]


def _losses(
    known: Sequence[tuple[Line, Curve]],
    scores: Sequence[Score],
    rugs: Sequence[Rug],
    *,
    by_time: bool = False,
) -> str:
    if not known:
        return ""
    series = []
    for line, c in known:
        x = c.seconds if by_time else c.steps
        low, high = _band(c.loss, c.deviation)
        series.append(Series(line.name, x, c.loss, line.look, low, high, note="training"))
        at = c.seconds_at(c.validation_steps) if by_time else c.validation_steps
        dots = Series(line.name, at, c.validation, line.look, dots=True, note="validation")
        series.append(dots)
    lowest, highest = zip(*(c.settled() for _, c in known), strict=True)
    several = any(len(line.directories) > 1 for line, _ in known)
    smoothed = f"smoothed, {_BAND}" if several else "smoothed over the last 2 % of a run"
    marks = "validation loss, the last on more of the data" if LOSS in scores else "validation loss"
    caption = f"Lines: training loss, {smoothed}. Marks, where it was measured: {marks}."
    return figure_of(
        Chart(
            "Loss by time" if by_time else "Loss by step",
            "The same losses against training time, evaluation excluded." if by_time else caption,
            "training time (s)" if by_time else "step",
            "loss (nats per token)" if LOSS in scores else "loss",
            series,
            view=(min(lowest), max(highest)),
            rugs=rugs,
        )
    )


def _band(values: Array, deviation: Array) -> tuple[Array | None, Array | None]:
    """One deviation to both sides; none where there is no spread, as with a single seed."""
    return (values - deviation, values + deviation) if deviation.any() else (None, None)


def _events(lines: Sequence[Line]) -> list[Rug]:
    """When something happened to the factors of each line's first run; and its best step."""
    rugs = []
    for line in lines:
        prefix = f"{line.name}: " if len(lines) > 1 else ""
        for name, steps in Dynamics(line.directories[0]).events().items():
            rugs.append(Rug(prefix + name, steps, line.look))
        best = (read_result(line.directories[0]) or {}).get("best_step")
        if best is not None and len(lines) == 1:
            rugs.append(Rug("best step", np.array([best], dtype=float), line.look))
    return rugs[:ROWS_OF_EVENTS]


def _score(lines: Sequence[Line], score: Score) -> str:
    known = [(line, c) for line in lines if (c := scores_of(line.directories, score)) is not None]
    if not known:
        return ""
    several = any(len(line.directories) > 1 for line, _ in known)
    over = f": {_BAND}; where seeds stopped at different steps, as far as all of them went"
    better = "Higher" if score.higher_is_better else "Lower"
    lowest, highest = zip(*(c.settled() for _, c in known), strict=True)
    return figure_of(
        Chart(
            f"Validation {score.title} by step",
            f"Validation {score.title} against step{over if several else ''}. {better} is better.",
            "step",
            f"validation {score.title}",
            [
                Series(line.name, c.steps, c.values, line.look, *_band(c.values, c.deviation))
                for line, c in known
            ],
            view=(min(lowest), max(highest)),
        )
    )


def _rates(lines: Sequence[Line]) -> str:
    series = [
        Series(
            line.name, *column(read_rows(line.directories[0] / "metrics.jsonl"), "lr"), line.look
        )
        for line in lines
    ]
    caption = "The learning rate of the factors, before what events and warm-ups make of it."
    return figure_of(Chart("Learning rate", caption, "step", "learning rate", series))


def quality_by_memory(rows: Sequence[Row], looks: dict[str, int], scores: Sequence[Score]) -> str:
    """The score that people know on test data against the bytes of weights, gradients, optimizer."""
    score = table_order(scores)[0]
    known = [row for row in rows if row.values[score] and row.state_bytes > 0]
    series = []
    for row in known:
        centre, spread = mean(row.values[score]), standard_deviation(row.values[score]) or 0.0
        y = np.array([centre])
        at = np.array([row.state_bytes / 2**20])
        low, high = _band(y, np.array([spread]))
        series.append(Series(row.arm.title, at, y, looks[row.arm.key], low, high, dots=True))
    better = "Higher" if score.higher_is_better else "Lower"
    return figure_of(
        Chart(
            "Quality by memory",
            f"Test {score.title} (mean, and standard deviation over seeds) against the memory of "
            f"weights, gradients and optimizer state. {better} and further left is better.",
            "weights + gradients + optimizer (MiB)",
            f"test {score.title}",
            series,
            from_zero=True,
        )
    )


def ends_of_spectra(lines: Sequence[Line]) -> str:
    """Singular values at the end over those at the start: of one run several layers, of several runs
    the first layer that all of them recorded."""
    found = {line: spectra for line in lines if (spectra := spectra_of(line.directories[0]))}
    if not found:
        return ""
    (line, first), series = next(iter(found.items())), []
    if len(lines) == 1:
        for look, (layer, (start, end)) in enumerate([*first.items()][:LAYERS], 1):
            series += [_spectrum(layer, start, look, ghost=True), _spectrum(layer, end, look)]
        which = "of a few layers"
    else:
        layers = [name for name in first if all(name in spectra for spectra in found.values())]
        if not layers:
            return ""
        series = [_spectrum("at the start", first[layers[0]][0], line.look, ghost=True)]
        for line, spectra in found.items():
            series.append(_spectrum(line.name, spectra[layers[0]][1], line.look))
        which = f"of {layers[0]}"
    return figure_of(
        Chart(
            "Singular values, start and end",
            f"Singular values {which}: thin at the start, thick at the end of what was recorded.",
            "index of singular value",
            "singular value",
            series,
            logarithmic=True,
        )
    )


def spectra_of(directory: Path) -> dict[str, tuple[Array, Array]]:
    """Singular values of a run's layers at its start and at its end, as far as it has come."""
    whole = read_spectra(directory)
    if whole:
        return {layer: (values["initial"], values["final"]) for layer, values in whole.items()}
    recorded = Dynamics(directory).spectra()
    return {layer: (s.values[0], s.values[-1]) for layer, s in recorded.items()}


def _spectrum(name: str, values: Array, look: int, *, ghost: bool = False) -> Series:
    index = np.arange(1.0, len(values) + 1)
    note = "start" if ghost else "end"
    return Series(name, index, values, look, ghost=ghost, note=note)
