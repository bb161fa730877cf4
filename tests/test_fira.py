"""What Fira promises: the published algorithm step by step, its limiter, updates of full rank."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from toys import (
    Training,
    UncorrectedAdam,
    drift,
    one_layer,
    rows_of,
    start_of,
    steered,
)

import spectrain
from spectrain import Fira, GaLore, linalg
from spectrain.scaling import limit_growth

RATE, DECAY, T, RANK = 0.05, 0.1, 3, 2
SHAPES = [(9, 6), (6, 9), (7, 7)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=["tall", "wide", "square"])


def fira(rank=RANK, **settings):
    published = {"projector": "svd", "moments": "keep", "refresh": "same_step", "refresh_every": T}
    return Fira(rank, **published | settings)


def by_the_paper(shape, gradients, residual, alpha=0.25, gamma=1.01):
    """Fira with torch's AdamW in NumPy, with the basis on the left: W after every step."""
    turn = (lambda a: a.T) if shape[0] >= shape[1] else (lambda a: a)
    W, path, previous = turn(start_of(shape).numpy()), [], 0.0
    M = V = 0.0
    for t, C in enumerate(gradients, 1):
        G = W + turn(C.numpy())
        if (t - 1) % T == 0:
            P = linalg.svd(torch.tensor(G))[0][:RANK].numpy().T
        R = P.T @ G
        M, V = 0.9 * M + 0.1 * R, 0.999 * V + 0.001 * R**2
        N = M / (1 - 0.9**t) / (np.sqrt(V / (1 - 0.999**t)) + 1e-8)
        S = G - (alpha if residual == "released" else 1) * P @ R
        S = S * (np.linalg.norm(N, axis=0) / (np.linalg.norm(R, axis=0) + 1e-8))
        norm = np.linalg.norm(S)
        if previous and norm > gamma * previous:
            S = S * gamma * previous / norm
        previous = np.linalg.norm(S)
        W = (1 - RATE * DECAY) * W - RATE * (alpha * P @ N + S)
        path.append(torch.tensor(turn(W)))
    return path


@every_shape
@pytest.mark.parametrize("residual", ["orthogonal", "released"])
def test_every_step_is_the_papers(shape, residual):
    gradients = drift(shape)
    path, _ = steered(fira(complement=residual), shape, torch.optim.AdamW, gradients)
    expected = by_the_paper(shape, gradients, residual)
    torch.testing.assert_close(path, expected, rtol=1e-9, atol=1e-10)
    other = by_the_paper(shape, gradients, "released" if residual == "orthogonal" else "orthogonal")
    assert not torch.allclose(path[-1], other[-1], rtol=1e-3)  # the check can fail


@every_shape
def test_it_follows_the_released_package(shape, monkeypatch):
    fira_package = pytest.importorskip("fira", reason="of the test extra")
    from fira.gradient_projection import GradientProjector as Theirs

    def svd_with_fixed_signs(self, weights, rank, type):
        if type == "left":
            return linalg.svd(weights)[0][:rank].mT
        return linalg.svd(weights.mT)[0][:rank]

    monkeypatch.setattr(Theirs, "get_orthogonal_matrix", svd_with_fixed_signs)
    group = {"rank": RANK, "update_proj_gap": T, "alpha": 0.25, "proj_type": "std"}

    def theirs(groups):
        return fira_package.FiraAdamW([g | group for g in groups], no_deprecation_warning=True)

    expected, _ = steered(None, shape, theirs, drift(shape), decay=0.0)
    # Its limiter sees norms without bias correction: they are part of the rate here.
    path, _ = steered(
        fira(complement="released"),
        shape,
        UncorrectedAdam,
        drift(shape),
        decay=0.0,
        rate=lambda t: RATE * UncorrectedAdam.correction(t),
    )
    torch.testing.assert_close(path, expected, rtol=1e-6, atol=1e-7)


@every_shape
def test_full_rank_in_the_identity_basis_is_adamw(shape):
    def identity(layer):
        if layer.last_refresh < 0:
            layer.take_basis(torch.eye(min(shape)), step=0)

    method = Fira(min(shape), refresh_every=1000, scale=1.0)
    path, layer = steered(method, shape, torch.optim.AdamW, drift(shape), watch=identity)
    dense, _ = steered(None, shape, torch.optim.AdamW, drift(shape))
    torch.testing.assert_close(path, dense, rtol=1e-12, atol=1e-13)
    assert layer.residual_norm < 1e-12


@every_shape
def test_full_rank_in_any_basis_is_galore(shape):
    settings = {"refresh_every": T, "scale": 1.0}
    path, _ = steered(Fira(min(shape), **settings), shape, torch.optim.AdamW, drift(shape))
    other, _ = steered(GaLore(min(shape), **settings), shape, torch.optim.AdamW, drift(shape))
    torch.testing.assert_close(path, other, rtol=1e-9, atol=1e-10)


