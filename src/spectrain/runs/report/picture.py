"""The picture of a chart as SVG: axes, lines with bands, marks, events, names at the ends of lines.

Lines and bands are paths in the units of the axes (of a logarithmic one in powers of ten), which a
matrix turns into pixels: what stands in the path is what was measured.
"""

from collections.abc import Sequence
from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from spectrain.runs.report import looks
from spectrain.runs.report.axes import Array, Axis
from spectrain.runs.report.series import Rug, Series

WIDTH, HEIGHT = 640, 330  # without events
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 12, 42
NAMES = 118  # pixels beside the plot for the names of lines
ROW = 22  # of events
POINTS = 500  # at most so many of a series
MARKS = 8  # on a line
LETTERS = 14  # of a name at the end of its line; the last ones tell most

Entry = tuple[int, Series]


def picture(
    x: Axis,
    y: Axis,
    labels: tuple[str, str],
    entries: Sequence[Entry],
    rugs: Sequence[Rug],
    *,
    label: str,
) -> str:
    """SVG of a chart. entries: series with the number of their line in the legend."""
    lone = all(series.dots for _, series in entries)
    named = [e for e in entries if lone or not (e[1].dots or e[1].ghost)]
    right = NAMES if len(named) > 1 else RIGHT
    width, height = WIDTH - LEFT - right, HEIGHT - TOP - BOTTOM
    whole = HEIGHT + ROW * len(rugs)
    measured = {entry for entry, series in entries if series.dots}  # these have marks of their own
    drawn = "".join(
        _series(x, y, width, height, entry, series, bare=entry in measured and not series.dots)
        for entry, series in entries
    )
    ends = _ends(x, y, width, height, named) if len(named) > 1 else ""
    return (
        f'<svg class="picture" viewBox="0 0 {WIDTH} {whole}" role="img" '
        f'aria-label="{escape(label)}"><g class="frame">'
        f"{_frame(x, y, labels, width, height, len(rugs))}</g>"
        f'<svg class="plot" x="{LEFT}" y="{TOP}" width="{width}" height="{height}">{drawn}</svg>'
        f'<g class="rugs">{_rugs(x, rugs, width, height)}</g><g class="ends">{ends}</g></svg>'
    )


def _frame(x: Axis, y: Axis, labels: tuple[str, str], width: int, height: int, rows: int) -> str:
    """Grid, ticks and titles of both axes."""
    parts = []
    bottom = TOP + height + ROW * rows
    for value, text in x.ticks(7):
        at = LEFT + width * float(x.share(value))
        parts.append(f'<path class="grid" d="M{at:.1f},{TOP}V{bottom}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 16}" class="middle">{text}</text>')
    for value, text in y.ticks(6):
        at = TOP + height * (1 - float(y.share(value)))
        parts.append(f'<path class="grid" d="M{LEFT},{at:.1f}H{LEFT + width}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" class="end">{text}</text>')
    centre = TOP + height / 2
    parts.append(f'<path class="axis" d="M{LEFT},{TOP}V{TOP + height}H{LEFT + width}"/>')
    parts.append(
        f'<text x="{LEFT + width / 2:.0f}" y="{bottom + 34}" class="middle">{escape(labels[0])}</text>'
        f'<text transform="translate(13,{centre:.0f})rotate(-90)" class="middle">'
        f"{escape(labels[1])}</text>"
    )
    return "".join(parts)


