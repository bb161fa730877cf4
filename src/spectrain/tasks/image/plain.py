"""The plain form of a trained network on images: its ordinary weights and a description of its layers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from spectrain.errors import RunError
from spectrain.tasks.image.models import ImageNetwork, build
from spectrain.tasks.plain import description, load_weights

FOLDERS = ("model",)
LOADER = "spectrain.tasks.image.plain.load_network"
FACTORED_LOADER = LOADER
FACTORED_SETTINGS: dict[str, str] = {}


def load_network(directory: Path | str) -> ImageNetwork:
    """The network that `spectrain merge` wrote to `directory`, ready for use.

    It takes pixels from 0 to 255, (B, C, H, W), and gives logits (B, classes); `shape` and `classes` say
    what it was trained on. Raises UsageError if the folder holds none, RunError if its weights are of
    another one.
    """
    folder = Path(directory)
    model = _described(folder)
    load_weights(model, folder)
    return model.eval()


def skeleton(folder: Path) -> ImageNetwork:
    """The network that config.json in `folder` describes, without numbers."""
    with torch.device("meta"):
        return _described(folder)


def _described(folder: Path) -> ImageNetwork:
    """The same with new weights."""
    with torch.random.fork_rng(devices=[]):
        return build(description(folder))


@torch.no_grad()
def outputs(directory: Path, pixels: Tensor) -> Tensor:
    """The written network's logits for pixels (n, C, H, W). Raises RunError if they are no input of it."""
    model = load_network(directory)
    if pixels.dtype != torch.uint8 or tuple(pixels.shape[1:]) != model.shape:
        raise RunError("the probe is no input of this model")
    logits: Tensor = model(pixels)
    return logits.float()
