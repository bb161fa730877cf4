"""Every registered method meets every invariant: function, gradients, resume, counts.

What only one method promises is in test_sst.py, test_adapters.py and test_galore.py; impossible
settings are in test_refusals.py.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import (
    CASES,
    COUNTS,
    RANK,
    declared,
    every_default_matrix,
    every_matrix,
    every_method,
    periods,
    precision,
)
from toys import SHAPES, Net, Training, batch, disturb, make_net, one_layer, same

import spectrain
from spectrain.parametrizations.spectral_products import (
    ActiveRoute,
    DenseRoute,
    FactoredRoute,
    dense_route_is_cheaper,
)

every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
every_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
every_kind = pytest.mark.parametrize(
    ("kind", "bias"),
    [("Linear", True), ("Linear", False), ("Conv1D", True)],
    ids=["bias", "no-bias", "Conv1D"],
)


def close(actual, expected, method, rtol=1e-5):
    rtol = max(rtol, 4 * precision(method))
    torch.testing.assert_close(
        actual, expected, rtol=rtol, atol=rtol * float(expected.detach().abs().max())
    )


# --- 1: apply, merge, copies --------------------------------------------------------------------


@every_matrix
@every_shape
@every_kind
def test_apply_keeps_the_function(method, shape, kind, bias):
    layer, plain = one_layer(method, shape, bias=bias, kind=kind, dtype=torch.float32)
    layer.eval()
    x = torch.randn(2, 5, shape[1])
    close(layer(x), torch.nn.functional.linear(x, layer.dense(), layer.bias), method)
    if method.keeps_function:
        close(layer(x), plain(x), method)
        close(layer.dense(), plain.weight.detach(), method)
    assert (layer(x).dtype, layer.in_features, layer.out_features) == (x.dtype, *reversed(shape))


@every_matrix
def test_merge_gives_the_module_back_with_the_outputs_of_just_before(method):
    plain, training = make_net(), Training(method)
    kinds = [(name, type(module)) for name, module in plain.named_modules()]
    untouched = {n: p for n, p in training.model.named_parameters() if n.startswith("norm")}
    training.run(0, 7)
    training.model.eval()
    before = training.model(batch(0)[0])
    weights = [p for layer in training.layers for n, p in layer.named_parameters() if n != "bias"]
    storages = {p.untyped_storage().data_ptr() for p in weights}
    merged = spectrain.merge(training.model)
    assert not storages & {p.untyped_storage().data_ptr() for p in merged.parameters()}
    close(merged(batch(0)[0]), before, method, rtol=1e-6)
    assert [(name, type(module)) for name, module in merged.named_modules()] == kinds
    state, reference = merged.state_dict(), plain.state_dict()
    assert list(state) == list(reference)
    assert [(v.shape, v.dtype) for v in state.values()] == [
        (v.shape, v.dtype) for v in reference.values()
    ]
    assert all(p.is_contiguous() and p.is_leaf for p in merged.parameters())
    assert all(p is dict(merged.named_parameters())[n] for n, p in untouched.items())
    with pytest.raises(spectrain.UsageError, match="no exchanged layers"):
        spectrain.merge(merged)
    plain.load_state_dict(state)
    assert torch.equal(plain.eval()(batch(0)[0]), merged(batch(0)[0]))


@every_matrix
def test_merge_brings_back_hooks_flags_and_mode(method):
    net = make_net()
    net.wide.weight.requires_grad_(False)
    net.wide.note = "mine"
    net.square.eval()
    calls = []
    net.wide.register_forward_hook(lambda *_: calls.append("wide"))
    wide = net.wide
    spectrain.apply(net, method, report=None)
    assert not net.square.training
    assert net.tall.training
    spectrain.merge(net)
    assert net.wide is wide
    assert net.wide.note == "mine"
    assert not net.wide.weight.requires_grad
    assert net.tall.weight.requires_grad
    assert not net.square.training
    net(batch(0)[0])
    assert calls == ["wide"]


@pytest.mark.parametrize(
    "method", [m for m in CASES.values() if m.against_merge()], ids=lambda method: method.title
)
def test_what_is_no_matrix_is_not_merged(method):
    net = spectrain.apply(make_net(), method, report=None)
    before = net(batch(0)[0])
    with pytest.raises(spectrain.UsageError, match=r"cannot be merged, since .* keep the run"):
        spectrain.merge(net)
    assert torch.equal(net(batch(0)[0]), before)


@every_default_matrix
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_merge_follows_a_conversion_of_the_model(method, dtype):
    net = spectrain.apply(make_net(), method, report=None).to(dtype)
    x = batch(0, dtype)[0]
    before = net(x)
    merged = spectrain.merge(net)
    assert {p.dtype for p in merged.parameters()} == {dtype}
    torch.testing.assert_close(merged(x), before, rtol=0.05, atol=0.05)


@every_default_matrix
def test_merge_after_loading_by_assignment(method):
    training = Training(method).run(0, 4)
    fresh = spectrain.apply(make_net(seed=3), method, report=None)
    fresh.load_state_dict(copy.deepcopy(training.model.state_dict()), assign=True)
    x = batch(0)[0]
    before = training.model(x)
    torch.testing.assert_close(spectrain.merge(fresh)(x), before, rtol=1e-5, atol=1e-6)


@every_matrix
def test_a_copy_of_an_applied_model_stands_alone(method):
    training = Training(method).run(0, 3)
    copied = copy.deepcopy(training.model)
    before = {n: v.clone() for n, v in copied.state_dict().items()}
    copied.eval(), training.model.eval()
    assert torch.equal(copied(batch(0)[0]), training.model(batch(0)[0]))
    training.model.train()
    training.run(3, 5)
    assert same(copied.state_dict(), before)
    optimizer = torch.optim.AdamW(spectrain.param_groups(copied, 1e-3))
    spectrain.attach(copied, optimizer)  # a copy is not attached by itself
    copied.train()(batch(0)[0]).sum().backward()
    optimizer.step()
    assert all(int(layer.clock) == 5 for layer in training.layers)
    assert int(copied.wide.clock) == 4
    spectrain.merge(copied)


# --- 2: gradients -------------------------------------------------------------------------------


def gradients_both_ways(layer, x):
    """Gradients of factors, bias and x: the layer's own, and autograd's through layer.dense()."""
    layer.eval()
    names, leaves = zip(*layer.factors().items(), strict=True)
    bias = () if layer.bias is None else (layer.bias,)
    x = x.requires_grad_()
    weights = torch.randn(*x.shape[:-1], layer.out_features, dtype=x.dtype)
    own = torch.autograd.grad((layer(x) * weights).sum(), [*leaves, *bias, x])
    y = x @ layer.dense().mT
    y = y if layer.bias is None else y + layer.bias
    exact = torch.autograd.grad((y * weights).sum(), [*leaves, *bias, x])
    keys = [*names, *(["bias"] if bias else []), "x"]
    return dict(zip(keys, own, strict=True)), dict(zip(keys, exact, strict=True))


@every_matrix
@every_shape
@every_bias
@pytest.mark.parametrize("inputs", [(3,), (2, 3), (200,)], ids=["few", "3-D", "many"])
def test_gradients_equal_autograd_on_the_explicit_matrix(method, shape, bias, inputs):
    layer, _ = one_layer(method, shape, bias=bias)
    disturb(layer)
    own, exact = gradients_both_ways(layer, torch.randn(*inputs, shape[1], dtype=torch.float64))
    expected = declared(layer, exact)
    for name, gradient in own.items():
        assert float(gradient.abs().max()) > 0, name
        close(gradient, expected[name], method, rtol=1e-10)


def test_the_spectral_layer_takes_both_routes():
    assert not dense_route_is_cheaper(3, 7, 7, RANK, True)
    assert dense_route_is_cheaper(200, 7, 7, RANK, True)


@every_method
@every_shape
def test_exact_gradients_pass_gradcheck(method, shape):
    layer, _ = one_layer(method, shape)
    disturb(layer)
    layer.eval()
    x = torch.randn(2, shape[1], dtype=torch.float64, requires_grad=True)
    ones = declared(layer, {n: torch.ones_like(p) for n, p in layer.factors().items()})
    factors = {n: p for n, p in layer.factors().items() if (ones[n] == 1).all()} | (
        {} if layer.bias is None else {"bias": layer.bias}
    )  # gradients that are exact by declaration

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(factors, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *factors.values()), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("route", ["factored", "recomputed", "dense"])
@pytest.mark.parametrize("rank", [1, 4, 6])
@every_shape
@every_bias
def test_both_spectral_routes_pass_gradcheck(route, rank, shape, bias):
    layer, _ = one_layer(spectrain.SST(rank, gradient="default"), shape, bias=bias)
    disturb(layer)
    x = torch.randn(3, shape[1], dtype=torch.float64, requires_grad=True)
    active = layer.s_active, layer.U_active, layer.V_active
    parts = *active, layer.s_frozen, layer.U_frozen, layer.V_frozen, layer.bias

    def apply(enhanced, x, *parts):
        if route == "dense":
            return DenseRoute.apply(x, layer.dense().detach(), *parts, enhanced)
        return FactoredRoute.apply(x, *parts, enhanced, route == "recomputed")

    assert torch.autograd.gradcheck(lambda *a: apply(False, *a), (x, *parts))
    torch.testing.assert_close(apply(True, x, *parts), F.linear(x, layer.dense(), layer.bias))


@pytest.mark.parametrize("tokens", [2, 40])
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("rank", [1, 4])
@every_shape
def test_the_active_route_passes_gradcheck(tokens, adds, rank, shape):
    """Few and many tokens, low and high rank: added for the call or not, with and without M."""
    layer, _ = one_layer(spectrain.SST(rank, gradient="default", residual=True), shape)
    disturb(layer)
    x = torch.randn(tokens, shape[1], dtype=torch.float64, requires_grad=True)
    parts = layer.s_active, layer.U_active, layer.V_active, layer.bias
    weight = (layer.base if adds else layer.dense()).detach()
    y = ActiveRoute.apply(x, weight, *parts, None, False, adds)
    torch.testing.assert_close(y, F.linear(x, layer.dense(), layer.bias))
    cotangent = torch.randn_like(y)
    own = torch.autograd.grad(y, (x, *parts), cotangent)
    exact = torch.autograd.grad(F.linear(x, layer.dense(), layer.bias), (x, *parts), cotangent)
    for a, b in zip(own, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


# --- 3: resume ----------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("order", ["load-then-attach", "attach-then-load"])
def test_an_interrupted_run_equals_an_unbroken_one_bit_for_bit(method, order):
    layers = [one_layer(method, shape)[0] for shape in ((10, 6), (8, 10), (8, 8), (5, 8))]
    interruptions = {1} | {
        p + near for p in periods(method, layers) for near in (-1, 0, 1) if p + near > 0
    }
    steps = max(interruptions) + 3
    unbroken = Training(method).run(0, steps)
    first = Training(method)
    for k in range(1, steps):
        first.step(k - 1)
        if k not in interruptions:
            continue
        saved = first.save()
        random = torch.get_rng_state()
        second = Training(method, seed=99, attach=order == "attach-then-load")
        second.load(saved)
        if order == "load-then-attach":
            spectrain.attach(second.model, second.optimizer)
        second.run(k, steps)
        assert second.losses == unbroken.losses[2 * k :], f"interrupted after step {k}"
        assert same(second.model.state_dict(), unbroken.model.state_dict()), k
        assert same(second.optimizer.state_dict(), unbroken.optimizer.state_dict()), k
        torch.set_rng_state(random)


@every_method
def test_loading_twice_into_an_attached_model_starts_from_what_was_loaded_last(method):
    training = Training(method)
    start = training.save()
    once = Training(method)
    once.load(start)
    once.run(0, 5)
    training.run(0, 4)
    training.load(start)
    training.losses.clear()
    training.run(0, 5)
    assert training.losses == once.losses
    assert same(training.model.state_dict(), once.model.state_dict())


# --- 4: counts ----------------------------------------------------------------------------------


@every_method
@every_shape
def test_numbers_equal_the_card(method, shape):
    layer, _ = one_layer(method, shape, dtype=torch.float32)
    assert type(layer) in COUNTS, f"declare the card's counts of {type(layer).__name__} in cases.py"
    trainable, frozen = COUNTS[type(layer)](layer, *shape, RANK)
    weights = {n: p for n, p in layer.named_parameters() if n != "bias"}
    assert sum(p.numel() for p in layer.factors().values()) == trainable
    assert sum(p.numel() for p in weights.values() if not p.requires_grad) == frozen
    assert sum(p.numel() for p in weights.values()) == trainable + frozen


@every_method
def test_optimizer_bytes_equal_the_card(method):
    training = Training(method).run(0, 5)
    trainable = sum(
        COUNTS[type(m)](m, m.out_features, m.in_features, RANK)[0] for m in training.layers
    )
    ordinary = sum(p.numel() for n, p in make_net().named_parameters() if p.ndim == 1)
    state = training.optimizer.state_dict()["state"].values()
    moments = [v for s in state for n, v in s.items() if n != "step"]
    assert sum(v.numel() * v.element_size() for v in moments) == 2 * 4 * (trainable + ordinary)
    names = {n for s in state for n in s}
    assert names == {"step", "exp_avg", "exp_avg_sq"}  # nothing of ours


@every_method
def test_all_state_is_tensors_of_the_model(method):
    training = Training(method).run(0, 4)
    assert all(isinstance(v, torch.Tensor) for v in training.model.state_dict().values())
    fresh = spectrain.apply(Net(), method, report=None)
    fresh.load_state_dict(training.model.state_dict(), strict=True)
    assert same(fresh.state_dict(), training.model.state_dict())
    x = batch(0)[0]
    assert torch.equal(fresh.eval()(x), training.model.eval()(x))
