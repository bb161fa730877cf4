"""Singular values of a few layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from spectrain.distributed import gathered
from spectrain.moments import Moments
from spectrain.parametrizations.base import Parametrization
from spectrain.surgery import parametrized

LAYERS = 4  # of those at the start and at the end, which are written whole


def some_layers(model: nn.Module, most: int) -> list[tuple[str, Parametrization]]:
    """At most so many layers that have a W, spread evenly, the first and the last among them."""
    layers = [item for item in parametrized(model) if not item[1].method.against_merge()]
    count = min(most, len(layers))
    return [layers[round(i * (len(layers) - 1) / max(1, count - 1))] for i in range(count)]


@torch.no_grad()
def singular_values(layer: Parametrization) -> list[float]:
    """Those of W, the largest first. Of a sharded layer all processes have to ask."""
    with gathered(layer, Moments([])):
        values: list[float] = torch.linalg.svdvals(layer.dense().float()).tolist()
    return values


def spectra(model: nn.Module, when: str, before: dict[str, Any]) -> dict[str, Any]:
    """`before` with the current singular values of the recorded layers added under `when`."""
    found = {name: dict(values) for name, values in before.items()}
    for name, layer in some_layers(model, LAYERS):
        found.setdefault(name, {})[when] = [round(v, 6) for v in singular_values(layer)]
    return found
