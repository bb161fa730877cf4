"""Settings that explain and check themselves: fields of a dataclass with help, bounds and choices."""

import dataclasses
import math
from dataclasses import MISSING
from typing import Any

from spectrain.errors import UsageError


def option(
    default: Any = MISSING,
    *,
    help: str,
    symbol: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A method's hyper-parameter: its default, one line of help, the paper's symbol, what is allowed."""
    bounds = {"minimum": minimum, "maximum": maximum, "choices": choices}
    return dataclasses.field(default=default, metadata={"help": help, "symbol": symbol, **bounds})


def check(settings: Any, title: str) -> None:
    """Raise UsageError, naming field and allowed values, if a value is outside `option`'s bounds."""
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        problem = _problem(f, value)
        if problem:
            raise UsageError(f"{title}: {f.name} is {value!r}; {problem}")


def _problem(f: dataclasses.Field[Any], value: object) -> str:
    """What is wrong with `value` for the field `f` made by `option`, or an empty string."""
    low, high, choices = (f.metadata.get(key) for key in ("minimum", "maximum", "choices"))
    if value is None and "None" in str(f.type):
        return ""
    if choices:
        return "" if value in choices else f"allowed are {', '.join(choices)}"
    if low is None:
        return ""
    whole = "int" in str(f.type)
    kinds = int if whole else int | float
    number = isinstance(value, kinds) and not isinstance(value, bool)
    if number and low <= value <= (math.inf if high is None else high):  # type: ignore[operator]
        return ""
    bound = f"{low} or more" if high is None else f"between {low} and {high}"
    return f"it must be {'a whole number' if whole else 'a number'}, {bound}"
