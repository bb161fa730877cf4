"""What goes into a network's first layer, and dropout on it that costs what its nonzeros cost."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from spectrain.abstract import is_abstract

SPARSE = 0.25  # with fewer nonzeros than this share, only those are drawn for


class NodeInputs:
    """The nodes' inputs x (N, F), the same in every step; dropout draws anew for each.

    Words in a document are few: Cora's inputs are zeros by 98.7 %, and drawing 3.9 million random
    numbers a step took six times as long as the products they went into. What is zero stays zero, so
    drawing for the others alone is the same.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x
        places = x.flatten().nonzero().squeeze(1)
        sparse = len(places) < SPARSE * x.numel()
        self._places = places if sparse else None
        self._values = x.flatten()[places] if sparse else x
        self._dropped: Tensor | None = None

    def dropped(self, p: float) -> Tensor:
        """x (N, F) with each entry zero with probability p and else divided by 1 − p.

        It is valid until the next call.
        """
        values = F.dropout(self._values, p)
        if self._places is None:
            return values
        if is_abstract(values):  # while a plan is made
            return self.x
        if self._dropped is None:
            self._dropped = self.x.clone()
        with torch.no_grad():
            self._dropped.view(-1)[self._places] = values
        return self._dropped
