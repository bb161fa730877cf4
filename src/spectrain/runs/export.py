"""From a run's checkpoint to a plain one of the task's ordinary model, one matrix at a time."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from spectrain.errors import RunError, UsageError
from spectrain.runs import checkpoint, position
from spectrain.runs.directory import identity
from spectrain.runs.factored import Form, choose, form_of, plain_state, plain_tensor, skeleton
from spectrain.runs.files import read_json, write_json
from spectrain.surgery import parametrized
from spectrain.tasks.plain import INDEX

AGREE = 1e-3  # largest difference of logits that passes for rounding, relative to the largest logit


@dataclass(frozen=True)
class Exported:
    """What was written, and how well it agrees with the trained model."""

    directory: Path
    step: int
    tensors: int
    bytes: int
    difference: float  # largest absolute difference of logits on the probe
    largest: float  # largest absolute logit of the probe
    loader: str  # the function that loads it


def export(
    run: Path, out: Path, shard_size: str = "1GB", which: str | int | None = None
) -> Exported:
    """Write a checkpoint of `run` to `out` as the plain one of an ordinary model.

    which: "last" (the newest intact one), "best" (on validation data), a step, or None: the one that the
    run's results are of.

    Matrices are built one at a time and written shard by shard, so that not more than one shard and
    one matrix are in memory; the source is memory-mapped. The
    written checkpoint is then loaded as any user would load it, and its logits are compared with
    those that the trained model gave when it was saved.

    Raises UsageError if `run` is no run, has no such checkpoint or `out` is taken, RunError if no
    checkpoint is intact or the logits disagree (nothing is left at `out` then).
    """
    config = read_json(run / "config.json") if run.is_dir() else None
    if not isinstance(config, dict) or "method" not in config:
        raise UsageError(f"{run} is no run of spectrain (it has no config.json)")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} exists already; choose a new folder")
    form = form_of(config)
    if which is None:
        options = config.get("options")
        which = "best" if isinstance(options, dict) and options.get("patience") else "last"
    found = choose(run, identity(config), which)
    for needed in form.FOLDERS:
        if not (run / needed).is_dir():
            raise RunError(f"{run} is incomplete: its folder {needed} is missing")
    out = out.resolve()
    partial = out.with_name(f".partial-{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        exported = _write(run, found, config, partial, shard_size, form)
        if not exported.difference <= AGREE * max(1.0, exported.largest):
            raise RunError(
                "the merged model's logits differ from the trained model's by "
                f"{exported.difference:.3g} (largest logit {exported.largest:.3g}); nothing was "
                f"kept at {out}"
            )
        if out.exists():
            out.rmdir()
        os.replace(partial, out)
    except (OSError, SafetensorError) as error:
        raise RunError(f"could not write {out}: {str(error).splitlines()[0]}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return replace(exported, directory=out)


def _write(
    run: Path,
    found: checkpoint.Checkpoint,
    config: dict[str, Any],
    out: Path,
    shard_size: str,
    form: Form,
) -> Exported:
    position.read(found)  # raises if what is read below is malformed
    state = found.state()
    model = skeleton(run, config, state, form)
    layers = dict(parametrized(model))
    kept = plain_state(model, state["tied"])
    plan = split_torch_state_dict_into_shards(kept, max_shard_size=shard_size)
    with safe_open(found.path / "model.safetensors", framework="pt") as source:
        for file, names in plan.filename_to_tensors.items():
            shard = {name: plain_tensor(source, name, layers) for name in names}
            save_file(shard, out / file, {"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(out / INDEX, index)
    for folder in form.FOLDERS:
        for path in (run / folder).iterdir():
            # What spectrain wrote there: data, and nothing that a link leads to.
            if path.suffix in (".json", ".txt", ".model", ".jinja") and not path.is_symlink():
                shutil.copy2(path, out / path.name)
    difference, largest = _compare(out, found.path / "probe.safetensors", form)
    size = sum(f.stat().st_size for f in out.glob("*.safetensors"))
    return Exported(out, found.step, len(kept), size, difference, largest, form.LOADER)


def _compare(directory: Path, probe: Path, form: Form) -> tuple[float, float]:
    """(largest difference, largest magnitude) of the outputs of the checkpoint at `directory`.

    probe: an input and the trained model's output for it. Raises RunError if it is not of this model.
    """
    tensors = load_file(probe)
    given, output = (tensors.get(name, torch.empty(0)) for name in ("input", "output"))
    try:
        found = form.outputs(directory, given)
    except RunError:
        raise RunError(f"{probe} is no input and output of this model") from None
    if found.shape != output.shape or not output.numel():
        raise RunError(f"{probe} is no input and output of this model")
    return (found - output).abs().max().item(), output.abs().max().item()
