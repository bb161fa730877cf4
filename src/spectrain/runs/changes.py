"""What a layer has changed by, as two thin matrices: those that were trained, or its truncated SVD."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectrain.errors import UsageError
from spectrain.initializers.low_rank import balanced_halves
from spectrain.linalg import svd
from spectrain.parametrizations.additive import Additive
from spectrain.parametrizations.base import Parametrization
from spectrain.runs.factored import plain_tensor


@dataclass(frozen=True)
class Truncation:
    """How much of a change that has no two thin factors is kept: one of the two.

    rank: singular triples of every layer. energy: the smallest rank that holds this share of the sum of
    squared singular values. Raises UsageError unless there is exactly one, in its bounds.
    """

    rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.energy is None):
            raise UsageError("give --peft-rank or --peft-energy, one of them")
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"--peft-rank {self.rank}: it must be 1 or more")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise UsageError(f"--peft-energy {self.energy}: it must be above 0 and at most 1")


@dataclass(frozen=True)
class LayerChange:
    """What became of one layer's change D = W − W of the base model."""

    name: str
    rank: int
    norm: float  # ‖D‖
    left_out: float  # ‖D − B A‖; 0 where the factors are those that were trained


Factors = tuple[Tensor, Tensor, float, LayerChange]  # B, A, the scale on B A


def trained(file: Any, name: str, layer: Parametrization, base: Tensor) -> Factors | None:
    """The layer's own factors, if they stand beside the base model's very weights."""
    if not isinstance(layer, Additive):
        return None
    frozen, A, B = (file.get_tensor(f"{name}.{part}") for part in ("base", "A", "B"))
    if not torch.equal(frozen.to(base.dtype), base.mT if layer.transposed else base):
        return None
    norm = float((B @ A).norm()) * layer.scale
    return B, A, layer.scale, LayerChange(name, len(A), norm, 0.0)


def cut(
    file: Any,
    name: str,
    layers: Mapping[str, Parametrization],
    base: Tensor,
    truncation: Truncation | None,
) -> Factors:
    """The truncated SVD of the layer's change."""
    layer = layers[name]
    if truncation is None:
        raise UsageError(
            f"what {layer.method.title} has changed is no pair of thin matrices beside the base model's "
            f"weights ({name}): say how much of its SVD to keep, by --peft-rank N or --peft-energy SHARE"
        )
    change = plain_tensor(file, f"{name}.weight", dict(layers)).float() - base
    change = change.mT if layer.transposed else change
    U, s, V = svd(change)
    squares = s.double().square()
    rank = truncation.rank or 1
    if truncation.energy is not None and squares.sum():
        shares = squares.cumsum(0) / squares.sum()
        rank = 1 + int((shares < truncation.energy - 1e-12).sum())
    rank = min(rank, len(squares))
    B, A = balanced_halves(U, s, V, rank)
    left_out = float(squares[rank:].sum().sqrt())
    return B, A, 1.0, LayerChange(name, rank, float(squares.sum().sqrt()), left_out)
