"""Factored checkpoints: plain ones in which some linear layers are stored as two thin matrices.

Such a folder has, in the place of model.safetensors, factored.safetensors (or shards and their index),
where a layer's `weight` (m, n) may be `left` (m, r) and `right` (r, n); factored.json names these layers
and their ranks. Everything else is as in the plain folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrain.errors import RunError, UsageError
from spectrain.parametrizations.base import linear_shape
from spectrain.surgery import replace

FORMAT = 1
DESCRIPTION = "factored.json"
STEM = "factored"  # how the files of weights are called
WEIGHTS = f"{STEM}.safetensors"
INDEX = f"{WEIGHTS}.index.json"


class FactoredLinear(nn.Module):
    """y = L (R x) + b: a linear layer of rank r."""

    def __init__(self, linear: nn.Module, rank: int) -> None:
        """In the place of `linear`, whose bias, dtype and device it takes; L and R have no values yet."""
        super().__init__()
        self.out_features, self.in_features = linear_shape(linear)
        like: Tensor = linear.weight  # type: ignore[assignment]
        self.left = nn.Parameter(like.new_empty(self.out_features, rank))
        self.right = nn.Parameter(like.new_empty(rank, self.in_features))
        self.bias: nn.Parameter | None = linear.bias  # type: ignore[assignment]
        self.train(linear.training)

    @property
    def weight(self) -> Tensor:
        """A detached copy of W, for code that looks at a layer's weight; writing to it does nothing."""
        return (self.left @ self.right).detach()

    def forward(
        self,
        x: Tensor,  # (…, in_features)
    ) -> Tensor:  # (…, out_features)
        return F.linear(F.linear(x, self.right), self.left, self.bias)

    def extra_repr(self) -> str:
        rank, bias = self.left.shape[1], self.bias is not None
        return f"{self.in_features}, {self.out_features}, rank={rank}, bias={bias}"


def describe(ranks: Mapping[str, int]) -> dict[str, Any]:
    """factored.json for layers that are stored as two matrices, with their ranks."""
    return {"format": FORMAT, "ranks": dict(ranks)}


def ranks_of(folder: Path) -> dict[str, int] | None:
    """The ranks in factored.json; None if the folder has no such file.

    Raises RunError if it is damaged, UsageError if it is of another format.
    """
    path = folder / DESCRIPTION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None
    found = content.get("format") if isinstance(content, dict) else None
    if isinstance(found, int) and found != FORMAT:
        raise UsageError(f"{path} is of format {found}, and this version reads format {FORMAT}")
    ranks = content.get("ranks") if found == FORMAT else None
    if not isinstance(ranks, dict) or not all(type(r) is int and r >= 0 for r in ranks.values()):
        raise RunError(f"{path} is damaged (it has no ranks of layers): prune the model again")
    return ranks


def exchange(model: nn.Module, ranks: Mapping[str, int]) -> None:
    """Put a `FactoredLinear` without values in the place of every layer that `ranks` names.

    Raises RunError if `model` has no such linear layer.
    """
    layers = dict(model.named_modules())
    for name, rank in ranks.items():
        linear = layers.get(name)
        weight = getattr(linear, "weight", None)
        if linear is None or not isinstance(weight, Tensor) or weight.ndim != 2:
            raise RunError(f"{DESCRIPTION} names {name}, which is no linear layer of this model")
        if rank > min(linear_shape(linear)):
            raise RunError(f"{DESCRIPTION} gives {name} rank {rank}, which exceeds its sides")
        with torch.no_grad():
            replace(model, linear, FactoredLinear(linear, rank))
