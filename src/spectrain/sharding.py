"""Parameters of which each process holds a part: DTensors, as torch's `fully_shard` makes them."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """True for a DTensor."""
    # Its module takes a while to import, and without it there is none.
    kind: Any = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ())
    return isinstance(tensor, kind)


def local(tensor: Tensor) -> Tensor:
    """This process's rows of a sharded tensor, to be edited in place; another tensor as it is."""
    part: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return part


def replicated(tensor: Tensor, like: Tensor) -> Tensor:
    """All of `tensor` on every process, as a DTensor if `like` is one; otherwise as it is.

    It is a sharded tensor, or an ordinary one that every process has.
    """
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh  # type: ignore[attr-defined]
    everywhere = [Replicate()] * mesh.ndim
    if not is_sharded(tensor):
        return DTensor.from_local(tensor.to(like.device), mesh, everywhere, run_check=False)
    spread: Tensor = tensor.redistribute(mesh, everywhere)  # type: ignore[attr-defined]
    return spread


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor as an ordinary one of this process's own; another tensor as it is."""
    full: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return full


def divided(full: Tensor, like: Tensor) -> Tensor:
    """`full`, which every process has, sharded as `like` is; as it is where `like` is not sharded."""
    if not is_sharded(like):
        return full
    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    part: Tensor = replicated(full, like).redistribute(mesh, placements)  # type: ignore[attr-defined]
    return part


def write_back(full: Tensor, tensor: Tensor) -> None:
    """Copy this process's part of `full` into the sharded `tensor`; nothing crosses processes."""
    tensor.copy_(divided(full, tensor))


def rows_here(
    index: Tensor,  # numbers of rows, on the CPU
    like: Tensor,
) -> Tensor:
    """Of the rows `index` of `like` those that this process holds, counted from its first; on the CPU.

    Where `like` is not sharded that is all of them.
    """
    if not is_sharded(like):
        return index
    own = local(divided(torch.arange(like.shape[0], device=like.device), like))
    first = int(own[0]) if len(own) else 0
    return index[(index >= first) & (index < first + len(own))] - first
