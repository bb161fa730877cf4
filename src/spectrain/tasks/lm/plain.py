"""The plain form of a trained language model: an ordinary transformers checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectrain.errors import RunError, UsageError
from spectrain.tasks import factored
from spectrain.tasks.lm.models import skeleton

__all__ = [
    "FACTORED_LOADER",
    "FACTORED_SETTINGS",
    "FOLDERS",
    "LOADER",
    "load_factored",
    "outputs",
    "skeleton",
]

FOLDERS = ("model", "tokenizer")
LOADER = "transformers.AutoModelForCausalLM.from_pretrained"
FACTORED_LOADER = "spectrain.tasks.lm.plain.load_factored"
# transformers reads the name of the weights' file from here, finds that this is none, and prints it.
NOTICE = f"factored spectrain model - load it with {FACTORED_LOADER}"
FACTORED_SETTINGS = {"transformers_weights": NOTICE}


def load_factored(directory: Path | str) -> nn.Module:
    """The language model that `spectrain merge --prune SHARE --factored` wrote to `directory`.

    A transformers model in evaluation mode and in the dtype of its file, in which some linear layers are
    `FactoredLinear`; generation and the rest are as ever, but for `save_pretrained`, which raises
    UsageError: transformers would draw anew what it does not find in such a file.

    Raises UsageError if the folder is not factored, RunError if its weights are damaged or of another
    model.
    """
    folder = Path(directory)
    ranks = factored.ranks_of(folder)
    if ranks is None:
        raise UsageError(f"{folder} has no {factored.DESCRIPTION}: load it with {LOADER}")
    plain = type(skeleton(folder))
    model, found = _from_pretrained(_with_factors(plain, ranks), folder)
    if wrong := sorted(found["missing_keys"]) + sorted(found["unexpected_keys"]):
        raise RunError(f"{folder} cannot be loaded: {wrong[0]} is not as its description says")
    model.__class__ = plain  # from here on it is built
    model.save_pretrained = _refuse_saving
    loaded: nn.Module = model.eval()
    return loaded


def _refuse_saving(*arguments: Any, **named: Any) -> None:
    raise UsageError(
        "a factored model cannot be saved as a transformers checkpoint: copy its folder, or its state dict"
    )


def _with_factors(plain: type[nn.Module], ranks: dict[str, int]) -> Any:
    """The model's class with factored layers: from_pretrained fills them as it does all others."""

    def build(self: nn.Module, *arguments: Any, **named: Any) -> None:
        plain.__init__(self, *arguments, **named)
        factored.exchange(self, ranks)

    return type(plain.__name__, (plain,), {"__init__": build, "__module__": plain.__module__})


def _from_pretrained(cls: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model in factored.safetensors or its shards, and what transformers says of the loading."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    is_sharded = (folder / factored.INDEX).is_file()
    config.transformers_weights = factored.INDEX if is_sharded else factored.WEIGHTS
    try:
        with _without_bars():
            found: tuple[Any, dict[str, Any]] = cls.from_pretrained(
                folder,
                config=config,
                dtype="auto",
                use_safetensors=True,
                output_loading_info=True,
            )
    except RunError:
        raise
    except Exception as error:  # damaged files and wrong shapes fail in many ways there
        raise RunError(f"{folder} cannot be loaded: {' '.join(str(error).split())}") from None
    return found


@contextmanager
def _without_bars() -> Iterator[None]:
    """transformers shows no progress within the context."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


@torch.no_grad()
def outputs(directory: Path, ids: Tensor) -> Tensor:
    """The logits (B, T, vocabulary) of the checkpoint at `directory`, loaded as any user would load it.

    Raises RunError if `ids` (B, T) are none of this model's.
    """
    from transformers import AutoModelForCausalLM

    model: Any
    if factored.ranks_of(directory) is not None:
        model = load_factored(directory)
    else:
        with _without_bars():
            model = AutoModelForCausalLM.from_pretrained(
                directory, dtype="auto", use_safetensors=True, trust_remote_code=False
            ).eval()
    size = model.get_input_embeddings().num_embeddings
    whole = ids.dtype == torch.int64 and ids.dim() == 2 and ids.numel() > 0
    if not whole or ids.min() < 0 or ids.max() >= size:
        raise RunError("the probe is no input of this model")
    found: Tensor = model(input_ids=ids, use_cache=False).logits.float()
    return found
