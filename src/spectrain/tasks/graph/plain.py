"""The plain form of a trained network on graphs: its ordinary weights and a description of its layers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from spectrain.errors import RunError
from spectrain.tasks.graph.models import GraphNetwork, build
from spectrain.tasks.plain import description, load_weights

FOLDERS = ("model",)
LOADER = "spectrain.tasks.graph.plain.load_network"
FACTORED_LOADER = LOADER
FACTORED_SETTINGS: dict[str, str] = {}


def load_network(directory: Path | str) -> GraphNetwork:
    """The network that `spectrain merge` wrote to `directory`, ready for use.

    Raises UsageError if the folder holds none, RunError if its weights are of another one.
    """
    folder = Path(directory)
    model = _described(folder)
    load_weights(model, folder)
    return model.eval()


def skeleton(folder: Path) -> GraphNetwork:
    """The network that config.json in `folder` describes, without numbers."""
    return _described(folder).to("meta")


def _described(folder: Path) -> GraphNetwork:
    """The same with new weights."""
    with torch.random.fork_rng(devices=[]):
        return build(description(folder))


@torch.no_grad()
def outputs(directory: Path, x: Tensor) -> Tensor:
    """What the written network makes of nodes without neighbours (`GraphNetwork.alone`).

    Raises RunError if x (n, F) is no input of it.
    """
    model = load_network(directory)
    if x.ndim != 2 or x.shape[1] != model.width or not x.is_floating_point():
        raise RunError("the probe is no input of this model")
    return model.alone(x).float()
