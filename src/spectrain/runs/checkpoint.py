"""Checkpoints: safetensors and JSON, written whole or not at all, checked before they are used.

checkpoints/step-00000200/
    model.safetensors        parameters and buffers, the methods' state included
    optimizer.safetensors    moments, keyed "parameter number/state name"
    probe.safetensors        a fixed input and the model's output for it
    state.json               step, phase, parameter groups, random-number state
    manifest.json            format, and size and sha256 of each file
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from spectrain.errors import RunError
from spectrain.runs.files import read_json, write_json

FORMAT = 2
FILES = ("model.safetensors", "optimizer.safetensors", "probe.safetensors", "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """One intact checkpoint on disk."""

    path: Path
    step: int

    def state(self) -> dict[str, Any]:
        """The content of state.json."""
        content: dict[str, Any] = read_json(self.path / "state.json")
        return content

    def restore(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Load model, optimizer and random-number state. Raises RunError if they do not fit."""
        tensors = load_file(self.path / "model.safetensors")
        state = self.state()
        try:
            model.load_state_dict(tensors | {a: tensors[b] for a, b in state["tied"].items()})
        except RuntimeError as error:
            raise RunError(f"{self.path} does not fit this model: {_first_line(error)}") from None
        saved = load_file(self.path / "optimizer.safetensors")
        optimizer.load_state_dict(_unflatten(saved, state["optimizer"]))
        torch.set_rng_state(saved["rng/cpu"])
        if "rng/cuda" in saved and torch.cuda.is_available():
            torch.cuda.set_rng_state(saved["rng/cuda"])


def save(
    folder: Path,  # the run's checkpoints/
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    probe: tuple[Tensor, Tensor],
    extra: dict[str, Any],
    keep: int,
) -> Checkpoint:
    """Write a checkpoint under a temporary name, make it durable, rename it; drop old ones.

    Raises RunError if the file system refuses (a full disk, a read-only folder); what was there
    before is untouched then.
    """
    final = folder / f"step-{step:08d}"
    partial = folder / f".partial-{step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.glob(".partial-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        partial.mkdir()
        _write(partial, step, model, optimizer, probe, extra)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        _sync_folder(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RunError(
            f"could not write a checkpoint to {folder}: {_first_line(error)}; free some space or "
            "make the folder writable and start again with the same command"
        ) from None
    # A run continues from its newest intact checkpoint, so later ones are damaged.
    kept = [path for path in sorted(folder.glob("step-*")) if path <= final][-keep:]
    for path in folder.glob("step-*"):
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)
    return Checkpoint(final, step)


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest intact checkpoint in `folder`, and a sentence for each damaged one passed over."""
    passed_over: list[str] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        problem = _problem(path)
        if problem is None:
            return Checkpoint(path, int(path.name.removeprefix("step-"))), passed_over
        passed_over.append(f"{path.name} is damaged ({problem}) and is passed over")
    return None, passed_over


def _write(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    probe: tuple[Tensor, Tensor],
    extra: dict[str, Any],
) -> None:
    tensors, tied = _unique(model.state_dict())
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    moments, groups = _flatten(optimizer.state_dict())
    moments["rng/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        moments["rng/cuda"] = torch.cuda.get_rng_state()
    save_file(moments, folder / "optimizer.safetensors")
    save_file({"input": probe[0], "output": probe[1]}, folder / "probe.safetensors")
    write_json(folder / "state.json", {"step": step, "tied": tied, "optimizer": groups, **extra})
    files = {}
    for name in FILES:
        _sync_file(folder / name)
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
    write_json(folder / "manifest.json", {"format": FORMAT, "step": step, "files": files})


def _problem(path: Path) -> str | None:
    """Why the checkpoint at `path` cannot be used, or None."""
    try:
        manifest = read_json(path / "manifest.json")
        if manifest is None:
            return "its manifest is missing"
        if manifest["format"] != FORMAT:
            return f"it has format {manifest['format']}, and this version reads {FORMAT}"
        for name in FILES:
            expected = manifest["files"][name]
            if not (path / name).is_file():
                return f"{name} is missing"
            if (path / name).stat().st_size != expected["bytes"]:
                return f"{name} has the wrong size"
            if _sha256(path / name) != expected["sha256"]:
                return f"{name} has changed"
    except (OSError, RunError, KeyError, TypeError) as error:
        return f"its manifest cannot be read: {_first_line(error)}"
    return None


def _unique(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors with storage of their own, and the names that are tied to one of them."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in state.items():
        key = tensor.data_ptr(), tensor.shape
        if tensor.numel() and key in first:
            tied[name] = first[key]
        else:
            first[key] = name
            tensors[name] = tensor.contiguous()
    return tensors, tied


def _flatten(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{name}"] = value.contiguous()
            else:
                numbers[f"{index}/{name}"] = value
    return tensors, {"groups": state["param_groups"], "numbers": numbers}


def _unflatten(tensors: dict[str, Tensor], saved: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in (*tensors.items(), *saved["numbers"].items()):
        index, name = key.split("/")
        if index != "rng":
            state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": saved["groups"]}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
