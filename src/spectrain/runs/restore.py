"""From a checkpoint back into model, optimizer and random numbers, after every tensor was checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from spectrain.errors import RunError
from spectrain.optimizers import MakeOptimizer, Stepping, each
from spectrain.runs.checkpoint import Checkpoint
from spectrain.runs.randomness import is_state
from spectrain.runs.records import OBJECT, TEXT, Each, check_record
from spectrain.sharding import divided, is_sharded

_STATE = {"tied": Each(TEXT), "numbers": OBJECT}
_SIZES = (
    2,
    3,
    5,
    7,
    11,
    13,
)  # of a stand-in's dimensions: each is recognised in its state's shapes
Layout = dict[str, Tensor | object]  # an optimizer's state of one parameter, as an example


def restore(
    found: Checkpoint, model: nn.Module, optimizer: Stepping, make_optimizer: MakeOptimizer
) -> dict[str, Tensor]:
    """Load weights and moments, and return random-number states; nothing is loaded if anything does
    not fit. Of what is sharded a process loads its part.

    make_optimizer: makes an optimizer of this kind, to see what it keeps for a parameter. Rates,
    decay and such are not loaded: they are the optimizer's own. Raises RunError as `check_fit` does.
    """
    tensors, moments, numbers = _read_fitting(found, model, optimizer, make_optimizer)
    states: dict[str, dict[str, Any]] = {}
    random = {key: moments.pop(key) for key in list(moments) if is_state(key)}
    parameters = dict(model.named_parameters())
    for key, value in (*moments.items(), *numbers.items()):
        parameter, _, name = key.rpartition("/")
        own = parameters[parameter]
        if isinstance(value, Tensor) and value.shape == own.shape:
            value = divided(value, own)
        elif isinstance(value, Tensor) and value.ndim and is_sharded(own):
            raise RunError(
                f"{found.path}: {_stepper(optimizer, own)} keeps {name} in another shape than its "
                "parameter, which --shard cannot divide; continue without --shard"
            )
        states.setdefault(parameter, {})[name] = value
    names = {id(p): name for name, p in model.named_parameters()}
    try:
        like = model.state_dict()
        model.load_state_dict({name: divided(t, like[name]) for name, t in tensors.items()})
        for part in each(optimizer):
            order = [names[id(p)] for group in part.param_groups for p in group["params"]]
            content = part.state_dict()
            content["state"] = {i: states[name] for i, name in enumerate(order) if name in states}
            part.load_state_dict(content)
    except (RuntimeError, ValueError) as error:
        raise RunError(f"{found.path} cannot be loaded: {str(error).splitlines()[0]}") from None
    return random


def check_fit(
    found: Checkpoint, model: nn.Module, optimizer: Stepping, make_optimizer: MakeOptimizer
) -> None:
    """Raise RunError, naming file and tensor, if the checkpoint is not of this model and optimizer.

    The model may be on the meta device.
    """
    _read_fitting(found, model, optimizer, make_optimizer)


def _read_fitting(
    found: Checkpoint, model: nn.Module, optimizer: Stepping, make_optimizer: MakeOptimizer
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """(model's tensors, optimizer's tensors, optimizer's other values), all of them checked."""
    state = found.state()
    check_record(found.path / "state.json", state, _STATE)
    file = found.path / "model.safetensors"
    tensors = _tensors(file)
    for name, source in state["tied"].items():
        if source not in tensors:
            raise RunError(
                f"{found.path / 'state.json'}: {name} is tied to {source}, which is missing"
            )
        tensors[name] = tensors[source]
    expected = model.state_dict()
    _require_names(file, tensors.keys(), expected.keys())
    for name, tensor in tensors.items():
        _require(file, name, tensor, expected[name].shape, expected[name].dtype)

    file = found.path / "optimizer.safetensors"
    moments = _tensors(file)
    random = {key for key in moments if is_state(key)}
    if "rng/cpu" not in random:
        raise RunError(f"{file}: rng/cpu is missing")
    for key in random:
        if key.startswith("rng/cpu"):
            _require(file, key, moments[key], torch.get_rng_state().shape, torch.uint8)
        elif torch.cuda.is_available():
            _require(file, key, moments[key], torch.cuda.get_rng_state().shape, torch.uint8)
    numbers: dict[str, Any] = state["numbers"]
    known = {key: moments[key] for key in moments if key not in random} | numbers
    _check_moments(file, known, model, optimizer, make_optimizer)
    return tensors, moments, numbers


def _check_moments(
    file: Path,
    values: Mapping[str, Any],  # by "parameter/state"
    model: nn.Module,
    optimizer: Stepping,
    make_optimizer: MakeOptimizer,
) -> None:
    owners = _owners(optimizer)
    parameters = {name: p for name, p in model.named_parameters() if id(p) in owners}
    by_parameter: dict[str, set[str]] = {}
    for key in values:
        parameter, _, name = key.rpartition("/")
        by_parameter.setdefault(parameter, set()).add(name)
    if unknown := sorted(by_parameter.keys() - parameters.keys()):
        raise RunError(f"{file}: {unknown[0]} is no parameter that this run trains")
    layouts: dict[object, Layout] = {}
    for parameter, names in by_parameter.items():
        p = parameters[parameter]
        kind = p.ndim, p.dtype, p.device, owners[id(p)]
        if kind not in layouts:
            layouts[kind] = _layout(p, make_optimizer)
        layout = layouts[kind]
        if names != layout.keys():
            raise RunError(
                f"{file}: for {parameter} it has {_words(names)}, where {_stepper(optimizer, p)} keeps "
                f"{_words(layout)}"
            )
        sizes = {1: 1, **dict(zip(_SIZES, p.shape, strict=False))}
        for name, example in layout.items():
            value = values[f"{parameter}/{name}"]
            if isinstance(example, Tensor):
                shape = torch.Size(sizes.get(n, n) for n in example.shape)
                _require(file, f"{parameter}/{name}", value, shape, example.dtype)
            elif type(value) is not type(example):
                raise RunError(
                    f"{file}: {parameter}/{name} is {_kind(value)}, where this run needs "
                    f"{_kind(example)}"
                )


def _owners(optimizer: Stepping) -> dict[int, int]:
    """Which of the optimizers steps a parameter, by its id."""
    parts = enumerate(each(optimizer))
    return {id(p): i for i, part in parts for group in part.param_groups for p in group["params"]}


def _stepper(optimizer: Stepping, p: Tensor) -> str:
    """The name of the optimizer that steps `p`."""
    return type(each(optimizer)[_owners(optimizer)[id(p)]]).__name__


def _layout(parameter: Tensor, make_optimizer: MakeOptimizer) -> Layout:
    """What the optimizer keeps for such a parameter after a step, seen on a small stand-in."""
    device = "cpu" if parameter.is_meta else parameter.device
    size = _SIZES[: parameter.ndim]
    small = torch.zeros(size, dtype=parameter.dtype, device=device, requires_grad=True)
    small.grad = torch.zeros_like(small)
    if hasattr(parameter, "manifold"):  # by which its optimizer is chosen
        small.manifold = parameter.manifold  # type: ignore[attr-defined]
    optimizer = make_optimizer([{"params": [small]}])
    optimizer.step()
    return dict(optimizer.state.get(small, {}))


def _require_names(file: Path, found: Any, expected: Any) -> None:
    if missing := sorted(expected - found):
        raise RunError(f"{file}: {missing[0]} is missing")
    if unknown := sorted(found - expected):
        raise RunError(f"{file}: {unknown[0]} is no part of this model")


def _require(file: Path, name: str, value: Any, shape: torch.Size, dtype: torch.dtype) -> None:
    if not isinstance(value, Tensor) or value.shape != shape or value.dtype != dtype:
        raise RunError(
            f"{file}: {name} is {_kind(value)}, where this run needs {_tensor_kind(shape, dtype)}"
        )


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return _tensor_kind(value.shape, value.dtype)
    return "null" if value is None else f"a {type(value).__name__}"


def _tensor_kind(shape: torch.Size, dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def _words(names: Any) -> str:
    return ", ".join(sorted(names)) or "nothing"


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise RunError(f"{file} cannot be read: {str(error).splitlines()[0]}") from None
