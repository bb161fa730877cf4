"""PELA beside autograd on the written-out losses, and what its card promises."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from toys import Training, batch, make_net, one_layer, same

import spectrain
from spectrain import PELA, LayerWise
from spectrain.surgery import parametrized

RANK, STEPS = 3, 6


class Plain(nn.Module):
    """The layer written plainly; it remembers its inputs."""

    def __init__(self, layer):
        super().__init__()
        self.teacher = layer.teacher.detach().clone()
        self.A, self.B = (nn.Parameter(p.detach().clone()) for p in (layer.A, layer.B))
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        self.inputs = []

    def forward(self, x):
        self.inputs.append(x.detach().flatten(0, -2))
        return F.linear(x, self.B @ self.A, self.bias)


def plainly(method: PELA, steps: int = STEPS) -> nn.Module:
    """The same training with the losses of the paper added to the loop's."""
    net = spectrain.apply(make_net(0, torch.float64), method, report=None)
    layers = []
    for name, layer in list(parametrized(net)):
        plain = Plain(layer)
        setattr(net, name, plain)
        layers.append(plain)
    factors = [p for layer in layers for p in (layer.A, layer.B)]
    own = {id(p) for p in factors}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in net.parameters() if id(p) not in own], "weight_decay": 0.0},
            {"params": factors, "weight_decay": 0.1},
        ],
        lr=0.01,
    )
    for step in range(steps):
        for layer in layers:
            layer.inputs.clear()
        x, y = batch(step, torch.float64)
        loss = F.mse_loss(net(x), y)
        for layer in layers:
            x, W = torch.cat(layer.inputs), layer.B @ layer.A
            worst = (W - layer.teacher).abs().max()
            distance = F.mse_loss(F.linear(x, W), F.linear(x, layer.teacher))
            excess = F.relu(worst - method.tolerance) ** 2
            loss = loss + (method.feature * distance + method.perturbation * excess) / len(layers)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return net


def train(method: PELA, how: str = "plain") -> nn.Module:
    training = Training(method, dtype=torch.float64, attach=False)
    layerwise = LayerWise(accumulate=2) if how == "layerwise" else None
    spectrain.attach(training.model, training.optimizer, layerwise=layerwise)
    if how.startswith("checkpoint"):
        inner, reentrant = training.model.square.forward, how == "checkpoint-reentrant"
        training.model.square.forward = lambda x: checkpoint(inner, x, use_reentrant=reentrant)
    for step in range(STEPS):
        training.backward(step)
        training.optimizer.step()
        training.optimizer.zero_grad()
    return training.model


@pytest.mark.parametrize("how", ["plain", "layerwise", "checkpoint", "checkpoint-reentrant"])
def test_gradients_are_those_of_the_papers_losses(how):
    """With two micro-batches in a step, whose losses the loop divides by two."""
    method = PELA(RANK, feature=2.0, perturbation=3.0, tolerance=0.01)
    found, expected = dict(parametrized(train(method, how))), plainly(method)
    for name, layer in found.items():
        plain = expected.get_submodule(name)
        for factor in ("A", "B"):
            torch.testing.assert_close(
                getattr(layer, factor), getattr(plain, factor), rtol=1e-7, atol=1e-9
            )


def test_without_its_losses_it_is_factored_training():
    method = PELA(RANK, feature=0.0, perturbation=0.0)
    found, expected = dict(parametrized(train(method))), plainly(method)
    for name, layer in found.items():
        torch.testing.assert_close(layer.A, expected.get_submodule(name).A, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (30, 40)])
def test_the_start_is_the_best_approximation(shape):
    layer, plain = one_layer(PELA(), shape)
    m, n = shape
    assert layer.rank == int(m * n / (2 * (m + n)))
    assert layer.A.numel() + layer.B.numel() <= m * n / 2
    U, s, Vh = torch.linalg.svd(plain.weight.detach())
    r = layer.rank
    torch.testing.assert_close(layer.dense(), U[:, :r] @ s[:r].diag() @ Vh[:r])
    torch.testing.assert_close(layer.A.norm(dim=1), s[:r].sqrt())
    torch.testing.assert_close(layer.B.norm(dim=0), s[:r].sqrt())
    assert PELA(compression=1000.0).parametrize(copy.deepcopy(plain)).rank == 1


def test_at_full_rank_there_is_nothing_to_learn():
    net = spectrain.apply(nn.Sequential(nn.Linear(6, 5)), PELA(5), report=None)
    optimizer = torch.optim.SGD(spectrain.param_groups(net, 0.01))
    spectrain.attach(net, optimizer)
    (0.0 * net(torch.randn(20, 6)).sum()).backward()
    optimizer.step()
    assert float(net[0].A.grad.abs().max()) < 1e-6
    assert float(net[0].B.grad.abs().max()) < 1e-6


def test_the_teacher_stays_and_nothing_is_heard_in_evaluation():
    training = Training(PELA(RANK))
    teacher = training.model.wide.teacher.clone()
    assert torch.equal(teacher, training.original["wide.weight"])
    training.run(0, 3)
    assert torch.equal(training.model.wide.teacher, teacher)
    F.mse_loss(training.model.eval()(batch(3)[0]), batch(3)[1]).backward()
    assert training.model.wide.gathered is None
    training.model.train()(batch(3)[0])  # a forward pass alone
    assert training.model.wide.gathered is None
    F.mse_loss(training.model(batch(3)[0]), batch(3)[1]).backward()
    assert float(training.model.wide.gathered[0]) == 12


def test_distillation_brings_the_outputs_nearer_to_the_teachers():
    """Without a loss of the loop's own."""
    torch.manual_seed(2)
    x = torch.randn(256, 12) @ torch.randn(
        12, 24
    )  # inputs of a subspace, which the SVD knows nothing of
    net = nn.Sequential(nn.Linear(24, 24))
    plain = copy.deepcopy(net)
    spectrain.apply(net, PELA(8, perturbation=0.0), report=None)
    optimizer = torch.optim.Adam(spectrain.param_groups(net, 0.003))
    spectrain.attach(net, optimizer)
    before = F.mse_loss(net(x), plain(x)).item()
    for _ in range(150):
        (0.0 * net(x).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert F.mse_loss(net(x), plain(x)).item() < 0.5 * before


def test_a_scaled_loss_changes_nothing():
    """As a gradient scaler does: gradients are unscaled before the distance's come to them."""
    plain, scaled = Training(PELA(RANK)), Training(PELA(RANK))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(4):
        x, y = batch(step)
        F.mse_loss(plain.model(x), y).backward()
        plain.optimizer.step()
        scaler.scale(F.mse_loss(scaled.model(x), y)).backward()
        scaler.step(scaled.optimizer)
        scaler.update()
        for training in (plain, scaled):
            training.optimizer.zero_grad()
    assert same(plain.model.state_dict(), scaled.model.state_dict())
