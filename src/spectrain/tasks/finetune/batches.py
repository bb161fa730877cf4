"""Examples as rows of tokens: padded, or several in a row without sight of each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from spectrain.errors import UsageError
from spectrain.tasks.finetune.encoding import Example
from spectrain.tasks.order import EpochOrder


@dataclass(frozen=True)
class Rows:
    """The rows of one backward pass, filled up on the right.

    A prediction is made at the place before its token, as usual: `places` count through all rows, and
    behind place t of a row stands the target of t.
    """

    inputs: Tensor  # (B, T), int64
    places: Tensor  # (N,), int64: of the predictions, in B · T
    targets: Tensor  # (N,), int64: tokens of responses
    divisor: float  # of the sum of losses
    members: Tensor | None = None  # (B, T): which example of its row; −1: filling. None: one a row
    positions: Tensor | None = None  # (B, T): place within the example

    def to(self, device: torch.device, /) -> Self:
        members, positions = (
            None if t is None else t.to(device) for t in (self.members, self.positions)
        )
        moved = {name: getattr(self, name).to(device) for name in ("inputs", "places", "targets")}
        return replace(self, **moved, members=members, positions=positions)

    def chunk(self, chunks: int, /) -> list[Self]:
        """So many parts of the rows; losses of all parts, averaged, are the loss of the whole."""
        length, first, found = self.inputs.shape[1], 0, []
        for inputs in self.inputs.chunk(chunks):
            last = first + len(inputs)
            own = (self.places >= first * length) & (self.places < last * length)
            part = replace(
                self,
                inputs=inputs,
                places=self.places[own] - first * length,
                targets=self.targets[own],
                divisor=self.divisor / chunks,
                members=None if self.members is None else self.members[first:last],
                positions=None if self.positions is None else self.positions[first:last],
            )
            found.append(part)
            first = last
        return found


def rows_of(groups: Sequence[Sequence[Example]], pad: int, packed: bool) -> Rows:
    """Each group as a row. The divisor is the number of predictions, so that the loss is their mean."""
    length = max(sum(len(e.tokens) for e in group) for group in groups)
    inputs = torch.full((len(groups), length), pad)
    members = torch.full_like(inputs, -1)
    positions = torch.zeros_like(inputs)
    places, targets = [], []
    for row, group in enumerate(groups):
        begin = 0
        for number, example in enumerate(group):
            end = begin + len(example.tokens)
            inputs[row, begin:end] = example.tokens
            members[row, begin:end] = number
            positions[row, begin:end] = torch.arange(end - begin)
            origin = row * length + begin - 1
            places.append(torch.arange(origin + example.start, origin + len(example.tokens)))
            targets.append(example.tokens[example.start :])
            begin = end
    where, what = torch.cat(places), torch.cat(targets)
    if not packed:
        return Rows(inputs, where, what, float(len(what)))
    return Rows(inputs, where, what, float(len(what)), members, positions)


def packs(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Places of `lengths` in groups whose sums are at most `capacity`: best-fit decreasing.

    Each, from the longest on, goes where the least room is left (Johnson 1974), which is seldom more than
    a few per cent from the fewest groups. No length may be above `capacity`.
    """
    groups: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # room -> groups that have just so much
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[place]
        room = next((r for r in range(length, capacity) if by_room.get(r)), capacity)
        if room < capacity:
            group = by_room[room].pop()
        else:
            group = len(groups)
            groups.append([])
        groups[group].append(place)
        by_room.setdefault(room - length, []).append(group)
    return groups


class Batches:
    """The batches of training, any of them at once by its number.

    Rows are shuffled anew in each epoch, and follow from seed and place alone. Which examples share a row
    is the same in all epochs and for all seeds. Raises UsageError if a step takes more rows than there are.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        size: int,
        accumulate: int,
        pad: int,
        seed: int,
        capacity: int | None,  # tokens of a packed row; None: an example a row
    ) -> None:
        self.size, self.accumulate, self.pad = size, accumulate, pad
        self.packed = capacity is not None
        if capacity is None:
            self.groups = [[example] for example in examples]
        else:
            found = packs([len(example.tokens) for example in examples], capacity)
            self.groups = [[examples[i] for i in group] for group in found]
        if size * accumulate > len(self.groups):
            what = "packed rows" if self.packed else "examples"
            raise UsageError(
                f"a step takes {size * accumulate:,} {what} (--batch-size × --accumulate), and there are "
                f"{len(self.groups):,} to train on; give a smaller --batch-size"
            )
        self.order = EpochOrder(len(self.groups), seed)

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps in which every example is seen once; seldom a whole number."""
        return len(self.groups) / (self.size * self.accumulate)

    @property
    def largest(self) -> tuple[int, int]:
        """Of any row: tokens, and predictions in it."""
        sizes = [sum(len(e.tokens) for e in group) for group in self.groups]
        return max(sizes), max(sum(e.answered for e in group) for group in self.groups)

    def step(self, step: int) -> list[Rows]:
        """The rows of step `step`, from 0; the mean of their losses is that of all its predictions."""
        count = self.size * self.accumulate
        chosen = [self.groups[i] for i in self.order.rows(step * count, count).tolist()]
        passes = [
            rows_of(chosen[first : first + self.size], self.pad, self.packed)
            for first in range(0, count, self.size)
        ]
        share = sum(rows.divisor for rows in passes) / self.accumulate
        return [replace(rows, divisor=share) for rows in passes]
