"""The plain form of a trained language model: an ordinary transformers checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from spectrain.errors import RunError
from spectrain.tasks.lm.models import skeleton

__all__ = ["FOLDERS", "LOADER", "outputs", "skeleton"]

FOLDERS = ("model", "tokenizer")
LOADER = "transformers.AutoModelForCausalLM.from_pretrained"


@torch.no_grad()
def outputs(directory: Path, ids: Tensor) -> Tensor:
    """The logits (B, T, vocabulary) of the checkpoint at `directory`, loaded as any user would load it.

    Raises RunError if `ids` (B, T) are none of this model's.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype="auto", use_safetensors=True, trust_remote_code=False
        ).eval()
    finally:
        if bars:
            logging.enable_progress_bar()
    size = model.get_input_embeddings().num_embeddings
    whole = ids.dtype == torch.int64 and ids.dim() == 2 and ids.numel() > 0
    if not whole or ids.min() < 0 or ids.max() >= size:
        raise RunError("the probe is no input of this model")
    found: Tensor = model(input_ids=ids, use_cache=False).logits.float()
    return found
