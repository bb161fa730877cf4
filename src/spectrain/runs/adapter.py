"""A fine-tuned run as an adapter in peft's format: what each matrix has changed by, as two thin ones."""

from __future__ import annotations

import math
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spectrain.errors import RunError, UsageError
from spectrain.integrations.peft import CONFIG, ORIGIN, PREFIX, WEIGHTS
from spectrain.parametrizations.base import Parametrization
from spectrain.runs.changes import LayerChange, Truncation, cut, trained
from spectrain.runs.checkpoint import Checkpoint
from spectrain.runs.directory import identity
from spectrain.runs.export import AGREE
from spectrain.runs.factored import choose, form_of, skeleton
from spectrain.runs.files import new_folder, read_json, write_json
from spectrain.surgery import parametrized, require_dense
from spectrain.tasks.finetune.base import Base
from spectrain.tasks.finetune.options import FinetuneOptions

KINDS = {"finetune": "CAUSAL_LM", "classify": "SEQ_CLS"}  # peft's names, by task


@dataclass(frozen=True)
class Adapter:
    """What was written."""

    directory: Path
    step: int
    layers: tuple[LayerChange, ...]
    modules: tuple[str, ...]  # that changed otherwise, and are saved whole
    bytes: int
    difference: float  # largest absolute difference of logits on the probe
    largest: float  # largest absolute logit of the probe

    @property
    def error(self) -> float:
        """‖what is left out‖ / ‖change‖ over all layers together."""
        norm = math.hypot(*(layer.norm for layer in self.layers))
        return math.hypot(*(layer.left_out for layer in self.layers)) / norm if norm else 0.0

    @property
    def worst(self) -> LayerChange:
        """The layer of which the largest share is left out."""
        return max(self.layers, key=lambda one: one.left_out / one.norm if one.norm else 0.0)


