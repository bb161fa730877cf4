"""What a chart shows: series of values, and events along its axis."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from spectrain.runs.report.axes import Array


@dataclass(frozen=True)
class Series:
    """Values over steps, or over time; finite ones alone are kept."""

    name: str  # in the legend; those of one name and look are shown and hidden together
    x: Array
    y: Array
    look: int
    low: Array | None = None  # a band around lines, bars through dots
    high: Array | None = None
    dots: bool = False  # marks without a line
    ghost: bool = False  # a thin line without marks: what others are measured against
    note: str = ""  # what sets it apart from others of its name: "validation"

    def finite(self, *, positive: bool = False) -> Series:
        """The series without values that cannot be drawn."""
        keep = np.isfinite(self.x) & np.isfinite(self.y)
        if positive:
            keep &= self.y > 0
        low, high = (None if edge is None else edge[keep] for edge in (self.low, self.high))
        return replace(self, x=self.x[keep], y=self.y[keep], low=low, high=high)


@dataclass(frozen=True)
class Rug:
    """Events as ticks along the axis of steps."""

    name: str
    steps: Array
    look: int
