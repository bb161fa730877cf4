"""A run's checkpoint read as the plain weights that its factors stand for, one tensor at a time."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from spectrain.errors import RunError, UsageError
from spectrain.method import method_from
from spectrain.runs import checkpoint, position
from spectrain.runs.options import RunOptions
from spectrain.surgery import apply, parametrized


class Form(Protocol):
    """What is a task's own of its plain checkpoints: a module tasks/<task>/plain.py."""

    FOLDERS: tuple[str, ...]  # of a run, whose files belong to it
    LOADER: str  # the function that loads it, by its qualified name
    FACTORED_LOADER: str  # and a factored one
    FACTORED_SETTINGS: dict[
        str, str
    ]  # of config.json, by which other programs refuse a factored one

    def skeleton(self, folder: Path) -> nn.Module: ...
    def outputs(self, directory: Path, given: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Plain:
    """A plain checkpoint that is to be written: what its tensors are like, and how each of them is made."""

    like: dict[str, Tensor]  # on the meta device
    layers: dict[
        str, bool
    ]  # linear layers that the method trains; True where W is stored (in, out)
    make: Callable[[str], Tensor]


def form_of(config: dict[str, Any]) -> Form:
    """The plain form of the task that a run's config.json names. Raises UsageError if it is none."""
    task = config.get("task")
    if task not in ("lm", "graph", "translate", "image", "finetune", "classify"):
        raise UsageError(f"there are no plain checkpoints of the task {task!r}")
    return cast(Form, importlib.import_module(f"spectrain.tasks.{task}.plain"))


def choose(run: Path, name: str, which: str | int) -> checkpoint.Checkpoint:
    """The checkpoint that is asked for; `name` is the run's identity."""
    folder = run / "checkpoints"
    if isinstance(which, int):
        return checkpoint.at(folder, which, name)
    search = checkpoint.newest(folder, name)
    if search.found is None:
        reasons = f" ({'; '.join(search.passed_over)})" if search.passed_over else ""
        raise RunError(f"{run} has no intact checkpoint{reasons}")
    if which == "last":
        return search.found
    best = position.read(search.found)[0].best
    if best is None:
        raise UsageError(
            f"{run} has no best checkpoint: it was trained without --keep-best, or not validated yet"
        )
    return checkpoint.at(folder, best.step, name)


def skeleton(run: Path, config: dict[str, Any], state: dict[str, Any], form: Form) -> nn.Module:
    """The trained model with its exchanged layers, without any numbers in it."""
    settings = dict(state["phases"][state["phase"]]["method"])
    method = method_from(settings.pop("name"), settings)
    options = RunOptions(targets=config["options"]["targets"], exclude=config["options"]["exclude"])
    model = form.skeleton(run / "model")
    with torch.device("meta"):
        apply(model, method, options.targets, options.excluded, report=None)
    return model


def plain_state(model: nn.Module, tied: Sequence[str]) -> dict[str, Tensor]:
    """The state of the ordinary model that a skeleton stands for, without numbers; no tied names."""
    layers = dict(parametrized(model))
    plain = {n: t for n, t in model.state_dict().items() if owner_of(n, layers) is None}
    for name, layer in layers.items():
        shape = (layer.out_features, layer.in_features)
        weight = torch.empty(shape[::-1] if layer.transposed else shape, device="meta")
        plain[f"{name}.weight"] = weight.to(layer.weight_dtype)
        if layer.bias is not None:
            plain[f"{name}.bias"] = layer.bias
    return {name: tensor for name, tensor in plain.items() if name not in tied}


def owner_of(name: str, layers: dict[str, Any]) -> str | None:
    """The exchanged layer that the state `name` belongs to."""
    parent = name.rpartition(".")[0]
    return parent if parent in layers else None


def plain_tensor(source: Any, name: str, layers: dict[str, Any]) -> Tensor:
    """One tensor of the plain checkpoint: read as it is, or built from a layer's factors."""
    owner = owner_of(name, layers)
    if owner is None or name.endswith(".bias"):
        tensor: Tensor = source.get_tensor(name)
        return tensor
    layer = layers[owner]
    prefix = f"{owner}."
    keys = [key for key in source.keys() if key.startswith(prefix)]  # noqa: SIM118 (no mapping)
    state = {key.removeprefix(prefix): source.get_tensor(key) for key in keys}
    try:
        layer.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise RunError(f"the checkpoint does not fit its own method at {owner}: {reason}") from None
    with torch.no_grad():
        weight: Tensor = layer.dense().to(layer.weight_dtype)
    layer.to("meta")
    return (weight.mT if layer.transposed else weight).contiguous()
