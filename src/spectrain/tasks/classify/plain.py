"""The plain form of a fine-tuned classifier of texts: an ordinary transformers checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from spectrain.errors import RunError
from spectrain.tasks import factored, factored_pretrained
from spectrain.tasks.pretrained import from_config, from_weights, read_config

FOLDERS = ("model", "tokenizer")
LOADER = "transformers.AutoModelForSequenceClassification.from_pretrained"
FACTORED_LOADER = "spectrain.tasks.classify.plain.load_factored"
FACTORED_SETTINGS = factored_pretrained.settings_with(FACTORED_LOADER)


def load_factored(directory: Path | str) -> nn.Module:
    """The classifier that `spectrain merge --prune SHARE --factored` wrote to `directory`.

    As `spectrain.tasks.lm.plain.load_factored`; raises the same.
    """
    return factored_pretrained.load(Path(directory), skeleton, LOADER)


def skeleton(folder: Path) -> nn.Module:
    """The classifier that config.json in `folder` describes, without numbers."""
    from transformers import AutoModelForSequenceClassification

    config = read_config(str(folder), folder)
    with torch.device("meta"):
        return from_config(lambda: config, AutoModelForSequenceClassification)


@torch.no_grad()
def outputs(directory: Path, ids: Tensor) -> Tensor:
    """The logits (1, classes) of the checkpoint at `directory` for one text in tokens (1, T).

    Raises RunError if it does not load whole, or if `ids` are none of this model's.
    """
    from transformers import AutoModelForSequenceClassification

    config = read_config(str(directory), directory)
    auto = AutoModelForSequenceClassification
    model: nn.Module
    missing: list[str] = []
    if factored.ranks_of(directory) is not None:
        model = load_factored(directory)
    else:
        model, missing = from_weights(str(directory), directory, config, auto)
    if missing:
        raise RunError(f"{directory} lacks the weights of {missing[0]}")
    whole = ids.dtype == torch.int64 and ids.dim() == 2 and ids.numel() > 0
    if not whole or ids.min() < 0 or ids.max() >= config.vocab_size:
        raise RunError("the probe is no input of this model")
    found: Tensor = model.eval()(input_ids=ids).logits.float()
    return found
