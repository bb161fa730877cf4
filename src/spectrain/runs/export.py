"""From a run's checkpoint to a plain one of the task's ordinary model, one matrix at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from spectrain.errors import RunError, UsageError
from spectrain.parametrizations.base import is_transposed
from spectrain.pruning import Pruning
from spectrain.runs import position
from spectrain.runs.directory import identity
from spectrain.runs.factored import (
    Form,
    Plain,
    choose,
    form_of,
    plain_state,
    plain_tensor,
    skeleton,
)
from spectrain.runs.files import new_folder, read_json, write_json
from spectrain.runs.prune import Progress, Pruned, prune, thin_ranks
from spectrain.runs.weights import open_weights
from spectrain.surgery import parametrized, require_dense, select
from spectrain.tasks import factored as factored_form
from spectrain.tasks import plain as plain_form

AGREE = 1e-3  # largest difference of logits that passes for rounding, relative to the largest logit
PROBE_TOKENS = 16  # of a checkpoint that has no probe of its own


@dataclass(frozen=True)
class Exported:
    """What was written, and how well it agrees with the trained model."""

    directory: Path
    step: int | None  # None: of a checkpoint that is not of a run
    tensors: int
    bytes: int
    difference: float  # largest absolute difference of logits on the probe
    largest: float  # largest absolute logit of the probe
    loader: str  # the function that loads it
    pruned: Pruned | None = None


@dataclass(frozen=True)
class _Source:
    """What is exported: its tensors, the files that belong to it, how it is recognised."""

    plain: Plain
    form: Form
    step: int | None
    folders: tuple[Path, ...]
    probe: Callable[[], tuple[Tensor, Tensor]]  # an input, and the model's output for it
    probed: Path  # where that is from


def export(
    run: Path,
    out: Path,
    shard_size: str = "1GB",
    which: str | int | None = None,
    pruning: Pruning | None = None,
    *,
    factored: bool = False,
    progress: Progress = lambda done, total, name: None,
) -> Exported:
    """Write a checkpoint of `run` to `out` as the plain one of an ordinary model.

    which: "last" (the newest intact one), "best" (on validation data), a step, or None: the one that the
    run's results are of. pruning: what is left of the layers that the method trains; `run` may then
    be a transformers folder of a causal language model, too, of which every linear layer but the output
    head is pruned. factored: thin layers as two matrices. progress: before each layer's spectrum.

    Matrices are built one at a time and written shard by shard, so that not more than one shard and
    one matrix are in memory; the source is memory-mapped. The written checkpoint is then loaded as any
    user would load it, and its logits are compared with those that the trained model gave when it was
    saved; how far pruning moved them is no error.

    Raises UsageError if `run` is no run, has no such checkpoint or `out` is taken, RunError if no
    checkpoint is intact or the logits disagree (nothing is left at `out` then).
    """
    content = read_json(run / "config.json") if run.is_dir() else None
    config: dict[str, Any] = content if isinstance(content, dict) else {}
    is_run, is_plain = "method" in config, "model_type" in config
    if not is_run and not (is_plain and pruning is not None):
        why = (
            "a plain checkpoint, which only --prune takes" if is_plain else "it has no config.json"
        )
        raise UsageError(f"{run} is no run of spectrain ({why})")
    if factored and pruning is None:
        raise UsageError("export: factored=True stores pruned layers, so it needs a pruning")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} exists already; choose a new folder")
    try:
        source = _of_run(run, config, which) if is_run else _of_folder(run, which)
    except SafetensorError as error:
        raise RunError(f"{run} cannot be read: {str(error).splitlines()[0]}") from None
    with new_folder(out) as partial:
        exported = _write(source, partial, shard_size, pruning, factored, progress)
        close = exported.difference <= AGREE * max(1.0, exported.largest)
        if pruning is not None:
            close = exported.difference < float("inf")
        if not close:
            raise RunError(
                "the merged model's logits differ from the trained model's by "
                f"{exported.difference:.3g} (largest logit {exported.largest:.3g}); nothing was "
                f"kept at {out}"
            )
    return replace(exported, directory=out.resolve())


def _of_run(run: Path, config: dict[str, Any], which: str | int | None) -> _Source:
    """A checkpoint of a run."""
    form = form_of(config)
    if which is None:
        options = config.get("options")
        which = "best" if isinstance(options, dict) and options.get("patience") else "last"
    found = choose(run, identity(config), which)
    for needed in form.FOLDERS:
        if not (run / needed).is_dir():
            raise RunError(f"{run} is incomplete: its folder {needed} is missing")
    position.read(found)  # raises if what is read below is malformed
    state = found.state()
    model = skeleton(run, config, state, form)
    layers = dict(parametrized(model))
    require_dense(layers)

    def make(name: str) -> Tensor:
        with safe_open(found.path / "model.safetensors", framework="pt") as file:
            return plain_tensor(file, name, layers)

    file_of_probe = found.path / "probe.safetensors"

    def probe() -> tuple[Tensor, Tensor]:
        tensors = load_file(file_of_probe)
        given, output = (tensors.get(name, torch.empty(0)) for name in ("input", "output"))
        return given, output

    like = plain_state(model, state["tied"])
    transposed = {name: layer.transposed for name, layer in layers.items()}
    folders = tuple(run / folder for folder in form.FOLDERS)
    return _Source(Plain(like, transposed, make), form, found.step, folders, probe, file_of_probe)


def _of_folder(folder: Path, which: str | int | None) -> _Source:
    """A causal language model as transformers writes it."""
    if which is not None:
        raise UsageError(f"--checkpoint {which}: {folder} is one plain checkpoint, no run")
    if factored_form.ranks_of(folder) is not None:
        raise UsageError(f"{folder} is factored already: prune the model that it was made of")
    if (folder / "config.json").is_symlink():
        raise UsageError(
            f"{folder} holds links (as the hub's cache does): copy it first, by cp -rL"
        )
    form = form_of({"task": "lm"})
    model = form.skeleton(folder)
    layers = {name: is_transposed(linear) for name, linear in select(model).items()}
    weights = open_weights(folder)
    like = {name: weights.read(name).to("meta") for name in weights.tensors}
    for name in layers:
        expected = model.get_parameter(f"{name}.weight").shape
        stored = like.get(f"{name}.weight")
        if stored is None or stored.shape != expected or not stored.is_floating_point():
            shape = " × ".join(map(str, expected))
            raise UsageError(
                f"{folder} has no {name}.weight of {shape} floating-point numbers: load the model and save "
                "it again by save_pretrained, not quantised"
            )

    def probe() -> tuple[Tensor, Tensor]:
        size = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
        ids = torch.arange(min(PROBE_TOKENS, size)).unsqueeze(0)
        return ids, form.outputs(folder, ids)

    return _Source(Plain(like, layers, weights.read), form, None, (folder,), probe, folder)


def _write(
    source: _Source,
    out: Path,
    shard_size: str,
    pruning: Pruning | None,
    factored: bool,
    progress: Progress,
) -> Exported:
    plain, form, pruned = source.plain, source.form, None
    if pruning is not None:
        plain, pruned = prune(plain, pruning, factored=factored, progress=progress)
    stem = factored_form.STEM if factored else plain_form.STEM
    _write_tensors(plain, out, shard_size, stem)
    _copy_assets(source.folders, out)
    if pruned is not None and factored:
        write_json(out / factored_form.DESCRIPTION, factored_form.describe(thin_ranks(pruned)))
        config = out / "config.json"
        write_json(config, {**read_json(config), **form.FACTORED_SETTINGS})
    difference, largest = _compare(out, source)
    size = sum(f.stat().st_size for f in out.glob("*.safetensors"))
    loader = form.FACTORED_LOADER if factored else form.LOADER
    return Exported(out, source.step, len(plain.like), size, difference, largest, loader, pruned)


def _write_tensors(plain: Plain, out: Path, shard_size: str, stem: str) -> None:
    plan = split_torch_state_dict_into_shards(
        plain.like, max_shard_size=shard_size, filename_pattern=f"{stem}{{suffix}}.safetensors"
    )
    for file, names in plan.filename_to_tensors.items():
        shard = {name: plain.make(name) for name in names}
        save_file(shard, out / file, {"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(out / f"{stem}.safetensors.index.json", index)


def _copy_assets(folders: Iterable[Path], out: Path) -> None:
    for folder in folders:
        for path in folder.iterdir():
            # Data that describes the model, and nothing that a link leads to.
            described = path.suffix in (".json", ".txt", ".model", ".jinja")
            if described and not path.name.endswith(".index.json") and not path.is_symlink():
                shutil.copy2(path, out / path.name)


def _compare(directory: Path, source: _Source) -> tuple[float, float]:
    """(largest difference, largest magnitude) of the outputs of the checkpoint at `directory`.

    Raises RunError if the source's probe, an input and its output, is not of this model.
    """
    given, output = source.probe()
    try:
        found = source.form.outputs(directory, given)
    except RunError as error:
        raise RunError(f"{source.probed} does not fit what was written: {error}") from None
    if found.shape != output.shape or not output.numel():
        raise RunError(f"{source.probed} has no output of this model")
    return (found - output).abs().max().item(), output.abs().max().item()
