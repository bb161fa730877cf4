"""dynamics.jsonl of a run: what its factors did during training, as far as the file goes.

Rows are looks (norms of gradients, updates and drifts by layer), spectra, events and draws. What is of
no known kind, or does not hold what it should, is passed over: a run may still be writing, or be old.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spectrain.runs.files import read_rows
from spectrain.runs.records import FINITE, WHOLE
from spectrain.runs.report.axes import Array

FILE = "dynamics.jsonl"
LAYERS = 8  # at most so many with spectra or draws, of one run
MAPS = 32  # layers of all runs of a page
KINDS = 6  # at most so many kinds of events, or of factors
VECTORS = 2**16  # at most so many in a layer
SADDLE = "saddle alarm"


@dataclass(frozen=True)
class Spread:
    """Median and range over layers at each step."""

    steps: Array
    median: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class Spectra:
    """Singular values of a layer over training, at evenly spaced ranks of its `size`."""

    size: int  # 0 where it is not known
    steps: Array  # (t,)
    values: Array  # (t, n), descending in each row


@dataclass(frozen=True)
class Draws:
    """Which of a layer's `size` singular vectors trained from each of `steps` on."""

    size: int
    steps: Array  # (t,)
    drawn: np.ndarray[Any, np.dtype[np.bool_]]  # (t, size)

    def ages(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """(t, size) draws since each vector was last drawn: 0 if it is; -1 if it never was yet."""
        rows = np.arange(len(self.steps))[:, None]
        last = np.maximum.accumulate(np.where(self.drawn, rows, -1), axis=0)
        return np.where(last < 0, -1, rows - last)


class Dynamics:
    """The rows of a run directory; empty if it has none. runs: how many share the page."""

    def __init__(self, directory: Path, runs: int = 1) -> None:
        self.layers = max(1, min(LAYERS, MAPS // max(1, runs)))
        rows = read_rows(directory / FILE)
        self.rows = [row for row in rows if WHOLE.holds(row.get("step")) and row["step"] >= 0]

    def by_factor(self, measure: str) -> dict[str, Spread]:
        """`measure` ("gradient" or "update") of each kind of factor, over all layers."""
        found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for step, look in self._looks():
            for factor, value in _object(look.get(measure)).items():
                if FINITE.holds(value):
                    found[factor][step].append(value)
        return {factor: _spread(values) for factor, values in list(found.items())[:KINDS]}

    def gradients(self) -> list[dict[str, Any]]:
        """The gradient norms of looks, as rows of the file have them, and nothing else."""
        found: dict[int, dict[str, Any]] = defaultdict(dict)
        for row in self.rows:
            for layer, look in _object(row.get("layers")).items():
                norms = _object(_object(look).get("gradient"))
                sound = {factor: norm for factor, norm in norms.items() if FINITE.holds(norm)}
                found[row["step"]][layer] = {"gradient": sound}
        return [{"step": step, "layers": layers} for step, layers in found.items()]

    def drift(self) -> Spread | None:
        """The largest |UᵀU − I| of layers with orthonormal factors."""
        found: dict[int, list[float]] = defaultdict(list)
        for step, look in self._looks():
            if FINITE.holds(look.get("drift")):
                found[step].append(look["drift"])
        return _spread(found) if found else None

    def saddles(self) -> dict[str, list[int]]:
        """The steps at which the alarm rang, by layer."""
        found: dict[str, list[int]] = defaultdict(list)
        for row in self.rows:
            for layer, look in _object(row.get("layers")).items():
                if isinstance(look, dict) and look.get("saddle") is True:
                    found[layer].append(row["step"])
        return dict(found)

    def events(self) -> dict[str, Array]:
        """The steps of each kind of event, the saddle alarm's among them."""
        found: dict[str, set[int]] = defaultdict(set)
        for row in self.rows:
            if isinstance(name := row.get("event"), str):
                found[name].add(row["step"])
        for steps in self.saddles().values():
            found[SADDLE].update(steps)
        return {n: np.array(sorted(s), dtype=float) for n, s in list(found.items())[:KINDS]}

    def spectra(self) -> dict[str, Spectra]:
        """By layer; those that were recorded in one length all along."""
        found: dict[str, dict[int, list[float]]] = defaultdict(dict)
        sizes: dict[str, int] = {}
        for row in self.rows:
            sizes_of = _object(row.get("of"))
            for layer, values in _object(row.get("spectra")).items():
                sizes.setdefault(layer, _size(sizes_of.get(layer)))
                if isinstance(values, list) and values and all(map(FINITE.holds, values)):
                    known = next(iter(found[layer].values()), values)
                    if len(values) == len(known):
                        found[layer][row["step"]] = values
        return {
            layer: Spectra(
                sizes[layer],
                np.array([*rows], dtype=float),
                np.array([*rows.values()], dtype=float),
            )
            for layer, rows in list(found.items())[: self.layers]
            if rows
        }

    def draws(self) -> dict[str, Draws]:
        """By layer."""
        found: dict[str, dict[int, int]] = defaultdict(dict)
        sizes: dict[str, int] = {}
        for row in self.rows:
            sizes_of = _object(row.get("of"))
            for layer, mask in _object(row.get("sampled")).items():
                size = sizes.setdefault(layer, _size(sizes_of.get(layer)))
                if size and isinstance(mask, str) and _fits(mask, size):
                    found[layer][row["step"]] = int(mask, 16)
        return {
            layer: Draws(
                sizes[layer],
                np.array([*masks], dtype=float),
                np.stack([_bits(mask, sizes[layer]) for mask in masks.values()]),
            )
            for layer, masks in list(found.items())[: self.layers]
        }

    def _looks(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """(step, look) of every layer of every look."""
        for row in self.rows:
            for look in _object(row.get("layers")).values():
                yield row["step"], _object(look)


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _size(value: Any) -> int:
    return value if WHOLE.holds(value) and 0 < value <= VECTORS else 0


def _fits(mask: str, size: int) -> bool:
    """Whether it is a hexadecimal number of `size` bits."""
    fine = len(mask) <= size // 4 + 3 and re.fullmatch(r"(0x)?[0-9a-fA-F]+", mask)
    return bool(fine) and int(mask, 16) < 1 << size


def _bits(mask: int, size: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(size,): bit i says whether vector i is in the mask."""
    raw = np.frombuffer(mask.to_bytes((size + 7) // 8, "little"), dtype=np.uint8)
    return np.unpackbits(raw, count=size, bitorder="little").astype(bool)


def _spread(values: Mapping[int, Iterable[float]]) -> Spread:
    steps = sorted(values)
    lists = [np.array([*values[step]], dtype=float) for step in steps]
    medians, lows, highs = (
        np.array([float(of(v)) for v in lists]) for of in (np.median, np.min, np.max)
    )
    return Spread(np.array(steps, dtype=float), medians, lows, highs)
