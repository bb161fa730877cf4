"""What DCT promises: the basis, the selection, the published algorithm step by step."""

from __future__ import annotations

import gc
import itertools

import numpy as np
import pytest
import scipy.fft
import torch
from toys import Training, drift, one_layer, rows_of, same, start_of, steered

import spectrain
from spectrain import DCT
from spectrain.linalg import cosine_basis
from spectrain.parametrizations import bases

RATE, DECAY, RANK = 0.05, 0.1, 2
SHAPES = [(9, 6), (6, 9), (7, 7)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=["tall", "wide", "square"])


def watched(found):
    return lambda layer: found.append(layer.indices.clone())


# --- the basis ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 16, 33])
def test_the_basis_is_the_orthonormal_dct_ii(size):
    D = cosine_basis(size, like=torch.empty(0, dtype=torch.float64))
    torch.testing.assert_close(D @ D.mT, torch.eye(size, dtype=torch.float64))
    x = np.random.default_rng(0).standard_normal((3, size))
    expected = scipy.fft.dct(x, type=2, norm="ortho", axis=-1)
    torch.testing.assert_close(torch.tensor(x) @ D.mT, torch.tensor(expected))


def test_layers_of_one_size_share_a_table_that_goes_with_them():
    gc.collect()
    before = len(bases._COSINES)
    training = Training(DCT(RANK)).run(0, 2)
    tables = {id(layer.table()[0]) for layer in training.layers}
    sizes = {layer.length for layer in training.layers}
    assert len(tables) == len(sizes) == len(bases._COSINES) - before
    state = training.model.wide.state_dict()
    assert state["indices"].shape == (RANK,)
    assert not any(len(t.shape) == 2 and t.shape[0] == t.shape[1] for t in state.values())
    del training
    gc.collect()
    assert len(bases._COSINES) == before


# --- the selection ------------------------------------------------------------------------------


@every_shape
def test_ranking_by_l2_leaves_out_the_least_energy(shape):
    _, layer = steered(DCT(RANK, norm="l2"), shape, torch.optim.SGD, drift(shape, 1))
    G = rows_of(layer, drift(shape, 1)[0] + start_of(shape))
    D = layer.table()[0]

    def left_out(rows):
        return float((G - rows.mT @ (rows @ G)).square().sum())

    own = left_out(layer.rows())
    subsets = itertools.combinations(range(len(D)), RANK)
    assert own == pytest.approx(min(left_out(D[list(s)]) for s in subsets))
    assert own <= (1 - RANK / len(D)) * float(G.square().sum())


def test_a_smooth_gradient_is_met_by_far_more_than_by_random_directions():
    x, y = (torch.linspace(0, 1, k, dtype=torch.float64) for k in (48, 64))
    G = torch.exp(-torch.outer(x, y))
    layer, _ = one_layer(DCT(4, norm="l2"), (48, 64))
    layer.choose(layer.transform(G).norm(dim=1).topk(4).indices)
    kept = layer.down(G).norm() / G.norm()
    random = torch.linalg.qr(torch.randn(48, 4, dtype=torch.float64)).Q
    assert kept > 0.99
    assert (random.mT @ G).norm() / G.norm() < 0.8


def test_a_column_that_stays_keeps_its_place():
    layer, _ = one_layer(DCT(4), (9, 6))
    changed = layer.choose(torch.tensor([5, 3, 1, 4]))
    assert changed.tolist() == [True, False, True, False]
    assert layer.indices[[1, 3]].tolist() == [1, 3]
    assert sorted(layer.indices.tolist()) == [1, 3, 4, 5]
    assert not layer.choose(layer.indices.flip(0)).any()


# --- the step -----------------------------------------------------------------------------------


