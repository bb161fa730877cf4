"""Every registered method inside Lorentz layers, where it meets nothing but a plain linear layer."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import every_default_matrix, every_matrix, every_method
from torch import nn
from torch.func import functional_call
from toys import disturb, same

import spectrain
from spectrain.hyperbolic import (
    LorentzAttention,
    LorentzClassifier,
    LorentzGraphConvolution,
    RiemannianAdam,
    divided,
)
from spectrain.hyperbolic.heads import class_hinge
from spectrain.hyperbolic.lorentz import TOLERANCE, from_tangent, inner
from spectrain.parametrizations.base import Parametrization
from spectrain.surgery import parametrized


class Net(nn.Module):
    """A tall and a square convolution, attention, classes: the shapes of a graph network; rank ≤ 5."""

    def __init__(self) -> None:
        super().__init__()
        self.first = LorentzGraphConvolution(10, 8)
        self.second = LorentzGraphConvolution(8, 6, activation=torch.tanh)
        self.attention = LorentzAttention(6, heads=2)
        self.head = LorentzClassifier(6, 3)

    def forward(self, x: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        h = self.second(self.first(x, lambda h: mean @ h), lambda h: mean @ h)
        return self.head(self.attention(h))


def make(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    net = Net().to(dtype)
    generator = torch.Generator().manual_seed(1)
    x = from_tangent(torch.randn(12, 9, generator=generator, dtype=torch.float64)).to(dtype)
    mean = torch.rand(12, 12, generator=generator, dtype=torch.float64).to(dtype)
    return net, x, mean / mean.sum(1, keepdim=True), torch.arange(12) % 3


def optimizers(net, lr=0.01):
    """The factors' own, and geoopt's for the points."""
    points, others = divided(spectrain.param_groups(net, lr, weight_decay=0.1))
    assert [p is net.head.points for group in points for p in group["params"]] == [True]
    assert all(group["weight_decay"] == 0 for group in points)
    return [torch.optim.AdamW(others), RiemannianAdam(points)]


@every_matrix
def test_the_function_is_kept_and_merging_gives_it_back(method):
    net, x, mean, _ = make()
    keys = {name: tensor.shape for name, tensor in net.state_dict().items()}
    before = net(x, mean)
    spectrain.apply(net, method, report=None)
    assert len(list(parametrized(net))) == 6  # two convolutions, four maps of the attention
    rounded = getattr(method, "frozen_dtype", None) == "bfloat16"
    how = {"rtol": 0.05, "atol": 0.05} if rounded else {}
    if method.keeps_function:
        torch.testing.assert_close(net(x, mean), before, **how)
    for _, layer in parametrized(net):
        disturb(layer, 0.01)
        layer.note_versions()  # no training that went unseen
    net.eval()
    moved = net(x, mean)
    spectrain.merge(net)
    torch.testing.assert_close(net(x, mean), moved)
    assert {name: tensor.shape for name, tensor in net.state_dict().items()} == keys


@every_default_matrix
def test_gradients_are_those_of_the_dense_map(method):
    """Through the hyperboloid: the gradients of inputs, biases, scales and points."""
    net, x, mean, labels = make()
    spectrain.apply(net, method, report=None)
    for _, layer in parametrized(net):
        disturb(layer, 0.01)
        layer.note_versions()  # no training that went unseen
    plain = spectrain.merge(copy.deepcopy(net))
    x = x.clone().requires_grad_()
    class_hinge(net(x, mean), labels, 2.0).backward()
    theirs = x.detach().clone().requires_grad_()
    class_hinge(functional_call(plain, {}, (theirs, mean)), labels, 2.0).backward()
    torch.testing.assert_close(x.grad, theirs.grad)
    expected = dict(plain.named_parameters())
    ordinary = {n: p for n, p in net.named_parameters() if n in expected and "weight" not in n}
    assert {"first.linear.scale", "second.linear.dense.bias", "head.points"} <= ordinary.keys()
    for name, p in ordinary.items():
        torch.testing.assert_close(p.grad, expected[name].grad, msg=name)


@every_method
def test_training_resumes_bit_for_bit_and_stays_on_the_manifold(method):
    def begin():
        net, x, mean, labels = make(torch.float32)
        torch.manual_seed(5)
        spectrain.apply(net, method, report=None)
        own = optimizers(net)
        spectrain.attach(net, own)

        def run(steps):
            for _ in range(steps):
                class_hinge(net(x, mean), labels, 2.0).backward()
                for optimizer in own:
                    optimizer.step()
                for optimizer in own:
                    optimizer.zero_grad()

        return net, own, run

    net, own, run = begin()
    torch.manual_seed(9)  # dropout's draws
    run(4)
    kept = copy.deepcopy((net.state_dict(), [o.state_dict() for o in own]))
    random = torch.get_rng_state()
    run(7)
    again, fresh, go_on = begin()
    again.load_state_dict(kept[0])
    for optimizer, state in zip(fresh, kept[1], strict=True):
        optimizer.load_state_dict(state)
    torch.set_rng_state(random)
    go_on(7)
    assert same(again.state_dict(), net.state_dict())
    points = net.head.points
    assert ((inner(points, points) + 1).abs() / points[:, 0].square()).max() <= TOLERANCE


def test_no_layer_is_a_special_case():
    net, *_ = make()
    spectrain.apply(net, spectrain.SST(rank=2), report=None)
    assert isinstance(net.first.linear.dense, Parametrization)
    with pytest.raises(spectrain.UsageError, match="rank is 7"):
        spectrain.apply(make()[0], spectrain.SST(rank=7), report=None)
