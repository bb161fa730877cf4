"""The plain form of a trained network on images: its ordinary weights and a description of its layers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from spectrain.errors import RunError, UsageError
from spectrain.tasks.image.models import ImageNetwork, build

FOLDERS = ("model",)
LOADER = "spectrain.tasks.image.plain.load_network"


def load_network(directory: Path | str) -> ImageNetwork:
    """The network that `spectrain merge` wrote to `directory`, ready for use.

    It takes pixels from 0 to 255, (B, C, H, W), and gives logits (B, classes); `shape` and `classes` say
    what it was trained on. Raises UsageError if the folder holds none, RunError if its weights are of
    another one.
    """
    folder = Path(directory)
    model = _described(folder)
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, RuntimeError, ValueError) as error:
        raise RunError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from None
    return model.eval()


def skeleton(folder: Path) -> ImageNetwork:
    """The network that config.json in `folder` describes, without numbers."""
    with torch.device("meta"):
        return _described(folder)


def _described(folder: Path) -> ImageNetwork:
    """The same with new weights."""
    path = folder / "config.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    if not isinstance(description, dict):
        raise UsageError(f"{path} describes no network")
    with torch.random.fork_rng(devices=[]):
        return build(description)


@torch.no_grad()
def outputs(directory: Path, pixels: Tensor) -> Tensor:
    """The written network's logits for pixels (n, C, H, W). Raises RunError if they are no input of it."""
    model = load_network(directory)
    if pixels.dtype != torch.uint8 or tuple(pixels.shape[1:]) != model.shape:
        raise RunError("the probe is no input of this model")
    logits: Tensor = model(pixels)
    return logits.float()
