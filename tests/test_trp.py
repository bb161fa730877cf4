"""TRP beside a plain loop that truncates by hand, and what its card promises."""

from __future__ import annotations

import pytest
import torch
from toys import SHAPES, Training, drift, make_net, one_layer, same, start_of, steered

import spectrain
from spectrain import TRP, FullRank
from spectrain.diagnostics import rank_at_energy
from spectrain.methods.trp import _rank_at
from spectrain.pruning import thin_factors

every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
RATE, MOMENTUM, DECAY = 0.05, 0.9, 0.1


def momentum(groups):
    return torch.optim.SGD(groups, momentum=MOMENTUM)


def cut(W: torch.Tensor, energy: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The truncated matrix and U Vᵀ, by torch's SVD and a loop."""
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    k = next(k for k in range(1, len(s) + 1) if (s[:k] ** 2).sum() >= energy * (s**2).sum())
    return U[:, :k] @ torch.diag(s[:k]) @ Vh[:k], U[:, :k] @ Vh[:k]


@every_shape
@pytest.mark.parametrize("nuclear", [0.0, 0.3])
def test_it_is_the_papers_loop(shape, nuclear):
    """SGD with momentum; the buffer is not touched by a truncation."""
    method = TRP(truncate_every=3, energy=0.8, nuclear=nuclear)
    path, _ = steered(method, shape, momentum, drift(shape, 10), rate=lambda t: RATE, decay=DECAY)
    W, buffer, subgradient = start_of(shape), torch.zeros(shape, dtype=torch.float64), None
    for t, (C, found) in enumerate(zip(drift(shape, 10), path, strict=True), 1):
        gradient = C + W + DECAY * W
        if subgradient is not None:
            gradient = gradient + nuclear * subgradient
        buffer = MOMENTUM * buffer + gradient
        W, subgradient = W - RATE * buffer, None
        if t % 3 == 0:
            W, subgradient = cut(W, 0.8)
            assert torch.linalg.matrix_rank(found) < min(shape)
        torch.testing.assert_close(found, W, rtol=1e-10, atol=1e-11)


@every_shape
def test_without_truncation_and_penalty_it_is_full_rank_training(shape):
    method = TRP(truncate_every=2, energy=1.0, nuclear=0.0)
    trp, full = (
        steered(m, shape, torch.optim.AdamW, drift(shape))[0] for m in (method, FullRank())
    )
    assert same(trp, full)


def test_the_rank_is_the_smallest_that_has_the_energy():
    generator = torch.Generator().manual_seed(3)
    for _ in range(50):
        s = torch.rand(9, generator=generator, dtype=torch.float64).sort(descending=True).values
        for energy in (0.1, 0.5, 0.9, 0.999):
            assert _rank_at(s, energy) == rank_at_energy(s, energy)
    assert _rank_at(torch.tensor([3.0, 0.0, 0.0]), 1.0) == 3
    assert _rank_at(torch.zeros(3), 0.9) == 1
    assert _rank_at(torch.tensor([1.0, 1.0, 1.0, 1.0]), 0.5) == 2


def test_moments_stay_at_a_truncation():
    """They are those of a run that is truncated by hand, and end there."""
    method = TRP(truncate_every=4, energy=0.5, nuclear=0.0)
    trp, full = Training(method).run(0, 4), Training(FullRank()).run(0, 4)
    assert same(trp.optimizer.state_dict()["state"], full.optimizer.state_dict()["state"])
    assert not torch.equal(trp.model.wide.weight, full.model.wide.weight)


def test_the_decomposed_network_is_the_truncated_one():
    """As `merge --prune 1 --factored` stores it."""
    training = Training(TRP(truncate_every=3, energy=0.6)).run(0, 6)
    for layer in training.layers:
        W = layer.weight.detach()
        rank = _rank_at(torch.linalg.svdvals(W.double()), 1 - 1e-9)
        left, right = thin_factors(W, rank)
        assert rank < min(W.shape)
        torch.testing.assert_close(left @ right, W, rtol=1e-5, atol=1e-6)


def test_the_subgradient_waits_in_host_memory_and_in_the_state():
    layer, _ = one_layer(TRP(), (6, 9))
    assert layer.hosted["subgradient"].shape == (6, 9)
    assert "subgradient" in layer.state_dict()
    assert "subgradient" not in dict(layer.named_buffers())
    net = spectrain.apply(make_net(), TRP(nuclear=0.0), report=None)
    assert not net.wide.hosted
