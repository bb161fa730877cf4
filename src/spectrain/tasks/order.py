"""The order in which training sees its examples."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor


class EpochOrder:
    """A fresh permutation of the examples in each epoch, one behind the other.

    Which example stands at a place follows from (examples, seed, place) alone, so that to resume is to
    ask for the next places. A batch may hold the end of one epoch and the start of the next: every
    epoch has each example once, and every batch is full.
    """

    def __init__(self, examples: int, seed: int) -> None:
        self.examples = examples
        self._permutation = lru_cache(maxsize=2)(lambda epoch: _permutation(examples, seed, epoch))

    def rows(self, first: int, count: int) -> Tensor:
        """(count,), int64: the examples at the places from `first` on."""
        epoch, index = np.divmod(np.arange(first, first + count), self.examples)
        parts = [
            self._permutation(number)[index[epoch == number]]
            for number in range(int(epoch[0]), int(epoch[-1]) + 1)
        ]
        return torch.from_numpy(np.concatenate(parts))


def _permutation(examples: int, seed: int, epoch: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng((seed, epoch)).permutation(examples)
