"""The pretrained model: found, cut to its first layers, loaded, and frozen but for what trains."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectrain.errors import UsageError
from spectrain.integrations.peft import PeftAdapter
from spectrain.memory.checkpointing import checkpoint_blocks
from spectrain.tasks.finetune.options import FinetuneOptions
from spectrain.tasks.lm import hub
from spectrain.tasks.pretrained import (
    from_config,
    from_weights,
    read_config,
    read_tokenizer,
    refuse_pickles,
    require_positions,
)
from spectrain.tasks.reading import user_path


@dataclass(frozen=True)
class Base:
    """A checkpoint that fine-tuning begins from."""

    options: FinetuneOptions
    name: str  # as it was given
    folder: Path
    gguf: str | None  # the file's name, if the weights are in one
    config: Any  # of the layers that are kept
    tokenizer: Any
    layers: int | None  # of the whole checkpoint, if known

    @classmethod
    def find(cls, options: FinetuneOptions) -> Base:
        """Look for `options.model` and read all but its weights.

        Raises UsageError, in a sentence, if it is none that transformers loads safely or is shorter than
        asked for; RunError if the hub does not answer.
        """
        name = options.model or ""
        folder, gguf = _place(name)
        config = read_config(name, folder, gguf)
        layers = getattr(config, "num_hidden_layers", None)
        if options.keep_layers is not None:
            _cut(name, config, layers, options.keep_layers)
        require_positions(name, config, options.max_length, "--max-length")
        tokenizer = read_tokenizer(name, folder, gguf)
        if len(tokenizer) > config.vocab_size:
            raise UsageError(
                f"{name!r} has a tokenizer of {len(tokenizer):,} tokens and {config.vocab_size:,} "
                "embeddings: they are not of one model"
            )
        if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
            raise UsageError(
                f"the tokenizer of {name!r} has no padding token and no end-of-text token to pad with: "
                "set tokenizer.pad_token and save it again"
            )
        found = cls(options, name, folder, gguf, config, tokenizer, layers)
        _ = found.adapter  # refuse now what cannot be
        return found

    @property
    def pad(self) -> int:
        """The token that fills rows up; the end of text where the tokenizer has none for it."""
        own = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if own is None else own)

    @cached_property
    def digest(self) -> str:
        """sha256 over the names and contents of the files of weights."""
        names = [self.gguf] if self.gguf else sorted(p.name for p in _weights(self.folder))
        found = hashlib.sha256()
        for name in names:
            with open(self.folder / name, "rb") as file:
                own = hashlib.file_digest(file, "sha256").hexdigest()
            found.update(f"{name} {own}\n".encode())
        return found.hexdigest()

    def build(self, classes: Sequence[str] = ()) -> nn.Module:
        """The model with its weights, float32, in training mode; only the head of `classes` trains.

        classes: names of labels, for a sequence classifier whose head is new; none: a causal language
        model. With --train-ordinary everything trains. New weights come from torch's global generator.
        Raises UsageError if other weights than the head's are lacking, RunError as `from_weights`.
        """
        config = self._config(classes)
        model, missing = from_weights(self.name, self.folder, config, _auto(classes), self.gguf)
        lacking = [key for key in missing if not (classes and _in_head(model, key))]
        if lacking:
            raise UsageError(
                f"{self.name!r} lacks the weights of {len(lacking)} parameters of its configuration, "
                f"such as {lacking[0]}"
            )
        return self._prepared(model, classes)

    def skeleton(self, classes: Sequence[str] = ()) -> nn.Module:
        """The same on the meta device, without weights; no random numbers are used up."""
        with torch.device("meta"):
            model = from_config(lambda: self._config(classes), _auto(classes))
        return self._prepared(model, classes)

    @cached_property
    def adapter(self) -> PeftAdapter | None:
        """The one that training goes on with. Raises UsageError if it is none, or for other weights."""
        if self.options.adapter is None:
            return None
        found = PeftAdapter.read(user_path(self.options.adapter))
        if found.base not in (None, self.digest):
            raise UsageError(
                f"--adapter {self.options.adapter} was made for a model with other weights than "
                f"{self.name}: give the model that it was trained on"
            )
        return found

    def describe(self) -> str:
        """Which model is trained, and what of it, in a sentence."""
        kept = self.config.num_hidden_layers if self.layers else None
        cut = f", first {kept} of {self.layers} layers" if kept != self.layers else ""
        head = " and a new head" if self.options.classify else ""
        cut += f", with the adapter in {self.options.adapter}" if self.adapter else ""
        trained = (
            "everything trains"
            if self.options.train_ordinary
            else f"the method's matrices{head} train, the rest is frozen (--train-ordinary trains it, too)"
        )
        return f"{self.name}{cut}: {trained}"

    def _config(self, classes: Sequence[str]) -> Any:
        config = copy.deepcopy(self.config)
        if classes:
            config.id2label = dict(enumerate(classes))
            config.label2id = {name: i for i, name in enumerate(classes)}
            config.pad_token_id = self.pad  # by which causal models find a text's last token
        return config

    def _prepared(self, model: nn.Module, classes: Sequence[str]) -> nn.Module:
        if not self.options.train_ordinary:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(bool(classes) and _in_head(model, name))
        if self.options.gradient_checkpointing:
            checkpoint_blocks(model)
        return model.train()


def _place(name: str) -> tuple[Path, str | None]:
    """The folder of a model, and the name of its GGUF file if that holds the weights."""
    path = user_path(name)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise UsageError(
                f"--model {name}: a file of weights must be .gguf; else give its folder"
            )
        return path.parent, path.name
    if not path.is_dir():
        if not hub.could_be_hub_name(name) or "/" not in name:
            raise UsageError(
                f"--model {name!r} is no transformers folder, .gguf file or hub name (organisation/name)"
            )
        path = hub.model_folder(name)
    if _weights(path):
        return path, None
    found = sorted(file.name for file in path.glob("*.gguf"))
    if len(found) > 1:
        raise UsageError(
            f"--model {name} holds {len(found)} .gguf files ({', '.join(found[:3])}…): give one of them"
        )
    if found:
        return path, found[0]
    refuse_pickles(name, path)
    raise UsageError(f"--model {name} holds no weights (.safetensors or .gguf), so nothing to tune")


def _weights(folder: Path) -> list[Path]:
    return list(folder.glob("*.safetensors"))


def _cut(name: str, config: Any, layers: int | None, kept: int) -> None:
    """Let `config` describe the first `kept` layers alone."""
    if layers is None or kept > layers:
        has = "of an unknown number of layers" if layers is None else f"of {layers} layers"
        raise UsageError(f"--keep-layers {kept}: {name!r} is {has}")
    config.num_hidden_layers = kept
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:kept]


def _auto(classes: Sequence[str]) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForSequenceClassification if classes else AutoModelForCausalLM


def _in_head(model: nn.Module, name: str) -> bool:
    """Whether a parameter of a sequence classifier stands behind its encoder: pooler and classifier."""
    prefix = str(getattr(model, "base_model_prefix", ""))
    return not name.startswith(f"{prefix}.") or ".pooler." in name
