"""Sentence pairs of about equal length in one batch, in an order that the seed decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spectrain.tasks.batch import Examples
from spectrain.tasks.translate.vocabulary import PAD


@dataclass(frozen=True)
class Weighted(Examples):
    """Pairs of one backward pass.

    inputs: (B, S) source tokens. targets: (B, T + 1) from start to end. Both are padded on the right.
    """

    weight: float = (
        1.0  # of their mean loss, so that the passes of a step add up to a mean over tokens
    )


class Batches:
    """Batches of training pairs, any of them at once by its number.

    In each epoch pairs are shuffled, sorted by length (pairs of equal length stay shuffled), cut into
    batches, and these shuffled. The lengths in their order are the same in all epochs, so are the cuts.
    """

    def __init__(
        self,
        source: Sequence[Tensor],  # as `Vocabularies` makes them
        target: Sequence[Tensor],
        *,
        tokens: int,
        size: int,
        accumulate: int,
        seed: int,
    ) -> None:
        """size: pairs of a batch; 0: as many as `tokens` hold on the longer side, padding included."""
        self.source, self.target, self.seed = source, target, seed
        self.accumulate = accumulate
        # Of the target every token but the start is predicted.
        pairs = zip(source, target, strict=True)
        self.lengths = torch.tensor([max(len(s), len(t) - 1) for s, t in pairs])
        self.cuts = _cuts(self.lengths.sort().values.tolist(), tokens, size)
        self.epoch, self.order = -1, [torch.empty(0, dtype=torch.int64)]

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.cuts) - 1

    def step(self, step: int) -> list[Weighted]:
        """The batches of optimizer step `step`, from 0."""
        first = step * self.accumulate
        found = [self._rows(first + i) for i in range(self.accumulate)]
        counts = [sum(len(self.target[i]) - 1 for i in rows) for rows in found]
        share = self.accumulate / sum(counts)
        return [
            Weighted(*padded(self.source, self.target, rows), weight=share * count)
            for rows, count in zip(found, counts, strict=True)
        ]

    def _rows(self, number: int) -> list[int]:
        epoch, place = divmod(number, len(self))
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self._epoch(epoch)
        return self.order[place].tolist()

    def _epoch(self, epoch: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        shuffled = torch.randperm(len(self.lengths), generator=generator)
        ordered = shuffled[self.lengths[shuffled].sort(stable=True).indices]
        places = torch.randperm(len(self), generator=generator).tolist()
        return [ordered[self.cuts[p] : self.cuts[p + 1]] for p in places]


def _cuts(lengths: Sequence[int], tokens: int, size: int) -> list[int]:
    """Where batches begin in a list of lengths in ascending order, and its end."""
    if size:
        return [*range(0, len(lengths), size), len(lengths)]
    cuts = [0]
    for i, length in enumerate(lengths):
        if (i + 1 - cuts[-1]) * length > tokens:
            cuts.append(i)
    return [*cuts, len(lengths)]


def padded(
    source: Sequence[Tensor], target: Sequence[Tensor], rows: Sequence[int]
) -> tuple[Tensor, Tensor]:  # (B, S), (B, T + 1)
    """These pairs as two arrays."""
    a, b = (
        pad_sequence([side[i] for i in rows], batch_first=True, padding_value=PAD)
        for side in (source, target)
    )
    return a, b
