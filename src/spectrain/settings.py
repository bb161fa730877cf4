"""Settings that explain and check themselves: fields of a dataclass with help, bounds and choices."""

import dataclasses
import operator
import re
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

# By the name of a field's type: the value in words, and whether a value is one. What is beyond 64 bits
# or not finite passes through comparisons, and fails somewhere in a product.
_KINDS: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("bool", "true or false", lambda v: isinstance(v, bool)),
    ("int", "a whole number", lambda v: _is_number(v, int) and abs(v) < 2**63),
    ("float", "a number", lambda v: _is_number(v, int | float) and abs(v) < 1e100),
    ("str", "text", lambda v: isinstance(v, str)),
)


def _is_number(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


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
    """Raise UsageError, naming field and allowed values, if a value is outside `option`'s bounds.

    So it does for a value that is none of the field's type: bool, int, float or str.
    """
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        problem = _problem(f, value)
        if problem:
            raise UsageError(f"{title}: {f.name} is {_shown(value)}; {problem}")


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
    declared = set(re.findall(r"\w+", str(f.type)))
    kinds = ((words, holds) for name, words, holds in _KINDS if name in declared)
    kind, is_one = next(kinds, ("", lambda v: True))
    if is_one(value) and all(holds(value, limit) for _, holds, limit in bounds):
        return ""
    limits = " and ".join(text for text, _, _ in bounds)
    return f"it must be {kind}, {limits}" if limits else f"it must be {kind}"


def _shown(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a huge number"
    return text if len(text) <= 200 else f"{text[:200]}…"
