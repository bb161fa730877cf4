"""The plain form of a trained language model: an ordinary transformers checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectrain.errors import RunError
from spectrain.tasks import factored, factored_pretrained
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
FACTORED_SETTINGS = factored_pretrained.settings_with(FACTORED_LOADER)


def load_factored(directory: Path | str) -> nn.Module:
    """The language model that `spectrain merge --prune SHARE --factored` wrote to `directory`.

    A transformers model in evaluation mode and in the dtype of its file, in which some linear layers are
    `FactoredLinear`; generation and the rest are as ever, but for `save_pretrained`, which raises
    UsageError: transformers would draw anew what it does not find in such a file.

    Raises UsageError if the folder is not factored, RunError if its weights are damaged or of another
    model.
    """
    return factored_pretrained.load(Path(directory), skeleton, LOADER)


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
        with factored_pretrained.without_bars():
            model = AutoModelForCausalLM.from_pretrained(
                directory, dtype="auto", use_safetensors=True, trust_remote_code=False
            ).eval()
    size = model.get_input_embeddings().num_embeddings
    whole = ids.dtype == torch.int64 and ids.dim() == 2 and ids.numel() > 0
    if not whole or ids.min() < 0 or ids.max() >= size:
        raise RunError("the probe is no input of this model")
    found: Tensor = model(input_ids=ids, use_cache=False).logits.float()
    return found
