"""A stream of tokens as shuffled batches for training and as windows in order for evaluation."""

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from spectrain.errors import UsageError


class Batches:
    """Shuffled windows of T + 1 tokens, of which each overlaps the next by one.

    Inputs are a window's first T tokens and targets its last T, so that every target is predicted
    exactly once an epoch (but for the fewer than T tokens behind the last window). Each epoch is a
    fresh permutation of the windows, and a batch may hold the end of one and the start of the
    next. Batch `step` depends on (tokens, T, batch size, seed, step) alone: to resume is to ask
    for the next step.

    Raises UsageError if the tokens do not fill one batch.
    """

    def __init__(
        self,
        tokens: Tensor,  # (n,), any integer dtype
        sequence_length: int,  # T
        batch_size: int,
        seed: int,
    ) -> None:
        for name, value in (("sequence_length", sequence_length), ("batch_size", batch_size)):
            if value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1")
        needed = batch_size * sequence_length + 1
        if len(tokens) < needed:
            raise UsageError(
                f"the corpus has {len(tokens):,} tokens to train on, and one batch of {batch_size} "
                f"sequences of {sequence_length} needs {needed:,}: take a longer text, a smaller "
                "batch or shorter sequences"
            )
        self._windows = tokens.unfold(0, sequence_length + 1, sequence_length)  # a view
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    @property
    def epoch_length(self) -> float:
        """Batches in one epoch; seldom a whole number."""
        return len(self._windows) / self._batch_size

    def batch(self, step: int) -> Tensor:
        """(batch size, T + 1), int64: the batch of training step `step`, from 0."""
        first = step * self._batch_size
        places = range(first, first + self._batch_size)
        rows = [self._window(place) for place in places]
        return self._windows[rows].long()

    def _window(self, place: int) -> int:
        """Which window stands at `place` in the sequence of all epochs' permutations."""
        epoch, index = divmod(place, len(self._windows))
        if epoch != self._epoch:
            generator = np.random.default_rng((self._seed, epoch))
            self._epoch, self._order = epoch, generator.permutation(len(self._windows))
        return int(self._order[index])


def windows(
    tokens: Tensor,  # (n,)
    sequence_length: int,  # T
    batch_size: int = 1,
) -> Iterator[Tensor]:
    """All tokens in order as windows of T + 1 that overlap by one: (at most batch_size, T + 1).

    A shorter last window comes alone, so that every token but the very first is predicted once.
    """
    full = (len(tokens) - 1) // sequence_length
    if full > 0:
        stacked = tokens.unfold(0, sequence_length + 1, sequence_length)
        for start in range(0, full, batch_size):
            yield stacked[start : start + batch_size].long()
    rest = tokens[full * sequence_length :]
    if len(rest) > 1:
        yield rest.long()[None]
