"""Settings that explain and check themselves: fields of a dataclass with help, bounds and choices."""

import dataclasses
import operator
from collections.abc import Callable
from dataclasses import MISSING
from typing import Any

from spectrain.errors import UsageError

_BOUNDS: tuple[tuple[str, str, Callable[[Any, Any], bool]], ...] = (
    ("minimum", "{} or more", operator.ge),
    ("maximum", "{} or less", operator.le),
    ("above", "above {}", operator.gt),
    ("below", "below {}", operator.lt),
)


def option(
    default: Any = MISSING,
    *,
    help: str,
    symbol: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A setting: its default, one line of help, the paper's symbol, and what is allowed.

    minimum and maximum belong to what is allowed, above and below do not.
    """
    bounds = {"minimum": minimum, "maximum": maximum, "above": above, "below": below}
    words = {"help": help, "symbol": symbol, "choices": choices}
    return dataclasses.field(default=default, metadata=words | bounds)


def check(settings: Any, title: str) -> None:
    """Raise UsageError, naming field and allowed values, if a value is outside `option`'s bounds."""
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        problem = _problem(f, value)
        if problem:
            raise UsageError(f"{title}: {f.name} is {value!r}; {problem}")


def _problem(f: dataclasses.Field[Any], value: object) -> str:
    """What is wrong with `value` for the field `f` made by `option`, or an empty string."""
    allowed = f.metadata
    if value is None and "None" in str(f.type):
        return ""
    if allowed.get("choices"):
        return "" if value in allowed["choices"] else f"allowed are {', '.join(allowed['choices'])}"
    bounds = [
        (text.format(allowed[name]), holds, allowed[name])
        for name, text, holds in _BOUNDS
        if allowed.get(name) is not None
    ]
    whole = "int" in str(f.type)
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not bounds or (number and all(holds(value, limit) for _, holds, limit in bounds)):
        return ""
    texts = " and ".join(text for text, _, _ in bounds)
    return f"it must be {'a whole number' if whole else 'a number'}, {texts}"
