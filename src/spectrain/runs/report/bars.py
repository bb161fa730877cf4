"""Memory by category as stacked bars, and as a table below them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from spectrain.memory.plan import in_words
from spectrain.runs.records import FINITE
from spectrain.runs.report.page import folded, table

STATE = ("weights", "gradients", "optimizer")
REST = "activations and all else"  # of a step's peak
EVENTS = "more at events"
CATEGORIES = (*STATE, REST, EVENTS)


@dataclass(frozen=True)
class Bar:
    """Bytes by category, in the order of `CATEGORIES`."""

    name: str
    sizes: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.sizes.values())


def bars_of(name: str, result: Mapping[str, Any]) -> list[Bar]:
    """What a run took, and what was planned; the state alone where no step was measured."""
    memory = result.get("memory") or {}
    found = []
    measured = memory.get("measured") or result.get("bytes") or {}
    for kind, sizes in (("measured", measured), ("planned", memory.get("planned") or {})):
        parts = {part: sizes[part] for part in STATE if FINITE.holds(sizes.get(part))}
        if not parts:
            continue
        if FINITE.holds(sizes.get("peak")):
            parts[REST] = max(0, sizes["peak"] - sum(parts.values()))
            if FINITE.holds(sizes.get("with_events")):
                parts[EVENTS] = max(0, sizes["with_events"] - sizes["peak"])
        found.append(Bar(f"{name}, {kind}" if name else kind, parts))
    return [bar for bar in found if bar.total > 0]


def stacked(bars: Sequence[Bar]) -> str:
    """A figure with a bar for each; nothing without any."""
    if not bars:
        return ""
    used = [c for c in CATEGORIES if any(bar.sizes.get(c) for bar in bars)]
    longest = max(bar.total for bar in bars)
    rows = "".join(_row(bar, longest) for bar in bars)
    legend = "".join(
        f'<li><i class="part m{CATEGORIES.index(category)}"></i>{escape(category)}</li>'
        for category in used
    )
    columns = ("", *used, "together")
    cells = [
        (bar.name, *(_words(bar.sizes.get(c)) for c in used), in_words(bar.total)) for bar in bars
    ]
    return (
        f'<figure class="bars"><h3>Memory of a training step</h3>{rows}'
        f'<ul class="legend">{legend}</ul><figcaption>At the peak of an ordinary step; what events '
        "such as decompositions need beyond that is planned, not measured.</figcaption>"
        f"{folded('Data', table(columns, cells), kind='data')}</figure>"
    )


def _row(bar: Bar, longest: int) -> str:
    parts = "".join(
        f'<i class="part m{CATEGORIES.index(category)}" style="width:{100 * size / longest:.2f}%"></i>'
        for category, size in bar.sizes.items()
        if size
    )
    words = ", ".join(f"{category} {in_words(size)}" for category, size in bar.sizes.items())
    return (
        f'<div class="bar"><span>{escape(bar.name)}</span>'
        f'<div role="img" aria-label="{escape(f"{bar.name}: {words}")}">{parts}</div>'
        f"<b>{in_words(bar.total)}</b></div>"
    )


def _words(size: int | None) -> str:
    return "–" if size is None else in_words(size)
