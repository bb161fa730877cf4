"""Singular values of a few layers, at the start and at the end of a run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from spectrain.distributed import gathered
from spectrain.moments import Moments
from spectrain.surgery import parametrized

LAYERS = 4  # spread evenly over the model, the first and the last among them


@torch.no_grad()
def spectra(model: nn.Module, when: str, before: dict[str, Any]) -> dict[str, Any]:
    """`before` with the current singular values of the recorded layers added under `when`."""
    layers = [item for item in parametrized(model) if item[1].has_dense]
    count = min(LAYERS, len(layers))
    found = {name: dict(values) for name, values in before.items()}
    for i in range(count):
        name, layer = layers[round(i * (len(layers) - 1) / max(1, count - 1))]
        with gathered(layer, Moments([])):
            values = torch.linalg.svdvals(layer.dense().float()).tolist()
        found.setdefault(name, {})[when] = [round(v, 6) for v in values]
    return found
