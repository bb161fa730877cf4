"""LOST: factors from the SVD, columns from what it leaves, beside plain arithmetic."""

from __future__ import annotations

import pytest
import torch
from toys import make_net, one_layer

import spectrain
from spectrain import LOST, UsageError
from spectrain.linalg import svd

SHAPES = [(12, 20), (20, 12), (16, 16)]
LINEAR = {"activation": "none"}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_factors_are_the_best_approximation_and_the_columns_the_weights_own(shape):
    layer, plain = one_layer(LOST(4, density=0.2), shape, dtype=torch.float64)
    W = plain.weight.detach()
    U, s, V = svd(W)
    torch.testing.assert_close((layer.B @ layer.A).detach(), (U[:4].mT * s[:4]) @ V[:4])
    torch.testing.assert_close(layer.B.mT @ layer.B, torch.diag(s[:4]))
    assert layer.columns.shape[1] == len(layer.channels) == -(-shape[1] // 5)
    assert torch.equal(layer.columns.detach(), W[:, layer.channels])


@pytest.mark.parametrize("complement", [2, 256])
@pytest.mark.parametrize("shape", SHAPES)
def test_channels_have_the_largest_columns_of_the_complement(shape, complement):
    layer, plain = one_layer(
        LOST(4, density=0.25, complement=complement), shape, dtype=torch.float64
    )
    U, s, V = svd(plain.weight.detach())
    rest = slice(4, 4 + complement)
    left = (U[rest].mT * s[rest]) @ V[rest]
    assert float((U[:4] @ left).abs().max()) < 1e-12  # orthogonal to the factors
    assert left.any()
    order = left.norm(dim=0).argsort(descending=True)[: shape[1] // 4]
    assert layer.channels.tolist() == sorted(order.tolist())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ["silu", "none"])
def test_outputs_and_gradients_follow_the_equation(shape, activation):
    method = LOST(4, density=0.3, mixing=0.8, activation=activation)
    layer, _ = one_layer(method, shape, dtype=torch.float64)
    parts = [
        p.detach().clone().requires_grad_() for p in (layer.A, layer.B, layer.columns, layer.bias)
    ]
    A, B, C, b = parts
    x = torch.randn(2, 7, shape[1], dtype=torch.float64, requires_grad=True)
    inner = x @ A.mT
    inner = inner / (1 + torch.exp(-inner)) if activation == "silu" else inner
    expected = 0.8 * inner @ B.mT + 0.2 * x[..., layer.channels] @ C.mT + b
    found = layer(x)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    own = torch.autograd.grad(found, (layer.A, layer.B, layer.columns, layer.bias, x), weights)
    exact = torch.autograd.grad(expected, (*parts, x), weights)
    for a, e in zip(own, exact, strict=True):
        torch.testing.assert_close(a, e)


def test_without_an_activation_it_merges():
    net = spectrain.apply(make_net(), LOST(3, density=0.3, mixing=0.6, **LINEAR), report=None)
    layer = net.wide
    W = 0.6 * layer.B @ layer.A
    W[:, layer.channels] += 0.4 * layer.columns
    spectrain.merge(net)
    torch.testing.assert_close(net.wide.weight, W)


def test_a_rank_that_leaves_nothing_is_refused():
    with pytest.raises(UsageError, match=r"rank of 5 leaves no singular value of a layer of 5 × 8"):
        spectrain.apply(make_net(), LOST(5), report=None)
