"""What says that a run is lost, or that it will not do what was asked for."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from spectrain.errors import SpectrainWarning
from spectrain.method import Method
from spectrain.optimizers import Stepping
from spectrain.sharding import local
from spectrain.surgery import parametrized

EXPLODED = 3.0  # a loss so many times the first one is called exploded


def is_lost(loss: float, first: float | None) -> bool:
    """Whether the mean loss of an interval is NaN, infinite or far above the run's first one."""
    start = loss if first is None else first
    return not math.isfinite(loss) or loss > EXPLODED * max(start, 1.0)


def not_finite(model: nn.Module, optimizer: Stepping) -> str | None:
    """The first parameter, or moment of one, with a NaN or infinite entry."""
    for name, p in model.named_parameters():
        if not _is_finite(p.detach()):
            return name
        for key, value in optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor) and not _is_finite(value):
                return f"{name} ({key} of the optimizer)"
    return None


def warn_of_silent_events(method: Method, steps: int, model: nn.Module) -> None:
    """Say which events the phase is too short for: a method that never acts is no test of it."""
    layers = [layer for _, layer in parametrized(model)]
    for event in method.events():
        first = min(event.first(layer) for layer in layers)
        if first >= steps:
            warnings.warn(
                f"{method.title}: no {event.name} will happen in {steps} steps, since the first "
                f"comes after {first}",
                SpectrainWarning,
                stacklevel=2,
            )


def _is_finite(tensor: Tensor) -> bool:
    """Whether all entries are finite; the sum tells in one pass unless it overflows itself."""
    own = local(tensor)
    return bool(torch.isfinite(own.sum())) or bool(torch.isfinite(own).all())
