"""What APOLLO promises: the published algorithm step by step; nothing stored of P but a seed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from toys import (
    Training,
    UncorrectedAdam,
    drift,
    make_net,
    one_layer,
    rows_of,
    same,
    start_of,
    steered,
)

import spectrain
from spectrain import APOLLO, APOLLOMini
from spectrain.parametrizations.bases import SeededBasis

RATE, DECAY, T, RANK = 0.05, 0.1, 3, 2
SHAPES = [(9, 6), (6, 9), (7, 7)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=["tall", "wide", "square"])
METHODS = {
    "channel": APOLLO(RANK, refresh_every=T),
    "tensor": APOLLO(RANK, refresh_every=T, scaling="tensor", scale=3.0),
    "mini": APOLLOMini(refresh_every=T),
}
every_kind = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


def drawn(layers):
    """A `watch` that notes the basis of every step."""
    return lambda layer: layers.append(layer.rows().clone())


def by_the_paper(shape, gradients, bases, method):
    """APOLLO with torch's AdamW in NumPy, with P on the left: W after every step."""
    turn = (lambda a: a.T) if shape[0] >= shape[1] else (lambda a: a)
    axis = 0 if method.scaling == "channel" else None
    W, path, previous = turn(start_of(shape).numpy()), [], 0.0
    M = V = 0.0
    for t, (C, P) in enumerate(zip(gradients, bases, strict=True), 1):
        G = W + turn(C.numpy())
        R = P.numpy() @ G
        M, V = 0.9 * M + 0.1 * R, 0.999 * V + 0.001 * R**2
        N = M / (1 - 0.9**t) / (np.sqrt(V / (1 - 0.999**t)) + 1e-8)
        S = G * (np.linalg.norm(N, axis=axis) / (np.linalg.norm(R, axis=axis) + 1e-8))
        norm = np.linalg.norm(S)
        if previous and norm > 1.01 * previous:
            S = S * 1.01 * previous / norm
        previous = np.linalg.norm(S)
        W = (1 - RATE * DECAY) * W - RATE * method.scale * S
        path.append(torch.tensor(turn(W)))
    return path


@every_shape
@every_kind
def test_every_step_is_the_papers(shape, method):
    bases = []
    path, _ = steered(method, shape, torch.optim.AdamW, drift(shape), watch=drawn(bases))
    expected = by_the_paper(shape, drift(shape), bases, method)
    torch.testing.assert_close(path, expected, rtol=1e-9, atol=1e-10)


