"""LowRank: two factors that are all of W, beside plain arithmetic."""

from __future__ import annotations

import pytest
import torch
from toys import Training, make_net, one_layer

import spectrain
from spectrain import LowRank
from spectrain.linalg import svd

SHAPES = [(12, 20), (20, 12), (16, 16)]


def layer_of(shape, dtype=torch.float64, **settings):
    layer, plain = one_layer(LowRank(4, **settings), shape, dtype=dtype)
    with torch.no_grad():  # far from balanced
        layer.B.mul_(30.0)
        layer.A[0].mul_(5.0)
    return layer, plain


@pytest.mark.parametrize("shape", SHAPES)
def test_balancing_keeps_the_product_and_shares_out_its_singular_values(shape):
    layer, _ = layer_of(shape, alpha=2.0)
    before = layer.dense().detach()
    layer.balance()
    torch.testing.assert_close(layer.dense().detach(), before, rtol=1e-12, atol=1e-12)
    values = svd(before / layer.scale)[1][:4]
    expected = torch.diag(values)
    torch.testing.assert_close(layer.B.mT @ layer.B, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.A @ layer.A.mT, expected, rtol=1e-10, atol=1e-10)
    factors = [p.detach().clone() for p in (layer.A, layer.B)]
    layer.balance()
    for now, then in zip((layer.A, layer.B), factors, strict=True):  # idempotent, but for signs
        torch.testing.assert_close(now.detach().abs(), then.abs(), rtol=1e-9, atol=1e-9)


def test_balanced_factors_have_the_smallest_condition_number():
    layer, _ = layer_of((12, 20))
    unbalanced = torch.linalg.cond(layer.B).detach(), torch.linalg.cond(layer.A).detach()
    layer.balance()
    balanced = torch.linalg.cond(layer.B).detach(), torch.linalg.cond(layer.A).detach()
    assert max(balanced) < max(unbalanced)
    ratio = svd(layer.dense().detach())[1]
    for condition in balanced:
        assert float(condition) == pytest.approx(float((ratio[0] / ratio[3]).sqrt()), rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_start_by_svd_is_the_best_approximation(shape):
    layer, plain = one_layer(LowRank(4, alpha=3.0, init="svd"), shape, dtype=torch.float64)
    U, s, V = svd(plain.weight.detach())
    torch.testing.assert_close(layer.dense().detach(), (U[:4].mT * s[:4]) @ V[:4])
    error = (plain.weight - layer.dense()).square().sum()
    assert float(error) == pytest.approx(float(s[4:].square().sum()))


def test_a_restart_clears_the_moments_of_factors_alone():
    training = Training(LowRank(4, restart_every=3)).run(0, 2)
    ordinary = [p for n, p in training.model.named_parameters() if n.startswith("norm")]
    training.run(2, 3)
    state = training.optimizer.state
    for layer in training.layers:
        for factor in layer.factors().values():
            assert not state[factor]["exp_avg"].any()
            assert not state[factor]["exp_avg_sq"].any()
    assert all(state[p]["exp_avg"].any() for p in ordinary)


def test_the_rate_recovers_after_a_restart():
    method = LowRank(4, restart_every=6, rewarm=3)
    factors = [method.warmup_factor(clock) for clock in range(12)]
    third = pytest.approx(1 / 3)
    assert factors == [1, 1, 1, 1, 1, 1, third, pytest.approx(2 / 3), 1, 1, 1, 1]


def test_merged_weights_have_the_rank():
    model = spectrain.apply(make_net(), LowRank(3), report=None)
    spectrain.merge(model)
    assert int(torch.linalg.matrix_rank(model.square.weight)) == 3
