"""Plain checkpoints as `spectrain merge` writes them: a description, and weights in one file or several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from spectrain.errors import RunError, UsageError
from spectrain.tasks import factored

STEM = "model"  # how the files of weights are called
WEIGHTS = f"{STEM}.safetensors"
INDEX = f"{WEIGHTS}.index.json"


def description(folder: Path, *needed: str) -> dict[str, Any]:
    """config.json of the folder, which has these keys. Raises UsageError if it has not, or is not there."""
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict) or not set(needed) <= content.keys():
        raise UsageError(f"{path} describes no such network")
    return content


def load_weights(model: nn.Module, folder: Path) -> None:
    """Put the folder's weights into `model`; tied ones stand there once.

    Of a factored folder, the layers it stores as two matrices are exchanged first. Raises RunError if the
    weights are not there, damaged, or of another network.
    """
    ranks = factored.ranks_of(folder)
    single, index = WEIGHTS, folder / INDEX
    if ranks is not None:
        factored.exchange(model, ranks)
        single, index = factored.WEIGHTS, folder / factored.INDEX
    try:
        files = {single}
        if index.exists():
            files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        state: dict[str, Tensor] = {}
        for name in sorted(files):
            state |= load_file(
                folder / Path(name).name
            )  # beside the index, wherever it says they are
        found = model.load_state_dict(state, strict=False)
    except (OSError, RuntimeError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise RunError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from None
    own = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    if wrong := [*found.unexpected_keys, *(name for name in found.missing_keys if name in own)]:
        raise RunError(f"{folder} cannot be loaded: {wrong[0]} is not as its description says")
