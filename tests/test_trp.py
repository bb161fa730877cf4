"""TRP beside a slow loop of its paper's algorithm."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from toys import Training, batch, make_net, one_layer

import spectrain
from spectrain import TRP, FullRank
from spectrain.linalg import svd
from spectrain.surgery import parametrized


@pytest.mark.parametrize("energy", [0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_a_truncation_keeps_the_fewest_singular_values_with_the_energy(shape, energy):
    layer, plain = one_layer(TRP(), shape, dtype=torch.float64)
    layer.truncate(energy)
    U, s, V = svd(plain.weight.detach())
    squares = s.square()
    rank = int(layer.kept)
    assert squares[:rank].sum() >= energy * squares.sum() * (1 - 1e-12)
    assert rank == 1 or squares[: rank - 1].sum() < energy * squares.sum()
    torch.testing.assert_close(layer.weight.detach(), (U[:rank].mT * s[:rank]) @ V[:rank])
    torch.testing.assert_close(layer.direction, (U[:rank].mT @ V[:rank]), rtol=1e-9, atol=1e-12)
    if energy == 1.0:
        assert rank == 12


def truncated(W, energy):
    U, s, V = torch.linalg.svd(W, full_matrices=False)
    k = 1
    while s[:k].square().sum() < energy * s.square().sum():
        k += 1
    return U[:, :k] @ torch.diag(s[:k]) @ V[:k], U[:, :k] @ V[:k]


def test_training_is_the_papers_loop():
    """Momentum SGD; truncation before the forward pass of every third step, λ U Vᵀ in its gradient."""
    method = TRP(truncate_every=3, energy=0.8, nuclear=0.02)
    ours, slow = make_net(0, torch.float64), make_net(0, torch.float64)
    spectrain.apply(ours, method, report=None)
    optimizers = [
        torch.optim.SGD(spectrain.param_groups(ours, 0.05), momentum=0.9),
        torch.optim.SGD(slow.parameters(), 0.05, momentum=0.9),
    ]
    spectrain.attach(ours, optimizers[0])
    names = [name for name, _ in parametrized(ours)]
    for step in range(10):
        x, y = batch(step, torch.float64)
        directions = {}
        for name in names if step and step % 3 == 0 else ():
            weight = slow.get_parameter(f"{name}.weight")
            low, directions[name] = truncated(weight.detach(), 0.8)
            weight.data = low.contiguous()
        for net in (ours, slow):
            net.zero_grad()
            F.mse_loss(net(x), y).backward()
        for name, direction in directions.items():
            slow.get_parameter(f"{name}.weight").grad += 0.02 * direction
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % 3:  # after it ours is truncated already
            for name in names:
                own, theirs = (net.get_submodule(name).weight.detach() for net in (ours, slow))
                own = own.mT if own.shape != theirs.shape else own
                torch.testing.assert_close(own, theirs, rtol=1e-9, atol=1e-11)


def test_all_of_the_energy_and_no_subgradient_is_plain_training():
    plain = Training(FullRank()).run(0, 8)
    ours = Training(TRP(truncate_every=3, energy=1.0, nuclear=0.0)).run(0, 8)
    assert ours.losses == pytest.approx(plain.losses, rel=1e-5)


def test_without_a_subgradient_no_matrix_is_kept_for_it():
    layer, _ = one_layer(TRP(nuclear=0.0), (8, 6))
    assert layer.direction is None
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}


def test_weights_drift_to_a_low_rank():
    """Of a layer that learns a rank-2 map, little is lost by what a truncation takes in the end."""
    torch.manual_seed(0)
    target = torch.randn(16, 2) @ torch.randn(2, 16)
    net = torch.nn.Sequential(torch.nn.Linear(16, 16, bias=False))
    spectrain.apply(net, TRP(truncate_every=10, energy=0.99), report=None)
    optimizer = torch.optim.Adam(spectrain.param_groups(net, 0.02))
    spectrain.attach(net, optimizer)
    for _ in range(400):
        x = torch.randn(64, 16)
        F.mse_loss(net(x), x @ target.mT).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert int(net[0].kept) == 2
    assert float((net[0].weight - target).norm() / target.norm()) < 0.05
