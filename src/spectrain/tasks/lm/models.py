"""Causal language models: LLaMA and OPT by name, or whatever transformers builds or loads."""

import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectrain.errors import UsageError
from spectrain.memory.checkpointing import checkpoint_blocks
from spectrain.tasks.lm import hub
from spectrain.tasks.pretrained import (
    from_config,
    from_weights,
    read_config,
    refuse_pickles,
    require_positions,
)
from spectrain.tasks.reading import user_path

# transformers is imported by the functions that need it: the command line reads PRESETS for its
# help, and should not take seconds to print it.

Overrides = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Preset:
    """The shape of a model family's member."""

    family: str  # "llama" or "opt"
    hidden: int
    feed_forward: int
    heads: int
    layers: int
    more: tuple[tuple[str, int | bool], ...] = ()  # further configuration keys

    def settings(self) -> dict[str, Any]:
        """As keys of the family's transformers configuration.

        Without dropout, as is usual when text is not seen twice; and without a padding token, for
        which both families would otherwise reserve an index that means something else here.
        """
        shape = {
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "attention_dropout": 0.0,
            "pad_token_id": None,
        }
        if self.family == "opt":
            family: dict[str, Any] = {
                "ffn_dim": self.feed_forward,
                "dropout": 0.0,
            }
        else:
            family = {
                "intermediate_size": self.feed_forward,
                "rms_norm_eps": 1e-6,
                "initializer_range": 0.02,
                "tie_word_embeddings": False,
            }
        return {**shape, **family, **dict(self.more)}


# LLaMA: the shapes of the pre-training protocol of ReLoRA (arXiv:2307.05695) and GaLore
# (arXiv:2403.03507); OPT: arXiv:2205.01068.
PRESETS: dict[str, Preset] = {
    "llama-9m": Preset("llama", 128, 352, 4, 4),
    "llama-20m": Preset("llama", 256, 688, 4, 4),
    "llama-35m": Preset("llama", 384, 1024, 8, 6),
    "llama-60m": Preset("llama", 512, 1376, 8, 8),
    "llama-130m": Preset("llama", 768, 2048, 12, 12),
    "llama-350m": Preset("llama", 1024, 2736, 16, 24),
    "llama-1b": Preset("llama", 2048, 5461, 32, 24),
    "llama-7b": Preset("llama", 4096, 11008, 32, 32),
    "opt-125m": Preset("opt", 768, 3072, 12, 12),
    "opt-350m": Preset(
        "opt", 1024, 4096, 16, 24, (("word_embed_proj_dim", 512), ("do_layer_norm_before", False))
    ),
    "opt-1.3b": Preset("opt", 2048, 8192, 32, 24),
}


