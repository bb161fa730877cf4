"""Optimizers by name, fused where torch has that."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from spectrain.errors import UsageError

MakeOptimizer = Callable[[list[dict[str, Any]]], Optimizer]


def optimizer_maker(
    optimizer: str | type[Optimizer] | MakeOptimizer,
    asked: str = "optimizer",  # who asks, as an error message names it
) -> MakeOptimizer:
    """A function that makes the optimizer from its parameter groups; fused if its class and the device
    have that.

    optimizer: a class, its name in torch.optim in any case, or such a function already. Raises
    UsageError for a name that torch.optim lacks; so does the function if the groups are refused.
    """
    if isinstance(optimizer, str):
        names = {
            name.lower(): cls
            for name, cls in vars(torch.optim).items()
            if isinstance(cls, type) and issubclass(cls, Optimizer) and cls is not Optimizer
        }
        if optimizer.lower() not in names:
            near = difflib.get_close_matches(optimizer.lower(), names, n=1)
            hint = f"; did you mean {names[near[0]].__name__}?" if near else ""
            raise UsageError(f"{asked}: torch.optim has no {optimizer!r}{hint}")
        optimizer = names[optimizer.lower()]
    if not isinstance(optimizer, type):
        return optimizer
    cls: Any = optimizer

    def make(groups: list[dict[str, Any]]) -> Optimizer:
        reason = ""
        for fused in ({"fused": True}, {}):
            try:  # with copies, since a constructor that fails has already written to the groups
                made: Optimizer = cls([dict(group) for group in groups], **fused)
                return made
            except (TypeError, RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0]
        raise UsageError(f"{asked}: {cls.__name__} cannot be used here: {reason}")

    return make
