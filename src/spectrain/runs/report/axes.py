"""Axes of a figure: where ticks stand, and numbers as people read them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEAST = 1e-300  # of a logarithmic axis


@dataclass(frozen=True)
class Axis:
    """One direction of a figure, from `low` to `high`; of a logarithmic one these are log10."""

    low: float
    high: float
    logarithmic: bool = False

    def place(self, values: Array) -> Array:
        """Values as coordinates between `low` and `high`; NaN where there is no logarithm."""
        if not self.logarithmic:
            return values
        placed: Array = np.log10(np.where(values > LEAST, values, np.nan))
        return placed

    def share(self, placed: Array | float) -> Array:
        """Coordinates as shares of the axis's length, 0 at `low`."""
        shares: Array = (np.asarray(placed, dtype=float) - self.low) / (self.high - self.low)
        return shares

    def ticks(self, count: int = 6) -> list[tuple[float, str]]:
        """About `count` pairs (coordinate, text)."""
        if not self.logarithmic:
            return [(value, number(value)) for value in _steps(self.low, self.high, count)]
        decades = range(math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9) + 1)
        if self.high - self.low >= 2:
            every = math.ceil(len(decades) / count)
            return [(float(d), number(10.0**d)) for d in decades if d % every == 0]
        values = _steps(10**self.low, 10**self.high, 2 * count)
        if self.high - self.low >= 0.7:
            lowest, highest = math.floor(self.low), math.ceil(self.high)
            grid = (m * 10.0**d for d in range(lowest, highest + 1) for m in (1, 2, 5))
            values = [v for v in grid if 10**self.low <= v <= 10**self.high]
        return [(math.log10(value), number(value)) for value in values if value > 0]


def around(values: Sequence[Array], *, logarithmic: bool = False, margin: float = 0.05) -> Axis:
    """The axis on which all finite `values` have their place, with a margin."""
    axis = Axis(0.0, 1.0, logarithmic)
    placed = np.concatenate([axis.place(v) for v in values]) if values else np.zeros(0)
    placed = placed[np.isfinite(placed)]
    if not len(placed):
        return axis
    low, high = float(placed.min()), float(placed.max())
    room = margin * (high - low) or (0.1 if logarithmic else 0.05 * abs(high)) or 0.5
    return Axis(low - room, high + room, logarithmic)


def _steps(low: float, high: float, count: int) -> list[float]:
    """Round numbers between `low` and `high`: multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / max(1, count)
    if not math.isfinite(raw) or raw <= 0:
        return []
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, last + 1)]


def number(value: float) -> str:
    """Up to five significant digits, thousands apart: 0.0125, 12,000, 3.2e-5."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e7:
        digits, _, exponent = f"{value:.3e}".partition("e")
        text = f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    else:
        places = max(0, 4 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{places}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "−") if value < 0 and "e" not in text else text
