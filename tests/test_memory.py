"""LiveBytes: what tensors hold, in all and by category, and the peaks of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import Training, batch

from spectrain import SST, GaLore
from spectrain.memory.fake import without_data
from spectrain.memory.live import (
    ACTIVATIONS,
    CACHED,
    FROZEN,
    GRADIENTS,
    OPTIMIZER,
    WEIGHTS,
    LiveBytes,
)

KIB = 1024
NUMBERS = 256  # float32: 1 KiB


def test_counts_new_storages_and_forgets_dead_ones():
    with LiveBytes() as live:
        a = torch.zeros(NUMBERS)
        b = torch.zeros(2 * NUMBERS)
        assert live.current == 3 * KIB
        del b
        assert live.current == KIB
        c = a + 1
        assert live.current == 2 * KIB
        assert live.peak == 3 * KIB
    del c


def test_a_view_counts_with_its_storage():
    with LiveBytes() as live:
        a = torch.zeros(4, NUMBERS)
        part = a[0].view(16, 16).mT
        del a
        assert live.current == 4 * KIB  # one row keeps the whole storage
        del part
        assert live.current == 0


def test_in_place_operations_need_nothing():
    with LiveBytes() as live:
        a = torch.zeros(NUMBERS)
        a.add_(1).mul_(2)
        torch.add(a, 1, out=a)
        assert live.peak == KIB


def test_results_in_lists_and_what_existed_before_are_seen():
    before = torch.zeros(NUMBERS)
    with LiveBytes() as live:
        many = torch._foreach_add([before, before], 1.0)
        assert live.current == 3 * KIB
        del many
        assert live.current == KIB


def test_the_peak_can_start_anew():
    with LiveBytes() as live:
        torch.zeros(8 * NUMBERS)
        assert live.peak == 8 * KIB
        live.reset_peak()
        assert live.peak == live.current == 0
        kept = torch.zeros(NUMBERS)
        assert live.peak == KIB
    del kept


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_device_makes_no_difference(device):
    with LiveBytes() as live:
        x = torch.zeros(NUMBERS, device=device)
        y = x.exp().exp()
        assert (live.current, live.peak) == (2 * KIB, 3 * KIB)
    del y


def test_fake_tensors_count_as_real_ones():
    def measure() -> tuple[int, int]:
        with LiveBytes() as live:
            w = torch.ones(16, 16, requires_grad=True)
            loss = (w @ w).exp().sum()
            loss.backward()
            return live.peak, live.current

    real = measure()
    with without_data():
        assert measure() == real


def sizes(*parts):
    return sum(p.numel() * p.element_size() for p in parts)


def test_categories_of_a_training_step():
    model = nn.Sequential(nn.Linear(32, 64, bias=False), nn.ReLU(), nn.Linear(64, 8))
    model[2].weight.requires_grad_(False)
    trained = [model[0].weight, model[2].bias]
    optimizer = torch.optim.AdamW(trained)
    x = torch.ones(5, 32)
    with LiveBytes(model, optimizer) as live:
        assert live.by_category[WEIGHTS] == sizes(*trained)
        assert live.by_category[FROZEN] == sizes(model[2].weight)
        loss = model(x).sum()
        saved = live.by_category[ACTIVATIONS]
        assert saved >= sizes(x) + 4 * 5 * 64
        loss.backward()
        assert live.by_category[GRADIENTS] == sizes(*trained)
        optimizer.step()
        assert live.by_category[OPTIMIZER] == 2 * sizes(*trained) + 2 * 4
        optimizer.zero_grad()
        assert live.by_category[GRADIENTS] == 0
    assert live.peak == sum(live.peak_by_category.values())
    assert live.current == sum(live.by_category.values())


def test_a_gradient_counts_as_one_although_the_peak_came_before_it_was_owned():
    weight = nn.Parameter(torch.ones(64, 64))
    model = nn.ParameterList([weight])
    x = torch.ones(1, 64)
    with LiveBytes(model) as live:
        (x @ weight).sum().backward()  # the peak is the product that makes the gradient
    assert live.peak_by_category[GRADIENTS] == sizes(weight)


def test_moments_count_as_such_in_the_peak_of_the_step_that_makes_them():
    model = nn.Linear(64, 64, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    model.weight.grad = torch.ones_like(model.weight)
    with LiveBytes(model, optimizer) as live:
        optimizer.step()
    assert live.peak_by_category[OPTIMIZER] == 2 * sizes(model.weight) + 4


def test_what_layers_keep_for_a_step_has_a_category():
    training = Training(GaLore(rank=2, refresh_every=1)).run(0, 2)  # every step collects a gradient
    with LiveBytes(training.model, training.optimizer) as live:
        training.backward(2)
        dense = sum(m.out_features * m.in_features for m in training.layers)
        assert live.by_category[CACHED] >= 4 * dense
        training.optimizer.step()


def test_the_matrix_that_a_spectral_layer_builds_is_kept_until_the_step():
    training = Training(SST(rank=2)).run(0, 2)
    x = torch.randn(400, 3, 6)  # many tokens: the dense route
    with LiveBytes(training.model, training.optimizer) as live:
        loss = F.mse_loss(training.model(x), torch.zeros(400, 3, 5))
        assert live.by_category[CACHED] > 0
        loss.backward()
        training.optimizer.step()
        live.resolve()
        assert live.by_category[CACHED] == 0


def test_the_tracker_changes_no_number():
    plain, watched = Training(SST(rank=2)), Training(SST(rank=2))
    plain.run(0, 4)
    watched.run(0, 2)
    with LiveBytes(watched.model, watched.optimizer):
        watched.step(2)
    watched.step(3)
    assert plain.losses == watched.losses
    x, _ = batch(9)
    assert torch.equal(plain.model(x), watched.model(x))


def test_nothing_of_the_tracker_stays_behind():
    training = Training(SST(rank=2))
    hooks = [len(layer._forward_hooks) for layer in training.layers]
    with LiveBytes(training.model, training.optimizer):
        training.step(0)
    assert [len(layer._forward_hooks) for layer in training.layers] == hooks
    assert not any(p._post_accumulate_grad_hooks for p in training.model.parameters())