def by_the_paper(shape, gradients, method):
    """DCT-AdamW with torch's ε in NumPy, with the basis on the left: W after every step, E, chosen."""
    turn = (lambda a: a.T) if shape[0] >= shape[1] else (lambda a: a)
    W, path, chosen = turn(start_of(shape).numpy()), [], None
    D = scipy.fft.dct(np.eye(len(W)), type=2, norm="ortho", axis=0)  # rows: basis vectors
    M, V, E = np.zeros((RANK, W.shape[1])), np.zeros((RANK, W.shape[1])), np.zeros(W.shape)
    for t, C in enumerate(gradients, 1):
        A = W + turn(C.numpy()) + E
        if (t - 1) % method.refresh_every == 0:
            norms = np.linalg.norm(D @ A, ord=1 if method.norm == "l1" else 2, axis=1)
            new = np.argsort(-norms)[:RANK]
            if chosen is not None:  # the rotation, as it is printed
                turned = D[new] @ D[chosen].T
                M, V = turned @ M, np.abs(turned @ V)
            chosen = new
        P = D[chosen].T
        g = P.T @ A
        E = A - P @ g if method.error_feedback else E
        M, V = 0.9 * M + 0.1 * g, 0.999 * V + 0.001 * g**2
        N = M / (1 - 0.9**t) / (np.sqrt(V / (1 - 0.999**t)) + 1e-8)
        W = (1 - RATE * DECAY) * W - RATE * P @ N
        path.append(torch.tensor(turn(W)))
    return path, torch.tensor(turn(E)), set(chosen.tolist())


@every_shape
@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("feedback", [False, True], ids=["", "error-feedback"])
def test_every_step_is_the_papers(shape, norm, every, feedback):
    method = DCT(RANK, refresh_every=every, norm=norm, error_feedback=feedback)
    found = []
    path, layer = steered(method, shape, torch.optim.AdamW, drift(shape), watch=watched(found))
    expected, error, chosen = by_the_paper(shape, drift(shape), method)
    torch.testing.assert_close(path, expected, rtol=1e-7, atol=1e-8)
    assert set(layer.indices.tolist()) == chosen
    assert len({tuple(sorted(i.tolist())) for i in found[1:]}) > 1  # columns did change
    if feedback:
        torch.testing.assert_close(layer.error.detach(), error, rtol=1e-7, atol=1e-8)


@every_shape
def test_full_rank_with_sgd_is_dense_sgd(shape):
    method = DCT(min(shape), error_feedback=True)
    path, layer = steered(method, shape, torch.optim.SGD, drift(shape), decay=0.0)
    dense, _ = steered(None, shape, torch.optim.SGD, drift(shape), decay=0.0)
    torch.testing.assert_close(path, dense, rtol=1e-11, atol=1e-12)
    assert layer.error.abs().max() < 1e-12


@every_shape
def test_full_rank_in_the_identity_basis_is_adamw(shape, monkeypatch):
    monkeypatch.setattr(bases, "_shared_cosines", lambda size, like: torch.eye(size).to(like))
    path, _ = steered(DCT(min(shape)), shape, torch.optim.AdamW, drift(shape))
    dense, _ = steered(None, shape, torch.optim.AdamW, drift(shape))
    torch.testing.assert_close(path, dense, rtol=1e-11, atol=1e-12)


def test_both_sides_behave_identically():
    method = DCT(3, refresh_every=2, error_feedback=True)
    tall, _ = steered(method, (9, 6), torch.optim.AdamW, drift((9, 6)))
    wide, _ = steered(method, (6, 9), torch.optim.AdamW, [C.mT for C in drift((9, 6))])
    torch.testing.assert_close([W.mT for W in wide], tall, rtol=1e-10, atol=1e-11)


def test_clipping_scales_the_new_projection_as_it_scaled_the_old():
    """Both columns are new; the gradient that SGD sees is the clipped one all the same."""
    shape, (C,) = (9, 6), drift((9, 6), 1)
    W, G = start_of(shape), start_of(shape) + C
    (after,), layer = steered(DCT(RANK), shape, torch.optim.SGD, [C], decay=0.0, clip=1e-2)
    first = cosine_basis(6, like=W)[:RANK]  # the columns that the backward pass knew
    scale = 1e-2 / float((G @ first.mT).norm() + 1e-6)
    rows = layer.rows()
    torch.testing.assert_close(W - after, RATE * scale * G @ rows.mT @ rows)


def test_dense_gradients_are_formed_in_the_steps_that_select_only():
    training = Training(DCT(RANK, refresh_every=3))
    formed = []
    for step in range(5):
        training.backward(step)
        formed.append(training.model.wide.gathered is not None)
        training.optimizer.step()
        training.optimizer.zero_grad()
    assert formed == [True, False, False, True, False]
    assert training.model.wide.gathered is None


def test_a_layer_that_is_not_used_keeps_its_columns():
    training = Training(DCT(RANK))
    training.run(0, 2)
    square = training.model.square
    before = square.state_dict()["indices"].clone()
    square.forward = torch.zeros_like
    training.step(2)
    del square.forward
    assert same(square.indices, before)
    training.step(3)
    spectrain.merge(training.model)