def _series(
    x: Axis, y: Axis, width: int, height: int, entry: int, series: Series, *, bare: bool
) -> str:
    """Band, line and marks of one series; a bare one has no marks."""
    kept = _thinned(series.y)
    at, values = series.x[kept], y.place(series.y[kept])
    matrix = _matrix(x, y, width, height)
    paths = [_edges(series, y, at, kept)] if series.low is not None else []
    kind = "points" if series.dots else "ghost" if series.ghost else "line"
    dashes = looks.dash(series.look) if kind == "line" else ""
    paths.append(f'<path class="{kind}" d="{_path(at, values)}"{dashes}/>')
    chosen = slice(None) if series.dots else slice(None, None, max(1, len(kept) // MARKS))
    across = width * x.share(at[chosen])
    down = height * (1 - y.share(values[chosen]))
    glyph = looks.glyph(series.look)
    places = () if bare or series.ghost else zip(across, down, strict=True)
    marks = "".join(f"M{a:.1f},{d:.1f}{glyph}" for a, d in places)
    return (
        f'<g class="series {looks.colour(series.look)}" data-entry="{entry}" '
        f'data-note="{escape(series.note)}" data-glyph="{glyph}">'
        f'<g class="plane" transform="matrix({matrix})">{"".join(paths)}</g>'
        f'<path class="marks" d="{marks}"/></g>'
    )


def _edges(series: Series, y: Axis, at: Array, kept: NDArray[np.int64]) -> str:
    """The band around a line, or bars through dots."""
    assert series.low is not None
    assert series.high is not None
    lowest = 10**y.low if y.logarithmic else -np.inf  # a band may reach below zero
    low, high = (y.place(np.maximum(v[kept], lowest)) for v in (series.low, series.high))
    if series.dots:
        pairs = zip(at, low, high, strict=True)
        d = "".join(f"M{a:.7g},{b:.6g}L{a:.7g},{c:.6g}" for a, b, c in pairs)
        return f'<path class="bars" d="{d}"/>'
    d = _path(np.append(at, at[::-1]), np.append(high, low[::-1]))
    return f'<path class="band" d="{d}Z"/>'


def _path(at: Array, values: Array) -> str:
    points = zip(at.tolist(), values.tolist(), strict=True)
    return "M" + "L".join(f"{a:.7g},{b:.6g}" for a, b in points)


def _matrix(x: Axis, y: Axis, width: int, height: int) -> str:
    """From the units of the axes to pixels, y upwards."""
    a, d = width / (x.high - x.low), -height / (y.high - y.low)
    return f"{a:.9g},0,0,{d:.9g},{-a * x.low:.9g},{-d * y.high:.9g}"


def _thinned(values: Array) -> NDArray[np.int64]:
    """Places of at most `POINTS` values: the lowest and the highest of each stretch, both ends."""
    count = len(values)
    if count <= POINTS:
        return np.arange(count)
    edges = np.linspace(0, count, POINTS // 2 - 1).astype(int)
    stretches = list(pairwise(edges.tolist()))
    lowest = [a + int(values[a:b].argmin()) for a, b in stretches]
    highest = [a + int(values[a:b].argmax()) for a, b in stretches]
    return np.unique(np.array([0, *lowest, *highest, count - 1]))


def _rugs(x: Axis, rugs: Sequence[Rug], width: int, height: int) -> str:
    """A row of ticks for each kind of event, its name above them."""
    a = width / (x.high - x.low)
    parts = []
    for row, rug in enumerate(rugs):
        top = TOP + height + ROW * row
        ticks = "".join(f"M{step:.7g},0L{step:.7g},8" for step in rug.steps.tolist())
        parts.append(
            f'<g class="rug {looks.colour(rug.look)}" data-name="{escape(rug.name)}">'
            f'<path class="grid" d="M{LEFT},{top + ROW}h{width}"/>'
            f'<text x="{LEFT + 2}" y="{top + 12}">{escape(rug.name)}</text>'
            f'<svg x="{LEFT}" y="{top + 13}" width="{width}" height="8">'
            f'<path class="ticks" transform="matrix({a:.9g},0,0,1,{-a * x.low:.9g},0)" d="{ticks}"/>'
            "</svg></g>"
        )
    return "".join(parts)


def _ends(x: Axis, y: Axis, width: int, height: int, named: Sequence[Entry]) -> str:
    """Names beside the ends of lines, moved apart where they would overlap."""
    heights = []
    for entry, series in named:
        share = float(y.share(y.place(series.y[-1:]))[0])
        if 0 <= share <= 1:
            heights.append((TOP + height * (1 - share), entry, series))
    heights.sort(key=lambda item: item[:2])
    parts, free = [], TOP + 0.0
    for rank, (at, entry, series) in enumerate(heights):
        below = 13.0 * (len(heights) - 1 - rank)
        shown = max(free, min(at, TOP + height - below))
        free = shown + 13
        name = series.name if len(series.name) <= LETTERS else "…" + series.name[1 - LETTERS :]
        parts.append(
            f'<g class="{looks.colour(series.look)}" data-entry="{entry}">'
            f'<path class="marks" d="M{LEFT + width + 9},{shown:.1f}{looks.glyph(series.look)}"/>'
            f'<text x="{LEFT + width + 17}" y="{shown + 4:.1f}">{escape(name)}</text></g>'
        )
    return "".join(parts)
