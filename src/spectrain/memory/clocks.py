"""Which steps of a method are alike, and which are special: told by its events and settings alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor

from spectrain.method import Event, Method
from spectrain.parametrizations.base import Parametrization


def is_ordinary(method: Method, layers: Sequence[Parametrization], clock: int) -> bool:
    """True if the step that begins at `clock`, and has begun, does what most steps do and no more.

    The very first is none, since the optimizer's state is made in it; nor one that ends in an event,
    nor one for which layers keep something that they do not keep in other steps.
    """
    due = any(event.is_due(layer, clock + 1) for event in method.events() for layer in layers)
    more = any(clock % period == 0 for period in special(method, layers).values())
    return clock > 0 and not due and not more and not any(_keeps(layer) for layer in layers)


def special(method: Method, layers: Sequence[Parametrization]) -> dict[str, int]:
    """Periods, by name, of what a step does differently every so many steps without an event.

    A setting …_every that is an event's period is left out, unless it may be another's by chance.
    """
    events = {event.period(layer) for event in method.events() for layer in layers}
    every = _every(method)
    periods = list(every.values())
    return {
        name.removesuffix("_every").replace("_", " "): period
        for name, period in every.items()
        if period > 1 and (period not in events or periods.count(period) > 1)
    }


def _every(method: Method) -> dict[str, int]:
    """The method's settings that are called …_every."""
    named = {name: value for name, value in method.settings().items() if name.endswith("_every")}
    return {name: value for name, value in named.items() if isinstance(value, int)}


def cycle(method: Method, layers: Sequence[Parametrization]) -> int:
    """After so many steps everything has happened to every layer at once."""
    events = [event.period(layer) for event in method.events() for layer in layers]
    return math.lcm(*events, *_every(method).values())


def fullest(method: Method, layers: Sequence[Parametrization], first: int, period: int) -> int:
    """The clock, of `period` from `first` on, at which the largest layers begin to keep something."""

    def load(clock: int) -> int:
        for layer in layers:
            layer.forget()
        method.begin_step(layers, clock)
        return _numbers(layer for layer in layers if _keeps(layer))

    return max(range(first, first + period), key=load)


def _keeps(layer: Parametrization) -> bool:
    """True if it holds tensors beside its state that it does not hold in every step."""
    own = (value for name, value in vars(layer).items() if name not in layer.resident)
    return any(isinstance(value, Tensor) for value in own)


def _numbers(layers: Iterable[Parametrization]) -> int:
    return sum(layer.out_features * layer.in_features for layer in layers)


def busiest(event: Event, layers: Sequence[Parametrization], first: int) -> int:
    """A clock, after whole cycles `first`, at which the event happens to the most layers, by size."""
    clocks = sorted({first + event.offset(layer) for layer in layers})
    return max(clocks, key=lambda clock: _numbers(x for x in layers if event.is_due(x, clock)))
