"""Every token is predicted once: an epoch in shuffled batches, an evaluation in order."""

import pytest
import torch

from spectrain.errors import UsageError
from spectrain.tasks.lm.batches import Batches, windows


def test_every_target_once_an_epoch() -> None:
    tokens = torch.arange(12 * 5 + 1, dtype=torch.int32)
    batches = Batches(tokens, sequence_length=5, batch_size=3, seed=0)
    assert batches.epoch_length == 4
    for epoch in range(3):
        rows = torch.cat([batches.batch(4 * epoch + step) for step in range(4)])
        assert rows.shape == (12, 6)
        assert rows.dtype == torch.int64
        assert rows[:, 1:].flatten().sort().values.tolist() == list(range(1, 61))
        assert (rows.diff() == 1).all()


def test_epochs_follow_each_other_without_a_gap() -> None:
    tokens = torch.arange(5 * 2 + 2)
    batches = Batches(tokens, sequence_length=2, batch_size=3, seed=1)
    assert batches.epoch_length == pytest.approx(5 / 3)
    starts = torch.cat([batches.batch(step)[:, 0] for step in range(5)]).tolist()
    epochs = [starts[first : first + 5] for first in (0, 5, 10)]
    assert all(sorted(epoch) == [0, 2, 4, 6, 8] for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    tokens = torch.randint(0, 99, (1000,), generator=torch.Generator().manual_seed(0))
    forwards = Batches(tokens, 8, 4, seed=3)
    expected = [forwards.batch(step) for step in range(70)]
    backwards = Batches(tokens.to(torch.int32), 8, 4, seed=3)
    for step in reversed(range(70)):
        assert torch.equal(backwards.batch(step), expected[step])
    assert not torch.equal(Batches(tokens, 8, 4, seed=4).batch(0), expected[0])
    assert not torch.equal(expected[0], expected[31])


def test_too_short_for_one_batch() -> None:
    Batches(torch.arange(33), sequence_length=8, batch_size=4, seed=0).batch(0)
    with pytest.raises(UsageError, match=r"has 32 tokens to train on, and one batch .* needs 33"):
        Batches(torch.arange(32), sequence_length=8, batch_size=4, seed=0)
    with pytest.raises(UsageError, match="batch_size is 0"):
        Batches(torch.arange(32), sequence_length=8, batch_size=0, seed=0)


@pytest.mark.parametrize("length", [2, 5, 6, 7, 16, 17, 40])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_windows_predict_all_but_the_first(length: int, batch_size: int) -> None:
    parts = list(windows(torch.arange(length, dtype=torch.int32), 5, batch_size))
    assert torch.cat([part[:, 1:].flatten() for part in parts]).tolist() == list(range(1, length))
    assert all((part.diff() == 1).all() for part in parts)
    assert all(part.shape[0] <= batch_size for part in parts)


def test_no_window_without_a_target() -> None:
    assert list(windows(torch.arange(1), 5)) == []