@every_shape
def test_updates_have_full_rank_and_the_directions_of_the_residual(shape):
    gradients = drift(shape, 2)
    (before, after), layer = steered(fira(1), shape, torch.optim.AdamW, gradients, decay=0.0)
    assert torch.linalg.matrix_rank(after - before) == min(shape)
    P = layer.basis
    moved, G = (rows_of(layer, x) for x in (after - before, gradients[1] + before))
    outside = [x - P.mT @ (P @ x) for x in (moved, G)]
    cosines = torch.cosine_similarity(*outside, dim=0)
    torch.testing.assert_close(cosines, -torch.ones_like(cosines), rtol=0, atol=1e-9)


def test_both_sides_behave_identically():
    method = Fira(3, refresh_every=T)
    tall, _ = steered(method, (9, 6), torch.optim.AdamW, drift((9, 6)))
    wide, _ = steered(method, (6, 9), torch.optim.AdamW, [C.mT for C in drift((9, 6))])
    torch.testing.assert_close([W.mT for W in wide], tall, rtol=1e-10, atol=1e-11)


def test_clipping_acts_on_the_residual_as_on_the_rest():
    """SGD moves W by the clipped gradient: P α R and S = the residual, both so many times shorter."""
    method = Fira(RANK, refresh_every=T, scale=1.0)
    shape, (C,) = (9, 6), drift((9, 6), 1)
    start = start_of(shape)
    (after,), _ = steered(method, shape, torch.optim.SGD, [C], decay=0.0, clip=1e-2)
    moved, G = start - after, start + C
    share = (moved * G).sum() / G.square().sum()
    torch.testing.assert_close(moved, share * G, rtol=1e-4, atol=0)  # 10⁻⁸ beside norms
    assert share < 0.1 * RATE


# --- the limiter --------------------------------------------------------------------------------


def test_the_norm_of_the_residual_grows_by_at_most_gamma():
    gradients = [C * 2.0**t for t, C in enumerate(drift((9, 6)))]
    norms = []

    def watch(layer):
        norms.append(float(layer.residual_norm))

    _, layer = steered(fira(), (9, 6), torch.optim.AdamW, gradients, watch=watch)
    norms.append(float(layer.residual_norm))
    assert norms[0] == 0 < norms[1]
    ratios = [b / a for a, b in itertools.pairwise(norms[1:])]
    assert max(ratios) == pytest.approx(1.01)
    assert all(ratio <= 1.01 * (1 + 1e-12) for ratio in ratios)


def limited(step, previous, rate):
    limit_growth(step, previous, rate, 1.01)
    return step


def test_a_zero_or_infinite_step_leaves_the_limit_as_it_was():
    previous = torch.zeros((), dtype=torch.float64)
    ones = torch.ones(2, 2, dtype=torch.float64)
    assert not limited(0 * ones, previous, 0.1).any()
    assert previous == 0
    assert torch.equal(limited(3 * ones, previous, 0.1), 3 * ones)
    assert previous == pytest.approx(6 / 0.1)
    assert not limited(ones * torch.inf, previous, 0.1).any()
    assert not limited(ones * torch.nan, previous, 0.1).any()
    assert previous == pytest.approx(6 / 0.1)
    # A rate twice as large is no growth.
    assert torch.equal(limited(6 * ones, previous, 0.2), 6 * ones)
    torch.testing.assert_close(limited(9 * ones, previous, 0.2), 6.06 * ones)


def test_a_rate_of_zero_moves_nothing_and_the_limiter_neither():
    layer, _ = one_layer(Fira(RANK), (9, 6))
    model = torch.nn.Sequential(layer)
    before = layer.base.clone()
    optimizer = torch.optim.AdamW(spectrain.param_groups(model, 0.0, weight_decay=0.1))
    spectrain.attach(model, optimizer)
    model(torch.randn(3, 6, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    assert torch.equal(layer.base, before)
    assert layer.residual_norm == 0


def test_a_gradient_that_an_overflow_left_under_compile_is_not_used():
    training = Training(Fira(RANK))
    training.run(0, 2)
    training.backward(2)
    layer = training.model.wide
    norm = layer.residual_norm.clone()
    layer.gathered.fill_(float("inf"))
    training.optimizer.step()
    assert layer.base.isfinite().all()
    assert torch.equal(layer.residual_norm, norm)


def test_every_departure_from_the_paper_is_labelled():
    assert fira().variations() == []
    assert len(fira(complement="released").variations()) == 1
    assert len(Fira(RANK).variations()) == 3
