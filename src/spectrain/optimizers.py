"""Optimizers: by name, fused where torch has that; inside a wrapper; in a gradient scaler's hands."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from spectrain.errors import UsageError
from spectrain.sharding import local


class Optimizers(tuple[Optimizer, ...]):
    """Several optimizers that step one model together, each its own parameters; `attach` takes them so."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all of them, in order."""
        return [group for optimizer in self for group in optimizer.param_groups]

    @property
    def state(self) -> dict[Tensor, Any]:
        """What they keep for each parameter."""
        return {p: kept for optimizer in self for p, kept in optimizer.state.items()}

    def step(self) -> None:
        """A step of each."""
        for optimizer in self:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients."""
        for optimizer in self:
            optimizer.zero_grad(set_to_none)


Stepping = Optimizer | Optimizers
MakeOptimizer = Callable[[list[dict[str, Any]]], Stepping]


def each(optimizer: Stepping) -> tuple[Optimizer, ...]:
    """One optimizer or several as several."""
    return optimizer if isinstance(optimizer, tuple) else (optimizer,)


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


def unwrapped(optimizer: Any) -> Optimizer:
    """The torch optimizer inside of accelerate's wrapper. Raises UsageError if there is none."""
    inner = optimizer
    while not isinstance(inner, Optimizer) or type(inner).__name__ == "AcceleratedOptimizer":
        if not hasattr(inner, "optimizer"):
            raise UsageError(
                f"attach: {type(optimizer).__name__} is no torch.optim optimizer; pass the one "
                "whose step() you call, or a sequence of them"
            )
        inner = inner.optimizer
    return inner


def is_skipped(optimizer: Optimizer) -> bool:
    """True in a fused step that a gradient scaler has marked as overflowed."""
    found: Tensor | None = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found.any())


def unscale(optimizer: Optimizer) -> None:
    """Divide the gradients by a gradient scaler's factor, where it left that to a fused step.

    A step rule that looks at gradients must see the true ones.
    """
    scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    if scale is not None:
        found = (p.grad for g in optimizer.param_groups for p in g["params"])
        gradients = [local(gradient) for gradient in found if gradient is not None]
        if gradients:
            torch._foreach_div_(gradients, scale.to(gradients[0].device))
        optimizer.grad_scale = None  # type: ignore[attr-defined]
