"""Training code run on tensors without data: shapes, dtypes and storages, and nothing computed."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode


@contextmanager
def without_data() -> Iterator[FakeTensorMode]:
    """Within this context tensors have no data, and numbers read off them are made up.

    They say they are on the CPU, so that autocast and attention choose what they choose there (on
    meta tensors they choose otherwise). Code that reads a number goes on with 0 for an integer, 1 for
    a fraction, True for a truth: the clock of a new layer, a step counter, "is all finite".
    Torch's random numbers are as before afterwards.
    """
    mode = _WithoutData(allow_non_fake_inputs=True)
    with torch.random.fork_rng(devices=[]), _taken_for_real(), mode:
        yield mode


def emptied(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy of `model` without data, on the CPU whatever device it is on; nothing is allocated."""
    twins: dict[int, Any] = {}  # deepcopy takes these for copies it has made already
    for p in model.parameters():
        twins[id(p)] = nn.Parameter(_empty_like(p), requires_grad=p.requires_grad)
    for buffer in model.buffers():
        twins[id(buffer)] = _empty_like(buffer)
    with FakeCopyMode(mode):
        return copy.deepcopy(model, twins)


def _empty_like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")


class _WithoutData(FakeTensorMode):  # type: ignore[no-untyped-call]
    """Answers code that asks a tensor without data for its value."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            tensor = args[0]
            if (known := getattr(tensor, "constant", None)) is not None:
                return known.item()
            dtype = tensor.dtype
            return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 0
        return super().__torch_dispatch__(func, types, args, kwargs)


@contextmanager
def _taken_for_real() -> Iterator[None]:
    """Let transformers take fake tensors for real ones, if it is there at all.

    It takes them for an export otherwise, and gives attention an explicit (T, T) mask that training
    does without.
    """
    library = sys.modules.get("transformers.utils.import_utils")
    original = getattr(library, "is_fake_tensor", None)
    if original is None:
        yield
        return
    library.is_fake_tensor = lambda tensor: False  # type: ignore[union-attr]
    try:
        yield
    finally:
        library.is_fake_tensor = original  # type: ignore[union-attr]
