"""Which matrices a model has."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from spectrain.surgery import parametrized


def as_matrix(tensor: Tensor) -> Tensor:
    """A weight as a matrix (m, n): a convolution's (out, in, …) flattened to (out, in · …)."""
    return tensor.flatten(1)


@torch.no_grad()
def matrices(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weight matrices of `model`, embeddings included, one at a time: (name, W (m, n)).

    Names are those of the plain model's parameters. Of a layer in low-rank or spectral form it is the
    W that its factors stand for, oriented as the plain layer stores it; layers that no single matrix
    is equal to are left out, and so are parameters of fewer than two dimensions. Tied ones come once.
    """
    layers = dict(parametrized(model))
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[0] not in layers and parameter.ndim > 1 and parameter.numel():
            yield name, as_matrix(parameter.detach())
    for name, layer in layers.items():
        if not layer.method.against_merge():
            weight = layer.dense().to(layer.weight_dtype)
            yield f"{name}.weight", weight.mT if layer.transposed else weight
