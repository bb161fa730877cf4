"""A chart: what it shows, and its figure on the page with legend, caption and table of data.

The picture is complete as it stands, for print and for readers without script. report.js reads axes
and values back from it and makes it zoom, so the data are in the page once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

from spectrain.runs.report import looks
from spectrain.runs.report.axes import Axis, around, number
from spectrain.runs.report.page import folded, table
from spectrain.runs.report.picture import picture
from spectrain.runs.report.series import Rug, Series

ROWS = 12  # at most so many in the table of data


@dataclass(frozen=True)
class Chart:
    """A figure with curves. `view`: the values of y shown at first; default: all."""

    title: str
    caption: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    logarithmic: bool = False
    view: tuple[float, float] | None = None
    from_zero: bool = False  # of the axis of x
    rugs: Sequence[Rug] = field(default=())

    def drawable(self) -> list[Series]:
        """The series that have anything to draw."""
        kept = (series.finite(positive=self.logarithmic) for series in self.series)
        return [series for series in kept if len(series.x)]

    def axes(self, drawn: Sequence[Series]) -> tuple[Axis, Axis]:
        """Those of x and y, as they are at first."""
        lone = all(series.dots for series in drawn)  # marks at the edge would be cut
        x = around([series.x for series in drawn], margin=0.05 if lone else 0.01)
        if self.from_zero:
            x = Axis(0.0, x.high)
        if self.view is not None and not self.logarithmic:
            low, high = self.view
            return x, around([np.array([low, high])])
        edges = [v for s in drawn for v in (s.y, s.low, s.high) if v is not None]
        return x, around(edges, logarithmic=self.logarithmic)


def figure_of(chart: Chart) -> str:
    """The figure as HTML; nothing if there is nothing to draw."""
    drawn = chart.drawable()
    if not drawn:
        return ""
    x, y = chart.axes(drawn)
    keys = list(dict.fromkeys((series.name, series.look) for series in drawn))
    entries = "".join(_entry(place, *key, drawn) for place, key in enumerate(keys))
    caption = escape(chart.caption)
    positive = all(series.y.min() > 0 for series in drawn)
    svg = picture(
        x,
        y,
        (chart.x_label, chart.y_label),
        [(keys.index((series.name, series.look)), series) for series in drawn],
        chart.rugs,
        label=f"{chart.title}: {chart.caption}",
    )
    return (
        f'<figure class="chart" data-view="{x.low:.9g} {x.high:.9g} {y.low:.9g} {y.high:.9g}" '
        f'data-log="{int(y.logarithmic)}" data-positive="{int(positive)}">'
        f'<h3>{escape(chart.title)}</h3>{svg}<ul class="legend">{entries}</ul>'
        f"<figcaption>{caption}</figcaption>{_data(chart, drawn)}</figure>"
    )


def _entry(place: int, name: str, look: int, drawn: Sequence[Series]) -> str:
    """A line of the legend."""
    own = [series for series in drawn if (series.name, series.look) == (name, look)]
    dots, ghost = all(series.dots for series in own), all(series.ghost for series in own)
    key = looks.key(look, dots=dots, ghost=ghost)
    return f'<li data-entry="{place}"><span>{key}{escape(name)}</span> <output></output></li>'


def _data(chart: Chart, drawn: Sequence[Series]) -> str:
    """Some of the values as a table, folded: for readers who cannot see the picture."""
    headings = [f"{s.name}, {s.note}" if s.note else s.name for s in drawn]
    rows = [
        (number(x), *(_value(series, x, reach) for series in drawn)) for x, reach in _grid(drawn)
    ]
    return folded("Data", table((chart.x_label, *headings), rows), kind="data")


def _grid(drawn: Sequence[Series]) -> Iterator[tuple[float, float]]:
    """Places on the axis of x for the table, each with how far from it a value may have been taken."""
    dots = [series for series in drawn if series.dots] or drawn
    values = np.unique(np.concatenate([series.x for series in dots]))
    places = np.unique(np.linspace(0, len(values) - 1, min(ROWS, len(values))).round().astype(int))
    lone = all(series.dots for series in drawn)
    reach = 0.0 if lone else (values[-1] - values[0]) / 40
    for x in values[places].tolist():
        yield x, reach


def _value(series: Series, x: float, reach: float) -> str:
    nearest = int(np.abs(series.x - x).argmin())
    return number(float(series.y[nearest])) if abs(series.x[nearest] - x) <= reach else "–"
