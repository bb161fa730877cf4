"""transformers' Trainer: attach while it trains, and an ordinary model beside each of its checkpoints."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from spectrain.attachment import attach, detach, is_attached
from spectrain.errors import UsageError
from spectrain.parametrizations.base import Parametrization
from spectrain.surgery import parametrized, require_dense

_MERGED = "merged"  # the folder of the ordinary model, beside a checkpoint's files
_SHARD = "1GB"  # of a merged model, so much is in memory at a time
_INDEX = "model.safetensors.index.json"
# The name of a tensor that means nothing; transformers prints it when it refuses to load the checkpoint.
_NOTICE = (
    f"unmerged spectrain model - load the folder {_MERGED} or call spectrain.merge before saving"
)


class SpectrainCallback(TrainerCallback):  # type: ignore[misc]
    """Runs the model's method while Trainer trains, and keeps its checkpoints from being mistaken.

    Apply a method to the model and give Trainer an optimizer made from its groups first:

        spectrain.apply(model, spectrain.SST(rank=64))
        optimizer = torch.optim.AdamW(spectrain.param_groups(model, lr=1e-3))
        Trainer(model, ..., optimizers=(optimizer, None), callbacks=[SpectrainCallback()])

    Gradient accumulation, mixed precision, DDP and `resume_from_checkpoint` are Trainer's own; a resumed
    run equals an uninterrupted one bit for bit. Beside each checkpoint the folder `merged` gets the
    ordinary model, as `from_pretrained` takes it, with Trainer's tokenizer if it has one; that needs
    memory for one matrix and one gigabyte more. What Trainer saves of an unmerged model, checkpoints and
    `save_model`, cannot be loaded by `from_pretrained`: it raises instead of drawing the weights that it
    does not find.

    Raises UsageError when training begins if `attach` does, or a layer is equal to no single matrix;
    when Trainer is made if it is to use FSDP or DeepSpeed, which save in forms of their own.
    """

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.fsdp or args.deepspeed:
            raise UsageError(
                "SpectrainCallback: FSDP and DeepSpeed save in forms of their own, which it could "
                "neither mark nor merge; use DDP, or a loop of your own with fully_shard"
            )
        model: nn.Module = kwargs["model"]
        model.register_state_dict_post_hook(_mark)  # type: ignore[no-untyped-call]
        model.register_load_state_dict_pre_hook(_unmark)  # type: ignore[no-untyped-call]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model: nn.Module = kwargs["model"]
        optimizer: Optimizer = kwargs["optimizer"]
        require_dense(dict(parametrized(model)))  # now, not at the first save
        if is_attached(model):  # by a call of train() that an error ended
            detach(model)
        attach(model, optimizer)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero or args.output_dir is None:
            return
        checkpoint = Path(args.output_dir, f"checkpoint-{state.global_step}")
        _refuse_loading(checkpoint / "config.json")
        partial = checkpoint / f".partial-{_MERGED}"
        shutil.rmtree(partial, ignore_errors=True)
        save_merged(kwargs["model"], partial, kwargs.get("processing_class"))
        shutil.rmtree(checkpoint / _MERGED, ignore_errors=True)
        os.replace(partial, checkpoint / _MERGED)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if is_attached(kwargs["model"]):
            detach(kwargs["model"])


# --- what marks an unmerged model ------------------------------------------------------------------


def _marks(model: nn.Module) -> Iterator[str]:
    """The weights that the ordinary model has and this one lacks, and the notice that says why."""
    lacking = [n for n, layer in parametrized(model) if "weight" not in layer._parameters]
    yield from (f"{name}.weight" for name in lacking)
    if lacking:
        yield _NOTICE


def _mark(model: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Give the state dict a weight of one number for each it lacks: it fits no ordinary model."""
    for name in _marks(model):
        state[prefix + name] = torch.zeros(
            1
        )  # not an empty one: accelerate takes all for one tensor


def _unmark(model: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
    """Take the marks out again where the state dict is loaded into a model that does not need them."""
    for name in _marks(model):
        state.pop(prefix + name, None)


def _refuse_loading(config: Path) -> None:
    """Let `from_pretrained` end with a sentence: it reads the name of the weights' file from here."""
    if config.is_file():
        settings = json.loads(config.read_text(encoding="utf-8"))
        settings["transformers_weights"] = _NOTICE
        partial = config.with_name(f".partial-{config.name}")
        partial.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(partial, config)


# --- the merged model ------------------------------------------------------------------------------


@torch.no_grad()
def save_merged(model: nn.Module, folder: str | os.PathLike[str], tokenizer: Any = None) -> None:
    """Write the ordinary model that `model` is equal to, as `from_pretrained` takes it.

    `model` stays as it is and may go on training; `spectrain.merge` and `save_pretrained` write the same.
    Needs memory for one shard of a gigabyte and one matrix. tokenizer: saved beside it, where given.
    Raises UsageError if nothing was applied to `model`, or a layer is equal to no single matrix.
    """
    names = model.named_modules(remove_duplicate=False)  # all names of a layer that is shared
    layers = {name: layer for name, layer in names if isinstance(layer, Parametrization)}
    if not layers:
        raise UsageError(
            "save_merged: this model has no exchanged layers; call its save_pretrained"
        )
    require_dense(layers)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plain: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in model.state_dict().items():
        if name.rpartition(".")[0] in layers or name == _NOTICE:
            continue
        key = tensor.data_ptr(), tensor.shape
        if tensor.numel() and key in seen:
            continue  # a tied weight is written once, as transformers does
        seen.add(key)
        plain[name] = tensor
    for name, layer in layers.items():
        shape = layer.out_features, layer.in_features
        weight = torch.empty(shape[::-1] if layer.transposed else shape, device="meta")
        plain[f"{name}.weight"] = weight.to(layer.weight_dtype)
        if layer.bias is not None:
            plain[f"{name}.bias"] = layer.bias
    plan = split_torch_state_dict_into_shards(plain, max_shard_size=_SHARD)
    for file, parts in plan.filename_to_tensors.items():
        shard = {}
        for name in parts:
            owner, _, last = name.rpartition(".")
            tensor = plain[name]
            if owner in layers and last == "weight":
                layer = layers[owner]
                tensor = layer.dense().to(layer.weight_dtype)
                tensor = tensor.mT if layer.transposed else tensor
            shard[name] = tensor.detach().cpu().contiguous()
        save_file(shard, folder / file, {"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / _INDEX).write_text(text, encoding="utf-8")
    if isinstance(model, PreTrainedModel):
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]
        config.dtype = next(t.dtype for t in plain.values() if t.is_floating_point())
        config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
