"""The weights of a checkpoint on disk, ours or anyone's, read one tensor at a time.

A folder or file of safetensors is mapped into memory for one tensor at a time and let go again, so that
resident memory stays that of a single tensor however large the checkpoint is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from spectrain.errors import RunError, UsageError
from spectrain.runs import checkpoint, position
from spectrain.runs.directory import identity
from spectrain.runs.factored import choose, form_of, owner_of, plain_state, plain_tensor, skeleton
from spectrain.runs.files import read_json
from spectrain.surgery import parametrized, require_dense
from spectrain.tasks import factored, plain

WHAT = (
    f"give a folder with {plain.WEIGHTS} or {plain.INDEX}, a .safetensors file or a run directory"
)


@dataclass(frozen=True)
class Stored:
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: str  # in safetensors' words: F32, BF16, I64, …


@dataclass(frozen=True)
class Weights:
    """Names, shapes and types of a checkpoint's tensors, and how to read one."""

    title: str  # the path, and of a run the step
    tensors: dict[str, Stored]
    _read: Callable[[str], Tensor]

    def read(self, name: str) -> Tensor:
        """The tensor `name`. Raises RunError if it cannot be read."""
        try:
            return self._read(name)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{name} of {self.title} cannot be read: {_reason(error)}") from None


def open_weights(path: Path) -> Weights:
    """The weights at `path`: a .safetensors file, a folder that holds one or shards with their index, a
    run directory (its newest intact checkpoint) or one checkpoint of a run.

    Layers of a run that are in low-rank or spectral form are built when they are read, by the names that
    the merged model has. Raises UsageError if there is nothing of that kind, RunError if it is damaged.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist: {WHAT}")
    if path.is_file():
        if path.suffix != ".safetensors":
            raise UsageError(f"{path} is no .safetensors file: {WHAT}")
        return _of_files(path, [path])
    if (config := _run_config(path)) is not None:
        return _of_run(path, config, "last")
    run = path.absolute().parent.parent
    step = checkpoint.step_of(path.absolute())
    if step is not None and (config := _run_config(run)) is not None:
        return _of_run(run, config, step)
    weights, ranks = _of_files(path, _files(path)), factored.ranks_of(path)
    return weights if ranks is None else _with_products(weights, ranks)


def _with_products(weights: Weights, ranks: Mapping[str, int]) -> Weights:
    """The same with W (m, n) in the place of the two factors of every layer that `ranks` names."""
    tensors = dict(weights.tensors)
    for layer in ranks:
        try:
            left, right = (tensors.pop(f"{layer}.{factor}") for factor in ("left", "right"))
        except KeyError as error:
            raise RunError(
                f"{weights.title} has no {error.args[0]}: prune the model again"
            ) from None
        tensors[f"{layer}.weight"] = Stored((left.shape[0], right.shape[-1]), left.dtype)

    def read(name: str) -> Tensor:
        layer = name.removesuffix(".weight")
        if layer not in ranks:
            return weights.read(name)
        left, right = (weights.read(f"{layer}.{factor}") for factor in ("left", "right"))
        return (left.double() @ right.double()).to(left.dtype)

    return Weights(weights.title, tensors, read)


def _run_config(folder: Path) -> dict[str, Any] | None:
    """The config.json of a run; None if `folder` is none."""
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        return None
    if config.get("kind") == "comparison":
        raise UsageError(f"{folder} is a comparison: give the directory of one of its runs")
    return config if "method" in config and (folder / "checkpoints").is_dir() else None


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a folder. Raises UsageError if it has none, or several without an index."""
    form = plain if factored.ranks_of(folder) is None else factored
    single, index = folder / form.WEIGHTS, folder / form.INDEX
    if single.exists():
        return [single]
    if index.exists():
        content = read_json(index)
        names = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
            raise RunError(f"{index} is damaged (it has no weight_map): restore it")
        shards = sorted(set(names.values()))
        for shard in shards:
            if Path(shard).name != shard or not (folder / shard).is_file():
                raise RunError(f"{index} names {shard!r}, which is not in its folder: restore it")
        return [folder / shard for shard in shards]
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found
    if found:
        raise UsageError(
            f"{folder} has {len(found)} .safetensors files and no index: give one of them"
        )
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        raise UsageError(
            f"{folder} has no .safetensors file, and pickled weights are not read: load the model and "
            "save it again by save_pretrained"
        )
    raise UsageError(f"{folder} holds no checkpoint: {WHAT}")


def _of_files(path: Path, files: list[Path]) -> Weights:
    tensors: dict[str, Stored] = {}
    places: dict[str, Path] = {}
    for file in files:
        for name, stored in _contents(file).items():
            tensors[name], places[name] = stored, file

    def read(name: str) -> Tensor:
        with safe_open(places[name], framework="pt") as source:
            tensor: Tensor = source.get_tensor(name)
        return tensor

    return Weights(str(path), tensors, read)


def _of_run(run: Path, config: dict[str, Any], which: str | int) -> Weights:
    form = form_of(config)
    found = choose(run, identity(config), which)
    if not (run / "model").is_dir():
        raise RunError(f"{run} is incomplete: its folder model is missing")
    position.read(found)  # raises if what is read below is malformed
    state = found.state()
    model = skeleton(run, config, state, form)
    layers = dict(parametrized(model))
    require_dense(layers, f"{run} cannot be read as matrices")
    file = found.path / "model.safetensors"
    written = _contents(file)
    tensors = {}
    for name, tensor in plain_state(model, state["tied"]).items():
        if owner_of(name, layers) is None and name not in written:
            raise RunError(
                f"the checkpoint {found.path} does not fit its own model: it has no {name}"
            )
        # What is built from factors has a shape only; like them, it is of floating-point numbers.
        tensors[name] = written.get(name, Stored(tuple(tensor.shape), "F32"))

    def read(name: str) -> Tensor:
        with safe_open(file, framework="pt") as source:
            return plain_tensor(source, name, layers)

    return Weights(f"{run}, step {found.step}", tensors, read)


def _contents(file: Path) -> dict[str, Stored]:
    """What a safetensors file says that it holds. Raises RunError if it cannot be read or is damaged."""
    try:
        with safe_open(file, framework="pt") as source:
            slices = {name: source.get_slice(name) for name in source.keys()}  # noqa: SIM118 (no mapping)
            return {n: Stored(tuple(s.get_shape()), str(s.get_dtype())) for n, s in slices.items()}
    except (OSError, SafetensorError) as error:
        raise RunError(f"{file} is damaged or no safetensors file: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
