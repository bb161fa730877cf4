"""What the rows of a run's dynamics.jsonl say: gradients beside full rank's, sampling, saddle points.

A row is what `spectrain train` writes; docs/diagnostics.md lists its kinds. Rows that a function does
not ask for are passed over.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

Row = Mapping[str, Any]

NEAR_ZERO = 1e-3  # of the largest that a layer has had
PATIENCE = 3  # looks: the one after a restart finds B = 0 in any case


def gradient_norms(rows: Iterable[Row], factor: str | None = None) -> dict[str, dict[int, float]]:
    """By layer and step, the gradient's Frobenius norm: of one factor, or of all of them together."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        layers = row.get("layers")  # in rows of events, their number
        for layer, values in layers.items() if isinstance(layers, dict) else ():
            norms = values.get("gradient", {})
            chosen = (
                norms.values() if factor is None else [norms[factor]] if factor in norms else []
            )
            if chosen:
                found.setdefault(layer, {})[row["step"]] = math.hypot(*chosen)
    return found


def gradient_correlation(
    rows: Iterable[Row], full: Iterable[Row], factor: str | None = None
) -> float:
    """Correlation of a run's gradient norms with those of a full-rank twin, the mean over layers.

    rows, full: of two runs on the same data and seed, with looks at the same steps. factor: the one
    whose gradient is taken, as "U_active" or "A"; default: all of a layer together. Pearson's
    coefficient over steps (Zhao et al. 2025, figure 2: 0.85 for SST's U, 0.58 for ReLoRA*'s A). NaN
    where no layer has three steps in common, or nothing varies.
    """
    own, other = gradient_norms(rows, factor), gradient_norms(full)
    found = []
    for layer in own.keys() & other.keys():
        steps = sorted(own[layer].keys() & other[layer].keys())
        if len(steps) < 3:
            continue
        pairs = torch.tensor(
            [[of[layer][s] for s in steps] for of in (own, other)], dtype=torch.float64
        )
        found.append(float(torch.corrcoef(pairs)[0, 1]))
    known = [value for value in found if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def ages(rows: Iterable[Row], step: int) -> dict[str, list[int | None]]:
    """By layer, the steps that had passed at `step` since each singular vector was last drawn.

    Vectors are numbered by singular value, the largest first, as they were when they were drawn; None
    for one that never was, as far as the rows tell. A vector that is active counts from its draw.
    """
    found: dict[str, list[int | None]] = {}
    for row in rows:
        if "sampled" not in row or row["step"] > step:
            continue
        for layer, mask in row["sampled"].items():
            known = found.setdefault(layer, [None] * row["of"][layer])
            bits = int(mask, 16)
            for i in range(len(known)):
                if bits >> i & 1:
                    known[i] = step - row["step"]
    return found


class SaddleAlarm:
    """Tells the layers that stay at a saddle point after a restart.

    With W = W₀ + B A and B = 0, the gradient of A is zero, and B moves along A's few directions alone. So a
    layer is there when one factor that the loss does depend on is near zero and the gradient of another is,
    too; each below a thousandth of the largest that it has had. (At the end of training gradients alone
    vanish.) Right after a restart that is so in any case: the alarm rings after three looks on end.
    """

    def __init__(self) -> None:
        self._norms: dict[tuple[str, str], float] = {}  # the largest, by layer and factor
        self._gradients: dict[tuple[str, str], float] = {}
        self._looks: dict[str, int] = {}

    def hear(self, layers: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Take in what a look has found; the layers for which the alarm rings now."""
        ringing = []
        for name, values in layers.items():
            gradient, norm = values.get("gradient", {}), values.get("norm", {})
            flat = {f for f in gradient if _is_small(self._gradients, (name, f), gradient[f])}
            gone = {f for f in norm if _is_small(self._norms, (name, f), norm[f])}
            near = any(gradient.get(f) and flat - {f} for f in gone)
            self._looks[name] = self._looks.get(name, 0) + 1 if near else 0
            if self._looks[name] >= PATIENCE:
                ringing.append(name)
        return ringing


def _is_small(largest: dict[tuple[str, str], float], key: tuple[str, str], value: float) -> bool:
    """Beside the largest so far, which is kept in `largest`."""
    largest[key] = max(value, largest.get(key, 0.0))
    return value <= NEAR_ZERO * largest[key]
