"""The JSON files of run directories, checked as they are read: damage is named, not stumbled over.

A shape says what a value must look like: a `Kind`; a dict (an object with at least these fields); a
list of one shape (a list of any length); `Each` (an object of any fields); `Maybe` (null or missing).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectrain.errors import RunError
from spectrain.runs.files import read_json

DEEPEST = 40  # levels of nesting; ours have five, and what walks over them is recursive
LARGEST = 1e100  # of numbers: their squares can still be summed


@dataclass(frozen=True)
class Kind:
    """A value without parts."""

    words: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Each:
    """An object whose values all have one shape."""

    shape: Shape


@dataclass(frozen=True)
class Maybe:
    """A field that may be null or missing."""

    shape: Shape


Shape = Kind | Each | Maybe | Mapping[str, Any] | list[Any]


def is_number(value: object) -> bool:
    """Whether it is a number to compute with: no boolean, and not beyond 1e100 unless infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < LARGEST or (isinstance(value, float) and not math.isfinite(value))


TEXT = Kind("text", lambda v: isinstance(v, str))
NUMBER = Kind("a number", is_number)
FINITE = Kind("a finite number", lambda v: is_number(v) and math.isfinite(v))
WHOLE = Kind("a whole number", lambda v: type(v) is int and abs(v) < 2**63)
TRUTH = Kind("true or false", lambda v: isinstance(v, bool))
ANYTHING = Kind("anything", lambda v: True)
OBJECT = Each(ANYTHING)

_KEY = Kind("a name of letters, digits and _", lambda v: isinstance(v, str) and _is_key(v))
_FACTOR = Kind("a positive number up to a million", lambda v: is_number(v) and 0 < v <= 1e6)
_DIGITS = Kind("a whole number from 0 to 9", lambda v: type(v) is int and 0 <= v <= 9)
SCORE = {
    "key": _KEY,
    **dict.fromkeys(("title", "unit"), TEXT),
    **dict.fromkeys(("higher_is_better", "exponential"), TRUTH),
    "factor": _FACTOR,
    "digits": _DIGITS,
}


def _is_key(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_]{1,40}", text) is not None


_SIZES = dict.fromkeys(("weights", "gradients", "optimizer"), WHOLE)
CONFIG = {
    "command": Maybe(TEXT),
    "options": Maybe(OBJECT),
    "method": Maybe({"name": Maybe(TEXT)}),
    "corpus": Maybe({"fingerprint": Maybe(TEXT)}),
    "environment": Maybe(OBJECT),
    "scores": Maybe([SCORE]),
}
PLAN = {
    "arms": [
        dict.fromkeys(("key", "title", "schedule", "paper_schedule"), TEXT)
        | {"variations": [TEXT], "learning_rates": [FINITE]}
        | {"group": Maybe(TEXT), "method": Maybe(TEXT)}
    ],
    "ordinary_rates": [Maybe(FINITE)],
    "sweep_seed": WHOLE,
    "report_seeds": [WHOLE],
    "max_extensions": WHOLE,
    "scores": Maybe([SCORE]),
}
RESULT = {
    **dict.fromkeys(("failed", "corpus_fingerprint"), Maybe(TEXT)),
    **dict.fromkeys(("validation_loss", "test_loss", "seconds", "seconds_per_step"), Maybe(NUMBER)),
    **dict.fromkeys(("lr", "lr_ordinary"), Maybe(FINITE)),
    **dict.fromkeys(("steps", "tokens", "seed", "best_step"), Maybe(WHOLE)),
    "stopped_early": Maybe(TRUTH),
    **dict.fromkeys(("trainable_parameters", "frozen_parameters"), Maybe(WHOLE)),
    "bytes": Maybe(_SIZES | {"device_peak": Maybe(WHOLE)}),
    "memory": Maybe(
        {
            "planned": Maybe(_SIZES | {"peak": WHOLE, "with_events": WHOLE}),
            "measured": Maybe({"peak": WHOLE} | {part: Maybe(WHOLE) for part in _SIZES}),
            "error_percent": Maybe(FINITE),
            "note": Maybe(TEXT),
        }
    ),
}
SAMPLES = {"columns": [TEXT], "rows": [[TEXT]]}  # what a task shows of its outputs
SPECTRA = Each(Each([NUMBER]))  # layer, "initial" or "final", singular values


def read_config(directory: Path) -> dict[str, Any] | None:
    """config.json of a run or a comparison; None if there is none. Raises as `read_record` does.

    A comparison's plan is not checked: it is whoever knows its format that does.
    """
    return read_record(directory / "config.json", CONFIG)


def read_result(directory: Path) -> dict[str, Any] | None:
    """result.json of a run; None if it is not over. Raises as `read_record` does."""
    return read_record(directory / "result.json", RESULT)


def read_record(path: Path, shape: Shape) -> dict[str, Any] | None:
    """The JSON object at `path`; None if there is no file.

    Raises RunError, naming the place, if it cannot be read or has not the shape.
    """
    content = read_json(path)
    if content is None and not path.exists():
        return None
    check_record(path, content, shape)
    record: dict[str, Any] = content
    return record


def check_record(path: Path, content: object, shape: Shape) -> None:
    """Raise RunError, naming the place, if what was read from `path` has not the shape."""
    problem = _too_deep(content) or _misfit(content, shape, "its content")
    if problem:
        raise RunError(f"{path} is damaged ({problem}): delete or restore it")


def _misfit(value: object, shape: Shape, place: str) -> str | None:
    """What is wrong with the value, or None."""
    if isinstance(shape, Maybe):
        return None if value is None else _misfit(value, shape.shape, place)
    if isinstance(shape, Kind):
        return None if shape.holds(value) else f"{place} is not {shape.words}"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{place} is not a list"
        parts = [(f"item {number} of {place}", part, shape[0]) for number, part in enumerate(value)]
    elif not isinstance(value, dict):
        return f"{place} is not an object"
    elif isinstance(shape, Each):
        parts = [(f"{name!r}", part, shape.shape) for name, part in value.items()]
    else:
        parts = [(f"{name!r}", value.get(name), inner) for name, inner in shape.items()]
    found = (_misfit(part, inner, where) for where, part, inner in parts)
    return next((problem for problem in found if problem), None)


def _too_deep(content: object) -> str | None:
    level = [content]
    for _ in range(DEEPEST):
        inner = [
            c.values() if isinstance(c, dict) else c for c in level if isinstance(c, dict | list)
        ]
        level = [part for parts in inner for part in parts]
        if not level:
            return None
    return f"it is nested more than {DEEPEST} deep"
