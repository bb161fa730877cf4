"""Snapshots: all that a checkpoint holds, copied to host memory, and written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from spectrain.optimizers import Stepping
from spectrain.runs import checkpoint, randomness
from spectrain.runs.files import TEMPORARY, write_atomic, write_json
from spectrain.runs.processes import Team
from spectrain.sharding import whole


@dataclass(frozen=True)
class Snapshot:
    """The state after a step. Training goes on without changing it.

    It costs as much host memory as weights and optimizer state together, from the moment it is taken
    until it is written; on the CPU that is beside the originals.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    probe: dict[str, Tensor]
    state: str  # JSON
    rows: Mapping[str, bytes]  # metrics.jsonl and timing.jsonl


def take(
    step: int,
    model: nn.Module,
    optimizer: Stepping,
    probe: tuple[Tensor, Tensor],
    state: Mapping[str, Any],
    rows: Mapping[str, bytes],
    team: Team,
) -> Snapshot:
    """Copy everything; this is what training waits for.

    Sharded tensors are made whole one after the other, for which all processes have to come here; the
    first one keeps them.

    state: what the loop wants back, as JSON can hold it. rows: the files of `checkpoint.ROWS` as
    they are now, by name.
    """
    tensors, tied = _unique(model.state_dict(keep_vars=True))
    moments, numbers = _by_name(model, optimizer)
    device = next(model.parameters()).device
    moments |= randomness.states(team, device)
    content = {**state, "step": step, "tied": tied, "numbers": numbers}
    return Snapshot(
        step,
        _copies(tensors, team.first),
        _copies(moments, team.first),
        {"input": probe[0], "output": probe[1]},
        json.dumps(content, indent=2) + "\n",
        rows,
    )


def write(folder: Path, run: str, snapshot: Snapshot) -> int:
    """Write the checkpoint under another name, make it durable, rename it; returns its bytes.

    folder: the run's checkpoints/. run: the run's identity. Raises OSError, SafetensorError or
    RunError if the file system refuses; what was there before is untouched then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{snapshot.step:08d}"
    partial = folder / f".{final.name}.new{TEMPORARY}"
    checkpoint.remove(partial)
    try:
        partial.mkdir()
        size = _write_files(partial, run, snapshot)
        # Only what is damaged or foreign stands in the way: no checkpoint is written twice.
        checkpoint.discard(final)
        os.replace(partial, final)
        _sync_folder(folder)
    finally:
        checkpoint.remove(partial)
    return size


def _write_files(folder: Path, run: str, snapshot: Snapshot) -> int:
    save_file(snapshot.model, folder / "model.safetensors", {"format": "pt"})
    save_file(snapshot.optimizer, folder / "optimizer.safetensors")
    save_file(snapshot.probe, folder / "probe.safetensors")
    write_atomic(folder / "state.json", snapshot.state)
    for name in checkpoint.ROWS:
        write_atomic(folder / name, snapshot.rows[name])
    files = {}
    for name in checkpoint.FILES:
        path = folder / name
        path.chmod(0o644)  # safetensors makes them private
        _sync_file(path)
        files[name] = {"bytes": path.stat().st_size, "sha256": checkpoint.sha256(path)}
    manifest = {"format": checkpoint.FORMAT, "run": run, "step": snapshot.step, "files": files}
    write_json(folder / "manifest.json", manifest)
    _sync_folder(folder)
    return sum(path.stat().st_size for path in folder.iterdir())


def _unique(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors with storage of their own, and the names that are tied to one of them."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor in state.items():
        if id(tensor) in first:
            tied[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            tensors[name] = tensor
    return tensors, tied


def _by_name(model: nn.Module, optimizer: Stepping) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state by "parameter/state": tensors, and what is none."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for parameter, p in model.named_parameters():
        for name, value in optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{parameter}/{name}"] = value
            else:
                numbers[f"{parameter}/{name}"] = value
    return tensors, numbers


def _copies(tensors: Mapping[str, Tensor], kept: bool) -> dict[str, Tensor]:
    copies: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if kept:
            copies[name] = torch.empty(full.shape, dtype=full.dtype).copy_(full)
    return copies


def _sync_file(path: Path) -> None:
    with path.open("r+b") as file:  # Windows refuses to sync what is open for reading only
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    if os.name == "posix":  # Windows cannot open folders
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