def export_adapter(
    run: Path, out: Path, which: str | int | None = None, truncation: Truncation | None = None
) -> Adapter:
    """Write the change that a run of `train finetune` has made to its base model to `out`, for peft.

    Factors that were trained beside the base's own weights (LoRA's) are written as they are; any other
    change is its truncated SVD, so that needs a `truncation`. Modules that changed otherwise, as a new
    head, are saved whole. The adapter is then added to the base model, whose logits are compared with
    those of the trained model.

    Raises UsageError if `run` is no such run, its base model is another now, or an adapter cannot hold
    what has changed; RunError if no checkpoint is intact or the logits of exact factors disagree.
    """
    config = read_json(run / "config.json") if run.is_dir() else None
    if not isinstance(config, dict) or "method" not in config:
        raise UsageError(f"{run} is no run of spectrain (it has no config.json of one)")
    if config.get("task") not in KINDS:
        raise UsageError(
            f"{run} is no run of train finetune, and only those know the base model that an adapter "
            "changes: merge it with --out"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--peft {out} exists already; choose a new folder")
    found = choose(run, identity(config), which or "last")
    base = _base(run, config)
    model = base.build(_classes(run, config))
    layers = dict(parametrized(skeleton(run, config, found.state(), form_of(config))))
    require_dense(layers)
    with new_folder(out) as partial:
        adapter = _write(found, base, model, layers, KINDS[config["task"]], partial, truncation)
        for path in (run / "tokenizer").glob("*.json"):
            shutil.copy2(path, partial / path.name)
    return replace(adapter, directory=out.resolve())


def _base(run: Path, config: Mapping[str, Any]) -> Base:
    """The model that the run began from, if it is still the same."""
    own = {f.name for f in fields(FinetuneOptions)} - {"adapter"}  # what it began with may be gone
    base = Base.find(FinetuneOptions(**{k: v for k, v in config["options"].items() if k in own}))
    if base.digest != config.get("corpus", {}).get("base_sha256"):
        raise UsageError(
            f"{base.name} has other weights than when {run} began, so the change since then cannot be "
            "told: put the model that was tuned back in its place"
        )
    return base


def _classes(run: Path, config: Mapping[str, Any]) -> list[str]:
    """The names of labels, of a classifier."""
    labels = read_json(run / "model" / "config.json").get("id2label", {})
    return list(labels.values()) if config["task"] == "classify" else []


@torch.no_grad()
def _write(
    found: Checkpoint,
    base: Base,
    model: nn.Module,
    layers: Mapping[str, Parametrization],
    kind: str,
    out: Path,
    truncation: Truncation | None,
) -> Adapter:
    """Write the adapter, and turn `model` into base and adapter together."""
    tensors: dict[str, Tensor] = {}
    changes, scales = [], {}
    with safe_open(found.path / "model.safetensors", framework="pt") as file:
        for name, layer in layers.items():
            weight = model.get_parameter(f"{name}.weight")
            exact = trained(file, name, layer, weight)
            B, A, scales[name], change = exact or cut(file, name, layers, weight, truncation)
            changes.append(change)
            tensors[f"{PREFIX}{name}.lora_A.weight"] = A.contiguous()
            tensors[f"{PREFIX}{name}.lora_B.weight"] = B.contiguous()
            product = (B @ A) * scales[name]
            weight.add_(product.mT if layer.transposed else product)
        for name, tensor in _changed(file, found, model, layers):
            tensors[f"{PREFIX}{name}"] = tensor
            model.get_parameter(name).copy_(tensor)
    modules = tuple(dict.fromkeys(_module_of(n) for n in tensors if ".lora_" not in n))
    save_file(tensors, out / WEIGHTS, {"format": "pt"})
    described = _config(
        base, model, layers, {c.name: c.rank for c in changes}, scales, modules, kind
    )
    write_json(out / CONFIG, described)
    difference, largest = _compare(found, model)
    if not any(c.left_out for c in changes) and difference > AGREE * max(1.0, largest):
        raise RunError(
            f"base and adapter give logits that differ from the trained model's by {difference:.3g} "
            f"(largest logit {largest:.3g}); nothing was kept"
        )
    size = (out / WEIGHTS).stat().st_size
    adapter = Adapter(out, found.step, tuple(changes), modules, size, difference, largest)
    origin = {
        "base": base.name,
        "base_sha256": base.digest,
        "keep_layers": base.options.keep_layers,
        "step": found.step,
        "relative_error": adapter.error,
        "layers": [asdict(change) for change in changes],
    }
    write_json(out / ORIGIN, origin)
    return adapter


def _changed(
    file: Any, found: Checkpoint, model: nn.Module, layers: Mapping[str, Parametrization]
) -> Iterator[tuple[str, Tensor]]:
    """What else is not as in the base model, by name. Raises UsageError where an adapter cannot hold it."""
    tied = set(found.state()["tied"])
    shared = {id(p) for n, p in model.named_parameters(remove_duplicate=False) if n in tied}
    for name, parameter in model.named_parameters():
        parent = name.rpartition(".")[0]
        if parent in layers and name.endswith(".weight"):
            continue
        tensor = file.get_tensor(name)
        if torch.equal(tensor.to(parameter.dtype), parameter):
            continue
        if parent in layers or id(parameter) in shared:
            what = "is the bias of an exchanged layer" if parent in layers else "is tied to another"
            raise UsageError(
                f"{name} was trained and {what}, which peft's adapters cannot hold: write the whole "
                "model with --out, or train without --train-ordinary"
            )
        yield name, tensor


def _module_of(key: str) -> str:
    return key.removeprefix(PREFIX).rpartition(".")[0]


def _config(
    base: Base,
    model: nn.Module,
    layers: Mapping[str, Parametrization],
    ranks: Mapping[str, int],
    scales: Mapping[str, float],
    modules: tuple[str, ...],
    kind: str,
) -> dict[str, Any]:
    """adapter_config.json. peft's scale is alpha / r."""
    alphas = {name: scales[name] * rank for name, rank in ranks.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    suffixes = sorted({name.rpartition(".")[2] for name in layers})
    alike = {
        name
        for name, _ in model.named_modules()
        if re.search(rf"(^|\.)({'|'.join(suffixes)})$", name)
    }
    return {
        "peft_type": "LORA",
        "task_type": kind,
        "base_model_name_or_path": base.name,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": suffixes if alike == set(layers) else sorted(layers),
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: a for name, a in alphas.items() if a != alpha},
        "modules_to_save": list(modules) or None,
        "fan_in_fan_out": any(layer.transposed for layer in layers.values()),
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }


def _compare(found: Checkpoint, model: nn.Module) -> tuple[float, float]:
    """(largest difference, largest magnitude) of the logits of base and adapter on the run's probe."""
    probe = load_file(found.path / "probe.safetensors")
    if not probe.keys() >= {"input", "output"}:
        raise RunError(f"{found.path}/probe.safetensors has no output of this model")
    logits = model.eval()(input_ids=probe["input"]).logits.float()
    if logits.shape != probe["output"].shape:
        raise RunError(f"{found.path}/probe.safetensors is of another model")
    return float((logits - probe["output"]).abs().max()), float(probe["output"].abs().max())
