"""What a method declares, and the registry of methods.

A method is four choices about one weight matrix: a parametrization, an initializer, a step rule and
a schedule. `Method` holds the hooks for them; a subclass is a small frozen dataclass in one file
under ``methods/`` that fills them in and registers itself with `register`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import nn

from spectrain.errors import UsageError
from spectrain.papers import Paper
from spectrain.settings import check

if TYPE_CHECKING:
    from spectrain.moments import Moments
    from spectrain.parametrizations.base import Parametrization


@dataclass(frozen=True)
class Card:
    """One method's record: its place on the four axes and where it comes from."""

    key: str
    title: str
    summary: str
    parametrization: str
    initializer: str
    step_rule: str
    schedule: str
    paper_schedule: str
    papers: tuple[Paper, ...] = ()


@dataclass(frozen=True)
class Event:
    """Something that happens every so many optimizer steps, to all layers that are due at once.

    `action(layers, moments, clock)` runs after the step that brings the clock to a multiple of the
    period, or that many steps after one as `offset` says; both may differ by layer. It also happens to
    layers for which it `waits`: it was due and could not happen. Events of a method run in the order
    they are listed.

    Where several processes train one model, each calls `action` with its share of the layers, possibly
    none, and gets the others' factors, buffers and moments: what is drawn or decomposed is decided once.
    An event with `of_gradient` needs nothing but its layer's gradient: it may follow the layer's update
    at once, before the other layers have theirs.
    """

    name: str  # in words: "re-SVD"
    period: Callable[[Parametrization], int]
    action: Callable[[Sequence[Parametrization], Moments, int], None]
    offset: Callable[[Parametrization], int] = lambda layer: 0
    waits: Callable[[Parametrization], bool] = lambda layer: False
    of_gradient: bool = False

    def is_due(self, layer: Parametrization, clock: int) -> bool:
        """True if it happens to `layer` after the step that brings the clock to `clock`."""
        return (clock - self.offset(layer)) % self.period(layer) == 0

    def first(self, layer: Parametrization) -> int:
        """After so many steps it happens to `layer` for the first time."""
        period = self.period(layer)
        return self.offset(layer) % period or period


@dataclass(frozen=True)
class Method:
    """Base of all methods. A subclass overrides only what its paper asks for.

    Raises UsageError, naming field and allowed values, for a setting outside `option`'s bounds.
    """

    card: ClassVar[Card]
    keeps_function: ClassVar[bool] = True  # False where apply cannot leave the function unchanged
    gathers: ClassVar[bool] = False  # True if all layers' dense gradients are collected in one step

    def __post_init__(self) -> None:
        check(self, self.card.title)

    @property
    def title(self) -> str:
        """The method's name in tables and pictures."""
        return self.card.title

    # --- parametrization and initializer -------------------------------------------------------

    def parametrize(self, linear: nn.Module) -> Parametrization:
        """The layer that takes the place of `linear`, with its factors at their start."""
        raise NotImplementedError

    def rate_scale(self, factor: str) -> float:
        """Learning rate of the factor called `factor`, as a multiple of the factors' rate."""
        return 1.0

    def decay_scale(self, factor: str) -> float:
        """Weight decay of the factor called `factor`, as a multiple of the decay that was asked for."""
        return 1.0

    # --- step rule -----------------------------------------------------------------------------

    def begin_step(self, layers: Sequence[Parametrization], clock: int) -> None:
        """Before the first forward pass of optimizer step number `clock` (counted from 0)."""

    def before_update(
        self, layers: Sequence[Parametrization], moments: Moments, clock: int
    ) -> None:
        """Between the backward passes and the optimizer's update."""

    def after_update(self, layers: Sequence[Parametrization], moments: Moments, clock: int) -> None:
        """Right after the optimizer's update; learning rates are still those just applied."""

    # --- schedule ------------------------------------------------------------------------------

    def events(self) -> tuple[Event, ...]:
        """The periodic events, in the order in which those due at the same step run."""
        return ()

    def warmup_factor(self, clock: int) -> float:
        """Multiplier of the factors' learning rate in step number `clock` (counted from 0)."""
        return 1.0

    @property
    def prunes(self) -> bool:
        """True if an event zeroes single entries of the optimizer's moments."""
        return False

    @property
    def has_schedule(self) -> bool:
        """True if training needs `spectrain.attach`: the method acts around steps or at events."""
        hooks = "begin_step", "before_update", "after_update"
        own = (getattr(type(self), hook) is not getattr(Method, hook) for hook in hooks)
        return bool(self.events()) or any(own)

    def against_layerwise(self, accumulate: int) -> str | None:
        """Why layers cannot be stepped inside the backward pass (`LayerWise`); None where they can."""
        if self.gathers and accumulate > 1:
            return (
                "the dense gradients of all layers would add up together; take one backward pass in "
                "a step"
            )
        return None

    def against_processes(self) -> str | None:
        """Why several processes cannot train one model by it; None where they can."""
        return None

    def against_merge(self) -> str | None:
        """Why a layer is equal to no single matrix W, so that nothing can be merged; None where it is."""
        return None

    def phases(self, steps: int) -> list[tuple[Method, int]]:
        """How a run of `steps` is divided: (method, steps) in order, each with its own attach."""
        return [(self, steps)]

    # --- for people ----------------------------------------------------------------------------

    def schedule_text(self) -> str:
        """The schedule with this instance's numbers in it."""
        return self.card.schedule

    def variations(self) -> list[str]:
        """How this instance differs from the published method; empty when it does not."""
        return []

    def settings(self) -> dict[str, Any]:
        """Name and hyper-parameters as plain JSON values."""
        return {"name": self.card.key, **dataclasses.asdict(self)}


def ramp(position: int, length: int) -> float:
    """Linear warm-up: 1/length in the first step, 1 from step `length` on."""
    return min(1.0, (position + 1) / length) if length else 1.0


_REGISTRY: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


def register(cls: M) -> M:
    """Class decorator: make the method known to listings, command line and tests under its key."""
    _REGISTRY[cls.card.key] = cls
    return cls


def registered() -> dict[str, type[Method]]:
    """Registered method classes by key, in order of registration."""
    return dict(_REGISTRY)


def methods() -> tuple[Card, ...]:
    """The records of all registered methods: names, four axes, papers."""
    return tuple(cls.card for cls in _REGISTRY.values())


def method_from(name: str, settings: dict[str, Any]) -> Method:
    """The method called `name` with hyper-parameters `settings`; near names are suggested."""
    if name not in _REGISTRY:
        near = difflib.get_close_matches(name.lower(), _REGISTRY, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(
            f"there is no method called {name!r}{hint} (known: {', '.join(_REGISTRY)})"
        )
    cls = _REGISTRY[name]
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key in settings:
        if key not in known:
            raise UsageError(
                f"{cls.card.title} has no setting called {key!r} (it has: {', '.join(known) or 'none'})"
            )
    missing = [n for n, f in known.items() if f.default is MISSING and n not in settings]
    if missing:
        raise UsageError(f"{cls.card.title} needs a value for {', '.join(missing)}")
    return cls(**settings)
