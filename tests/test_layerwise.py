"""Layers stepped inside the backward pass: the same run as ever, with one large gradient at a time."""

from __future__ import annotations

import math

import pytest
import torch
from cases import every_method
from torch import nn
from torch.nn import functional as F
from toys import Training, batch, make_net, same

import spectrain
from spectrain import APOLLO, DCT, SST, Fira, FullRank, GaLore, LayerWise, LoRA, UsageError
from spectrain.parametrizations.projected import Projected


def train(method, *, accumulate=1, clip=0.0, layerwise=True, steps=8, **options):
    training = Training(method, attach=False, **options)
    how = LayerWise(accumulate, clip) if layerwise else None
    spectrain.attach(training.model, training.optimizer, layerwise=how)
    for step in range(steps):
        training.step(step, micro_batches=accumulate)
    return training


@every_method
@pytest.mark.parametrize("accumulate", [1, 2])
def test_layerwise_steps_equal_ordinary_ones_bit_for_bit(method, accumulate):
    if method.against_layerwise(accumulate):
        with pytest.raises(UsageError, match=r"with LayerWise: .*one backward pass"):
            train(method, accumulate=accumulate, steps=0)
        return
    ordinary = train(method, accumulate=accumulate, layerwise=False)
    own = train(method, accumulate=accumulate)
    assert own.losses == ordinary.losses
    assert same(own.model.state_dict(), ordinary.model.state_dict())
    assert same(own.optimizer.state_dict(), ordinary.optimizer.state_dict())


def test_large_gradients_never_exist_together():
    """Of the dense gradients of a full-rank layer, of GaLore's refresh, of Fira, APOLLO and DCT."""
    for method in (FullRank(), GaLore(4, refresh_every=3), Fira(4), APOLLO(4), DCT(4)):
        training = Training(method, attach=False)
        spectrain.attach(training.model, training.optimizer, layerwise=LayerWise())
        seen: list[int] = []
        probes = [m.probe for m in training.layers if isinstance(m, Projected)]

        def count(p, layers=training.layers, seen=seen, probes=probes):
            factors = [q for layer in layers for q in layer.factors().values()]
            dense = [probe.grad for probe in probes]
            seen.append(sum(g is not None for g in (*(q.grad for q in factors), *dense)))

        for layer in training.layers:  # registered later, so called once the layer has been stepped
            for p in layer.factors().values():
                p.register_post_accumulate_grad_hook(count)
        training.step(0, micro_batches=1)
        assert len(seen) == 4
        assert max(seen) <= 2  # of the layer itself: R's or W's gradient, and the dense one
        assert training.layers[0].clock == 1


def test_the_norm_of_all_gradients_stays_within_the_bound():
    bound = 1e-3
    net = make_net()
    spectrain.apply(net, LoRA(4, alpha=4.0), report=None)
    groups = spectrain.param_groups(net, 1.0)
    optimizer = torch.optim.SGD(groups, lr=1.0)
    spectrain.attach(net, optimizer, layerwise=LayerWise(clip=bound))
    factors = {n: p for n, p in net.named_parameters() if n.endswith((".A", ".B"))}
    before = {n: p.detach().clone() for n, p in factors.items()}
    x, y = batch(0)
    (F.mse_loss(net(x), y) * 1e3).backward()
    moved = math.sqrt(
        sum(float((p.detach() - before[n]).square().sum()) for n, p in factors.items())
    )
    assert 0.5 * bound < moved <= bound * (1 + 1e-5)


def test_a_wrong_number_of_backward_passes_is_refused():
    training = Training(SST(4), attach=False)
    spectrain.attach(training.model, training.optimizer, layerwise=LayerWise(accumulate=2))
    with pytest.raises(UsageError, match=r"had 1 backward passes .*waits for 2"):
        training.step(0, micro_batches=1)
    training = Training(SST(4), attach=False)
    spectrain.attach(training.model, training.optimizer, layerwise=LayerWise())
    with pytest.raises(UsageError, match=r"had more than 1 backward passes"):
        training.step(0, micro_batches=2)


@pytest.mark.parametrize("how", [{"fused": True}, {"foreach": True}], ids=["fused", "foreach"])
def test_a_gradient_scaler_is_refused(how):
    training = Training(SST(4), attach=False, optimizer=lambda g: torch.optim.AdamW(g, **how))
    spectrain.attach(training.model, training.optimizer, layerwise=LayerWise())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    x, y = batch(0)
    scaler.scale(F.mse_loss(training.model(x), y)).backward()
    with pytest.raises(UsageError, match="cannot be used with a gradient scaler"):
        scaler.step(training.optimizer)


def test_what_cannot_be_stepped_layer_by_layer_is_refused():
    net = make_net()
    spectrain.apply(net, SST(4, warmup=0), report=None)
    matrices = [p for p in net.parameters() if p.ndim > 1 and p.requires_grad]
    vectors = [p for p in net.parameters() if p.ndim <= 1 and p.requires_grad]
    optimizers = torch.optim.SGD(matrices), torch.optim.SGD(vectors)
    with pytest.raises(UsageError, match="are in several optimizers"):
        spectrain.attach(net, optimizers, layerwise=LayerWise())
    with pytest.raises(UsageError, match="accumulate is 0"):
        LayerWise(accumulate=0)


def test_detach_takes_the_hooks_away():
    training = train(LoRA(4), steps=1)
    spectrain.detach(training.model)
    before = {n: p.detach().clone() for n, p in training.model.named_parameters()}
    training.backward(1, 1)
    assert all(torch.equal(p, before[n]) for n, p in training.model.named_parameters())
    assert training.layers[0].B.grad is not None


def test_a_refused_attach_leaves_nothing_behind():
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    spectrain.apply(net, LoRA(2), targets=("0",), report=None)
    spectrain.apply(net, GaLore(2), targets=("1",), report=None)
    optimizer = torch.optim.AdamW(spectrain.param_groups(net, 0.01))
    with pytest.raises(UsageError, match="GaLore with LayerWise"):
        spectrain.attach(net, optimizer, layerwise=LayerWise(accumulate=2))
    spectrain.attach(net, optimizer)
    net(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    assert int(net[0].clock) == 1


def test_after_a_refused_step_a_right_one_is_taken():
    training = Training(SST(4), attach=False)
    spectrain.attach(training.model, training.optimizer, layerwise=LayerWise(accumulate=2))
    with pytest.raises(UsageError, match="waits for 2"):
        training.step(0, micro_batches=1)
    training.optimizer.zero_grad()
    training.step(0, micro_batches=2)
    assert int(training.model.wide.clock) == 1


def test_names_that_are_ignored_already_stay_ignored():
    net = make_net()
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
        net, ["norm.bias"]
    )
    spectrain.apply(net, LoRA(4), report=None)
    optimizer = torch.optim.AdamW(spectrain.param_groups(net, 0.01))
    spectrain.attach(net, optimizer, layerwise=LayerWise())
    assert set(net._ddp_params_and_buffers_to_ignore) > {"norm.bias", "wide.A"}
    spectrain.detach(net)
    assert net._ddp_params_and_buffers_to_ignore == ["norm.bias"]
