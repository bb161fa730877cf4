"""The plain form of a trained translator: its ordinary weights, its vocabularies, how to translate."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from spectrain.errors import RunError
from spectrain.tasks.plain import description, load_weights
from spectrain.tasks.translate.models import build
from spectrain.tasks.translate.transformer import Translator, probe_of
from spectrain.tasks.translate.translating import Translating
from spectrain.tasks.translate.vocabulary import Vocabularies

FOLDERS = ("model", "vocabulary")
LOADER = "spectrain.tasks.translate.plain.load_translator"
FACTORED_LOADER = LOADER
FACTORED_SETTINGS: dict[str, str] = {}
PARTS = ("network", "translation")  # of config.json


def load_translator(directory: Path | str) -> Translating:
    """What `spectrain merge` wrote to `directory`, ready for use.

    Raises UsageError if the folder holds none, RunError if its weights are of another one.
    """
    folder = Path(directory)
    content = description(folder, *PARTS)
    with torch.random.fork_rng(devices=[]):
        model = build(content["network"])
    load_weights(model, folder)
    return Translating(model.eval(), Vocabularies.load(folder), **content["translation"])


def skeleton(folder: Path) -> Translator:
    """The network that config.json in `folder` describes, without numbers."""
    with torch.random.fork_rng(devices=[]):
        return build(description(folder, *PARTS)["network"]).to("meta")


@torch.no_grad()
def outputs(directory: Path, ids: Tensor) -> Tensor:
    """The logits of the written network for source tokens (1, S) and themselves as the target.

    Raises RunError if they are no input of it.
    """
    model = load_translator(directory).model
    size = model.get_parameter("source.table.weight").shape[0]
    whole = ids.dtype == torch.int64 and ids.ndim == 2 and ids.numel() > 0
    if not whole or ids.min() < 0 or ids.max() >= size:
        raise RunError("the probe is no input of this model")
    found: Tensor = model(ids, probe_of(ids)).float()
    return found
