"""What one backward pass is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor


class Batch(Protocol):
    """Rows of data; a Tensor is one."""

    def to(self, device: torch.device, /) -> Self:
        """The same on a device."""

    def chunk(self, chunks: int, /) -> Sequence[Self]:
        """The rows divided into so many parts."""


@dataclass(frozen=True)
class Examples:
    """Inputs with what is to be made of them, row by row."""

    inputs: Tensor  # (B, …)
    targets: Tensor  # (B, …)

    def to(self, device: torch.device, /) -> Self:
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))

    def chunk(self, chunks: int, /) -> list[Self]:
        pairs = zip(self.inputs.chunk(chunks), self.targets.chunk(chunks), strict=True)
        return [replace(self, inputs=inputs, targets=targets) for inputs, targets in pairs]
