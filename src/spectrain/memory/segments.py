"""The peak of live bytes in each segment of a training step, and its law in the number of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spectrain.memory.live import LiveBytes

WORKSPACE = "workspace"  # what LAPACK needs within one call
Profile = dict[str, dict[str, int]]  # segment -> bytes by category at the segment's peak


class Segments(LiveBytes):  # type: ignore[no-untyped-call]
    """LiveBytes that keeps a peak for each segment of a step.

    With `blocks`, the repeated blocks of the model in order, every pass through a block is a segment:
    of the forward pass, and again of the backward pass. What a decomposition needs as workspace is
    added from LAPACK's documentation, since no dispatcher sees it.
    """

    def __init__(self, blocks: nn.ModuleList, **options: Any) -> None:
        super().__init__(**options)
        self.profile: Profile = {}
        self._keys: tuple[str, ...] = ()
        self._prefix = ""
        self._forward = True
        last = len(blocks) - 1
        for i, block in enumerate(blocks):
            places = _places(i, last)
            block.register_forward_pre_hook(self._enters(places))
            block.register_forward_hook(self._leaves(places, i == last))

    def begin(self, prefix: str) -> None:
        """A step whose segments are kept under names that start with `prefix`."""
        self._prefix, self._forward = prefix, True
        self._start("input")

    def backward(self) -> None:
        """The forward pass is over; what recomputation enters again is no segment of its own."""
        self._forward = False

    def forward(self) -> None:
        """The forward pass of another micro-batch begins."""
        self._forward = True
        self._start("input")

    def update(self) -> None:
        """The backward passes are over."""
        self._start("update")

    def end(self) -> None:
        """The step is over."""
        self._start()

    def _start(self, *names: str) -> None:
        for key in self._keys:
            before = self.profile.get(key)
            if before is None or sum(before.values()) < self.peak:
                self.profile[key] = dict(self.peak_by_category)
        self._keys = tuple(f"{self._prefix}/{name}" for name in names)
        self.reset_peak()

    def _enters(self, places: Sequence[str]) -> Any:
        def hook(block: nn.Module, inputs: Any) -> None:
            if self._forward:
                self._start(*(f"forward {place}" for place in places))

        return hook

    def _leaves(self, places: Sequence[str], last: bool) -> Any:
        def hook(block: nn.Module, inputs: Any, output: Any) -> None:
            if not self._forward:
                return
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor) and first.requires_grad:
                names = [f"backward {place}" for place in places]
                first.register_hook(lambda grad: self._start(*names))  # type: ignore[no-untyped-call]
            if last:
                self._start("loss")

        return hook

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if (needed := _WORKSPACES.get(func)) is not None:
            size = needed(args[0])
            if self.current + size > self.peak:
                self.reset_peak()
                self.peak += size
                self.peak_by_category[WORKSPACE] = size
        return result


def _places(i: int, last: int) -> tuple[str, ...]:
    """What block i of 0 … last is called. Every peak in a block of the same name is affine in `last`.

    The blocks between the second and the one before the last have peaks between those of these two,
    since they are affine in i as well; they need no name.
    """
    names = {0: "first", 1: "second", last - 1: "next to last", last: "last"}
    both = ("second", "next to last") if i == 1 == last - 1 else ()
    return both or ((names[i],) if i in names else ())


def extrapolate(fewer: Profile, more: Profile, blocks: tuple[int, int], wanted: int) -> Profile:
    """The profile with `wanted` blocks from those with blocks[0] and blocks[1], affine in each entry."""
    few, many = blocks

    def at(low: int, high: int) -> int:
        return low + (high - low) * (wanted - few) // (many - few)

    return {
        segment: {
            category: at(fewer.get(segment, {}).get(category, 0), size)
            for category, size in sizes.items()
        }
        for segment, sizes in more.items()
    }


def _svd(a: Tensor) -> int:
    """?GESDD, JOBZ = 'S': a copy of the matrices, 4k² + 7k numbers and 8k integers."""
    k = min(a.shape[-2:])
    return (a.numel() + 4 * k * k + 7 * k) * a.element_size() + 32 * k


def _eigh(a: Tensor) -> int:
    """?SYEVD, JOBZ = 'V': 1 + 6n + 2n² numbers and 3 + 5n integers."""
    n = a.shape[-1]
    return (1 + 6 * n + 2 * n * n) * a.element_size() + 4 * (3 + 5 * n)


def _qr(a: Tensor) -> int:
    """?GEQRF and ?ORGQR: a copy of the matrices, and blocks of 32 columns."""
    return (a.numel() + 32 * a.shape[-1]) * a.element_size()


_WORKSPACES = {
    torch.ops.aten._linalg_svd.default: _svd,
    torch.ops.aten._linalg_eigh.default: _eigh,
    torch.ops.aten.linalg_qr.default: _qr,
}