@every_shape
@every_kind
def test_it_follows_the_released_package(shape, method, monkeypatch):
    """Three projections long, with the package's random numbers and Adam."""
    package = pytest.importorskip("apollo_torch", reason="of the test extra")
    from apollo_torch.random_projector import next_seed, stable_randn

    def as_theirs(self, clock):
        seed = 1
        for _ in range(clock // T):
            seed = next_seed(seed)
        size = (self.rank, self.length) if self.side == "right" else (self.length, self.rank)
        P = stable_randn(size, seed).double() / math.sqrt(self.rank)
        self._drawn = P if self.side == "right" else P.mT

    monkeypatch.setattr(SeededBasis, "draw", as_theirs)
    group = {"rank": method.rank, "update_proj_gap": T, "scale": method.scale**2}
    group |= {"proj": "random", "proj_type": "std", "scale_type": method.scaling}

    def theirs(groups):
        return package.APOLLOAdamW([g | group for g in groups])

    expected, _ = steered(None, shape, theirs, drift(shape), decay=0.0)
    # Its limiter sees norms without bias correction: they are part of the rate here.
    path, _ = steered(
        method,
        shape,
        UncorrectedAdam,
        drift(shape),
        decay=0.0,
        rate=lambda t: RATE * UncorrectedAdam.correction(t),
    )
    torch.testing.assert_close(path, expected, rtol=1e-6, atol=1e-7)


def test_mini_is_apollo_at_rank_one_with_one_factor_and_the_root_of_128():
    mini, other = APOLLOMini(), APOLLO(1, scale=math.sqrt(128), scaling="tensor")
    paths = [steered(m, (9, 6), torch.optim.AdamW, drift((9, 6)))[0] for m in (mini, other)]
    assert same(*paths)


@every_shape
def test_in_the_identity_basis_each_channel_is_as_long_as_adams_update(shape, monkeypatch):
    def identity(self, clock):
        self._drawn = torch.eye(self.length, dtype=torch.float64)

    monkeypatch.setattr(SeededBasis, "draw", identity)
    method = APOLLO(min(shape), limiter=1e9)
    (own,), layer = steered(method, shape, torch.optim.AdamW, drift(shape, 1), decay=0.0)
    (adam,), _ = steered(None, shape, torch.optim.AdamW, drift(shape, 1), decay=0.0)
    W = start_of(shape)
    moved, expected, G = (rows_of(layer, x) for x in (own - W, adam - W, drift(shape, 1)[0] + W))
    torch.testing.assert_close(moved.norm(dim=0), expected.norm(dim=0), rtol=1e-6, atol=0)
    cosines = torch.cosine_similarity(moved, G, dim=0)
    torch.testing.assert_close(cosines, -torch.ones_like(cosines), rtol=0, atol=1e-12)


def test_both_sides_behave_identically():
    method, bases = METHODS["channel"], ([], [])
    tall, right = steered(method, (9, 6), torch.optim.AdamW, drift((9, 6)), watch=drawn(bases[0]))
    turned = [C.mT for C in drift((9, 6))]
    wide, left = steered(method, (6, 9), torch.optim.AdamW, turned, watch=drawn(bases[1]))
    assert (right.side, left.side) == ("right", "left")
    assert same(*bases)
    torch.testing.assert_close([W.mT for W in wide], tall, rtol=1e-10, atol=1e-11)


# --- the projection -----------------------------------------------------------------------------


def test_a_seed_and_the_clock_are_all_there_is_of_the_projection():
    layer, _ = one_layer(APOLLO(RANK), (9, 6))
    assert set(layer.state_dict()) == {"clock", "seed", "update_norm", "base", "R", "bias"}
    training = Training(APOLLO(RANK, refresh_every=T))
    bases = []
    for step in range(2 * T + 1):
        bases.append(training.model.wide.rows().clone())
        training.step(step)
    changed = [not torch.equal(a, b) for a, b in itertools.pairwise(bases)]
    assert changed == [False, False, True, False, False, True]
    other = spectrain.apply(make_net(seed=5), APOLLO(RANK, refresh_every=T), report=None)
    other.load_state_dict(training.model.state_dict())
    assert torch.equal(other.wide.rows(), training.model.wide.rows())
    rows = [layer.rows() for layer in training.layers if layer.length == 8]
    assert not torch.equal(*rows[:2])  # each layer's own


def test_the_projection_has_the_papers_variance_and_keeps_norms_on_average():
    torch.manual_seed(0)
    layer, _ = one_layer(APOLLO(64, refresh_every=1), (300, 200))
    P = layer.rows()
    assert float(P.mean()) == pytest.approx(0, abs=4e-3)
    assert float(P.std()) == pytest.approx(1 / 8, rel=0.03)
    G = torch.randn(300, 200, dtype=torch.float64)
    assert float(layer.down(G).norm() / G.norm()) == pytest.approx(1, rel=0.03)


def test_moments_stay_and_r_is_zero_after_every_step():
    training = Training(APOLLO(RANK, refresh_every=T)).run(0, T + 1)
    for layer in training.layers:
        assert not layer.R.any()
        assert int(training.optimizer.state[layer.R]["step"]) == T + 1
        assert layer.gathered is None


def test_a_rate_of_zero_moves_nothing():
    path, layer = steered(
        METHODS["channel"], (9, 6), torch.optim.AdamW, drift((9, 6), 2), rate=lambda t: 0.0
    )
    assert torch.equal(path[1], start_of((9, 6)))
    assert layer.update_norm == 0


def test_clipping_shortens_the_update():
    """SGD moves W by the clipped gradient, each channel by as much as its projection."""
    shape, (C,) = (9, 6), drift((9, 6), 1)
    clipped, free = (
        steered(METHODS["channel"], shape, torch.optim.SGD, [C], decay=0.0, clip=c)[0][0]
        for c in (1e-2, 0.0)
    )
    W = start_of(shape)
    torch.testing.assert_close(W - free, RATE * (W + C), rtol=1e-6, atol=0)
    share = ((W - clipped) * (W + C)).sum() / (W + C).square().sum()
    torch.testing.assert_close(W - clipped, share * (W + C), rtol=1e-4, atol=0)
    assert share < 0.1 * RATE