def build_model(
    name: str,
    *,
    vocab_size: int,
    sequence_length: int,
    overrides: Overrides | None = None,
    end_of_text: int | None = None,
    gradient_checkpointing: bool = False,
    weights: bool = True,
) -> nn.Module:
    """A transformers causal language model in training mode, float32, with SDPA attention.

    name: a preset (any case), or a transformers folder or hub model. If that holds safetensors
        weights they are loaded; with a config.json alone its model starts from random weights.
    vocab_size: of the tokenizer; loaded weights must have at least as many embeddings.
    sequence_length: the longest input there will be.
    overrides: values for keys of the transformers configuration, as text or as numbers.
    end_of_text: the tokenizer's token that begins and ends a text, for later generation.
    gradient_checkpointing: keep each block's input alone for the backward pass.
    weights: False leaves safetensors weights unread, for who wants the shapes alone.

    Built on torch's default device: under `torch.device("meta")` there are no numbers in it. Random
    weights come from torch's global generator. Raises UsageError for a name, key or value that
    cannot be, RunError if the hub does not answer.
    """
    sizes = {"vocab_size": vocab_size}
    if end_of_text is not None:
        sizes |= {"bos_token_id": end_of_text, "eos_token_id": end_of_text}
    preset = PRESETS.get(name.lower())
    if preset is not None:
        sizes["max_position_embeddings"] = sequence_length
        model = _from_preset(preset, sizes, overrides or {})
    else:
        model = _from_name(name, sizes, sequence_length, overrides or {}, weights)
    if gradient_checkpointing:
        checkpoint_blocks(model)
    return model


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The model without dropout and the like, within the context.

    Flags are restored module by module: a part may be kept in evaluation mode on purpose.
    """
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def _from_preset(preset: Preset, sizes: dict[str, int], overrides: Overrides) -> nn.Module:
    from transformers import LlamaConfig, OPTConfig

    family = {"llama": LlamaConfig, "opt": OPTConfig}[preset.family]
    settings = preset.settings() | sizes
    # Built anew with the overrides, since some keys follow from others (head_dim, for one).
    settings |= _coerce(overrides, family(**settings).to_dict())
    return _from_config(lambda: family(**settings), overrides)


def _from_name(
    name: str, sizes: dict[str, int], sequence_length: int, overrides: Overrides, weights: bool
) -> nn.Module:
    folder = user_path(name)
    if not folder.exists():
        if not hub.could_be_hub_name(name) or "/" not in name:
            raise UsageError(_no_such_model(name))
        folder = hub.model_folder(name)
    model = _from_folder(name, folder, sizes, overrides, weights)
    require_positions(name, model.config, sequence_length, "the sequence length")
    return model


def _from_folder(
    name: str, folder: Path, sizes: dict[str, int], overrides: Overrides, weights: bool
) -> nn.Module:
    config = read_config(name, folder)
    settings = _coerce(overrides, config.to_dict())
    if any(folder.glob("*.safetensors")):
        config.update(settings)
        if not weights:
            return _from_config(lambda: config, overrides)
        return _with_weights(name, folder, config, sizes["vocab_size"])
    refuse_pickles(name, folder)
    config.update(sizes | settings)
    return _from_config(lambda: config, overrides)


def skeleton(folder: Path) -> nn.Module:
    """The model that a folder's config.json describes, on the meta device, in training mode.

    Raises UsageError if it describes none.
    """
    config = read_config(str(folder), folder)
    with torch.device("meta"):
        return _from_config(lambda: config, {})


def _from_config(config: Callable[[], Any], overrides: Overrides) -> nn.Module:
    from transformers import AutoModelForCausalLM

    settings = ", ".join(f"{key}={value}" for key, value in overrides.items())
    return from_config(config, AutoModelForCausalLM, settings or "this configuration")


def _with_weights(name: str, folder: Path, config: Any, vocab_size: int) -> nn.Module:
    from transformers import AutoModelForCausalLM

    device = torch.get_default_device()
    model, missing = from_weights(name, folder, config, AutoModelForCausalLM)
    if missing:
        raise UsageError(
            f"{name!r} lacks the weights of {len(missing)} parameters of its configuration, "
            f"such as {missing[0]}"
        )
    embeddings = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if embeddings < vocab_size:
        raise UsageError(
            f"{name!r} knows {embeddings:,} tokens and the corpus has {vocab_size:,}: tokenize it "
            f"with the model's own tokenizer (--tokenizer {name})"
        )
    loaded: nn.Module = model.to(device)
    loaded.tie_weights()  # type: ignore[operator]  # to meta, each of two tied weights goes alone
    return loaded.train()


def _coerce(overrides: Overrides, existing: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides as the types that the configuration has for these keys."""
    coerced = {}
    for key, value in overrides.items():
        if key not in existing:
            near = difflib.get_close_matches(key, existing, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(existing)}"
            raise UsageError(f"the model's configuration has no {key!r}; {hint}")
        coerced[key] = _as_type_of(existing[key], key, value)
        is_size = key.startswith("num_") or key.endswith(("_size", "_dim"))
        if is_size and isinstance(size := coerced[key], int) and size < 1:
            raise UsageError(f"the model's {key} is {size}; it must be at least 1")
    return coerced


def _as_type_of(example: object, key: str, value: str | int | float) -> object:
    try:
        if isinstance(example, bool):
            return {"true": True, "1": True, "false": False, "0": False}[str(value).lower()]
        if isinstance(example, int):
            return int(str(value))
        if isinstance(example, float):
            return float(value)
    except (KeyError, ValueError) as error:
        kind = "true or false" if isinstance(example, bool) else f"a number like {example!r}"
        raise UsageError(f"the model's {key} cannot be {value!r}; it is {kind}") from error
    if isinstance(example, str) or not isinstance(value, str):
        return value
    try:
        return json.loads(value)  # none, a list or a table says nothing of what goes into it
    except (ValueError, RecursionError):
        return value


def _no_such_model(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), PRESETS, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"presets are {', '.join(PRESETS)}"
    return f"{name!r} is no preset, transformers folder or hub model (organisation/name); {hint}"
