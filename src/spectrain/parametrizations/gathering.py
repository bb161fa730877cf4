"""Layers whose backward pass gives more than the gradients of their factors."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from spectrain.parametrizations.base import Factored

if TYPE_CHECKING:
    from spectrain.method import Method


class Gathering(Factored):
    """While `gather` is on, each backward pass adds to `gathered`, for the method to use in the step.

    It is the gradient of a leaf without storage, so that autograd adds up micro-batches as it does for
    any other, and counts no forward pass that has no backward pass.
    """

    _passing = (*Factored._passing, "probe", "_stepped")

    def __init__(self, linear: nn.Module, method: Method) -> None:
        super().__init__(linear, method)
        self.probe: Tensor | None = None  # the leaf
        # The factor as the optimizer has it: under fully_shard another tensor than in a forward pass.
        self._stepped: weakref.ref[nn.Parameter] | None = None

    def _probed(self) -> tuple[nn.Parameter, tuple[int, ...]]:
        """A factor, whose dtype, device and lack of a gradient the probe follows; the probe's shape."""
        raise NotImplementedError

    def gather(self, on: bool = True) -> None:
        """Collect from here on; with on=False no longer."""
        if on and self.probe is None:
            factor, shape = self._probed()
            zero = torch.zeros((), dtype=factor.dtype, device=factor.device)
            self.probe = zero.expand(shape).detach().requires_grad_()
            self._stepped = weakref.ref(factor)
            if self.accumulated is not None:
                self.probe.register_post_accumulate_grad_hook(self.accumulated)  # type: ignore[no-untyped-call]
        elif not on:
            self.discard()  # the graph of a backward pass still holds the leaf, and all it has
            self.probe = None

    def reduce(self, mean: Callable[[Tensor], None]) -> None:
        if self.probe is not None:
            if self.probe.grad is None:  # a layer that another process may have used
                self.probe.grad = self.probe.detach().clone(memory_format=torch.contiguous_format)
            mean(self.probe.grad)

    def leaves(self) -> tuple[Tensor, ...]:
        own = super().leaves()
        return own if self.probe is None else (*own, self.probe)

    @property
    def gathered(self) -> Tensor | None:
        """What this step has collected so far; None where nothing is."""
        return None if self.probe is None else self.probe.grad

    def discard(self) -> None:
        """Forget what was collected, and go on collecting."""
        if self.probe is not None:
            self.probe.grad = None

    def forget(self) -> None:
        self.gather(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self.probe is not None:  # begun in another dtype or on another device
            self.probe = None
            self.gather()
        return self

    def _begin_anew(self) -> None:
        """In a step's first micro-batch, drop what is left of a step that was skipped.

        (Under torch.compile it stays; an overflow's gradient is not finite, and is not used then.)
        """
        if self.probe is None or torch.compiler.is_compiling():
            return
        factor = None if self._stepped is None else self._stepped()
        if torch.is_grad_enabled() and factor is not None and factor.grad is None:
            self.discard()
