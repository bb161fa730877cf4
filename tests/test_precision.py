"""bf16 autocast, bf16 models, activation checkpointing and torch.compile, for every method."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from cases import (
    CASES,
    KINDS,
    PERIOD,
    every_default,
    every_default_matrix,
    every_matrix,
    every_method,
    some_of,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from toys import Training, batch, make_net, same

import spectrain


@every_method
def test_bf16_autocast_stays_close_to_float32(method):
    net = spectrain.apply(make_net(), method, report=None).eval()
    x, y = batch(0, rows=16)
    found = []
    for enabled in (False, True):
        net.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            output = net(x)
            loss = F.mse_loss(output.float(), y)
        loss.backward()
        grads = {n: p.grad.clone() for n, p in net.named_parameters() if p.requires_grad}
        assert all(g.dtype == torch.float32 for g in grads.values())
        found.append((output, loss, grads))
    (_, exact, reference), (output, rough, grads) = found
    assert output.dtype == torch.bfloat16
    assert rough.item() == pytest.approx(exact.item(), rel=0.02)
    for name, gradient in grads.items():
        whole = name, name.replace("s_frozen", "s_active")  # parts of one vector share its scale
        scale = max(reference[part].abs().max() for part in whole)
        assert (gradient - reference[name]).abs().max() <= 0.05 * scale, name


@every_matrix
def test_a_bf16_model_trains_and_merges(method):
    training = Training(method, dtype=torch.bfloat16).run(0, PERIOD + 2)
    x, y = batch(0, torch.bfloat16)
    assert training.model(x).dtype == torch.bfloat16
    assert all(p.isfinite().all() for p in training.model.parameters())
    before = training.model.eval()(x)
    merged = spectrain.merge(training.model)
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(merged(x), before, rtol=0.05, atol=0.05)
    single = Training(method).run(0, PERIOD + 2)
    loss = F.mse_loss(merged(x).float(), y.float()).item()
    x, y = batch(0)
    assert loss == pytest.approx(F.mse_loss(single.model.eval()(x), y).item(), rel=0.1)


@every_default
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_gives_the_same_training(method, reentrant):
    class Checkpointed(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return checkpoint(self.net, x.requires_grad_(), use_reentrant=reentrant)

    plain = Training(method)
    saving = Training(method)
    saving.model = Checkpointed(saving.model)
    plain.run(0, PERIOD + 2)
    saving.run(0, PERIOD + 2)
    assert saving.losses == plain.losses
    assert same(saving.model.net.state_dict(), plain.model.state_dict())


def compiled_and_eager(method, backend, steps, autocast=False):
    """Losses and trained weights of the same run with and without torch.compile."""
    torch._dynamo.reset()
    found = []
    for compiled in (True, False):
        training = Training(method)
        model = training.model
        if compiled:
            training.model = torch.compile(model, backend=backend, fullgraph=True, dynamic=False)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            training.run(0, steps)
        found.append((training.losses, {n: v.clone() for n, v in model.state_dict().items()}))
    return found


@some_of(CASES, KINDS)
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_a_compiled_model_trains_alike_without_graph_breaks(method, autocast):
    if getattr(method, "dropout", 0):
        pytest.skip("a compiled model draws other random numbers for dropout")
    compiled, eager = compiled_and_eager(method, "aot_eager", PERIOD + 2, autocast)
    rough = {"rtol": 0.05, "atol": 0.1} if autocast else {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(torch.tensor(compiled[0]), torch.tensor(eager[0]), **rough)
    if not autocast:
        for name, value in compiled[1].items():
            torch.testing.assert_close(
                value, eager[1][name], **rough, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize(
    "method", [CASES[n] for n in ("sst", "sst-frozen-s", "sst-residual", "lora", "galore")], ids=str
)
def test_inductor_trains_alike(method):
    compiled, eager = compiled_and_eager(method, "inductor", PERIOD + 2)
    torch.testing.assert_close(
        torch.tensor(compiled[0]), torch.tensor(eager[0]), rtol=1e-3, atol=1e-4
    )


@every_method
def test_a_model_converted_after_apply_trains_past_its_events(method):
    training = Training(method, attach=False)
    training.model.to(torch.bfloat16)
    training.dtype = torch.bfloat16
    spectrain.attach(training.model, training.optimizer)
    training.run(0, PERIOD + 2)
    assert all(p.isfinite().all() for p in training.model.parameters())


@every_default_matrix
def test_merging_inside_autocast_rounds_nothing(method):
    training = Training(method).run(0, 4)
    expected = spectrain.merge(copy.deepcopy(training.model)).state_dict()
    with torch.autocast("cpu", torch.bfloat16):
        merged = spectrain.merge(training.model)
    assert same(merged.state_dict(), expected)


@every_default
def test_float64_stays_what_it_is_under_autocast(method):
    net = spectrain.apply(make_net(0, torch.float64), method, report=None)
    x = batch(0, torch.float64)[0]
    plain = net.wide(net.square(x.new_ones(2, 8)))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(net.wide(net.square(x.new_ones(2, 8))), plain)
