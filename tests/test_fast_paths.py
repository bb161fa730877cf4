"""The cheap ways are taken where they are meant to be, keep nothing too long, and change no result."""

from __future__ import annotations

import importlib

import pytest
import torch
from cases import RANK
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from toys import Training, batch, make_net, one_layer

import spectrain
from spectrain import SST, GaLore, LoRA
from spectrain.parametrizations import spectral
from spectrain.parametrizations.base import of_equal_shape


@pytest.fixture
def builds(monkeypatch):
    """How often W was built for the dense route, by shape."""
    counts = {}
    original = spectral.built

    def counted(parts, dtype):
        W = original(parts, dtype)
        counts[tuple(W.shape)] = counts.get(tuple(W.shape), 0) + 1
        return W

    monkeypatch.setattr(spectral, "built", counted)
    monkeypatch.setattr(spectral, "dense_route_is_cheaper", lambda *a: True)
    return counts


def test_w_is_built_once_a_step_and_shared_by_its_micro_batches(builds):
    training = Training(SST(RANK, resample_every=3))
    training.backward(0, micro_batches=4)
    assert set(builds.values()) == {1}
    assert all(layer.kept is not None for layer in training.layers)
    training.optimizer.step()
    assert all(layer.kept is None for layer in training.layers)
    training.backward(1, micro_batches=2)
    assert set(builds.values()) == {2}


def test_w_is_shared_by_the_forward_pass_and_a_checkpoints_second_one(builds):
    training = Training(SST(RANK))
    x, y = batch(0)
    out = checkpoint(training.model, x.requires_grad_(), use_reentrant=False)
    F.mse_loss(out, y).backward()
    assert set(builds.values()) == {1}


def test_w_is_not_kept_where_its_factors_may_change_unseen(builds):
    """An average of weights put into .data and taken out again leaves no trace to go by."""
    training = Training(SST(RANK))
    layer = training.model.square
    x = torch.randn(50, 8)
    training.model.eval()
    with torch.no_grad():
        before = layer(x)
        layer.s_active.data.mul_(2)
        assert not torch.equal(layer(x), before)
        layer.s_active.data.div_(2)
        torch.testing.assert_close(layer(x), before)
    assert layer.kept is None
    training.model.train()
    layer(x).sum().backward()
    with torch.no_grad():
        layer.s_active.mul_(2)  # an ordinary change in mid-step is seen
    torch.testing.assert_close(layer(x), F.linear(x, layer.dense(), layer.bias))


def test_a_layer_that_is_not_attached_keeps_nothing(builds):
    net = spectrain.apply(make_net(), SST(RANK), report=None)
    net(batch(0)[0]).sum().backward()
    assert all(m.kept is None for m in net.modules() if isinstance(m, spectral.Spectral))


def test_frozen_singular_values_move_every_jth_step_alone():
    training = Training(SST(RANK, resample_every=100, frozen_s_every=3, warmup=0), weight_decay=0.0)
    for step in range(7):
        before = [layer.s_frozen.clone() for layer in training.layers]
        active = [layer.s_active.clone() for layer in training.layers]
        training.optimizer.zero_grad(set_to_none=False)
        training.step(step)
        for layer, old, moving in zip(training.layers, before, active, strict=True):
            assert torch.equal(layer.s_frozen, old) is (step % 3 != 0)
            assert not torch.equal(layer.s_active, moving)
    moments = training.optimizer.state[training.layers[0].s_frozen]
    assert int(moments["step"]) == 3  # steps 0, 3 and 6


@pytest.mark.parametrize("gradient", ["enhanced", "default"])
def test_a_resting_step_has_the_gradients_of_the_published_one(gradient):
    found = []
    for every in (1, 2):
        training = Training(
            SST(RANK, frozen_s_every=every, gradient=gradient), lr=0.0, dtype=torch.float64
        )
        training.step(0)
        training.backward(1)
        found.append({n: p.grad for n, p in training.model.named_parameters()})
    for name, gradient in found[1].items():
        if name.endswith("s_frozen"):
            assert not gradient.any()
            assert found[0][name].abs().max() > 0
        elif gradient is not None:
            torch.testing.assert_close(gradient, found[0][name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tokens", [2, 60])
def test_recomputing_z_changes_no_bit(tokens, monkeypatch):
    monkeypatch.setattr(spectral, "dense_route_is_cheaper", lambda *a: False)
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        layer, _ = one_layer(SST(RANK, recompute=recompute), (9, 6))
        x = torch.randn(tokens, 6, dtype=torch.float64)
        layer(x).square().sum().backward()
        found.append([p.grad for p in layer.factors().values()])
    for kept, recomputed in zip(*found, strict=True):
        assert torch.equal(kept, recomputed)


def saved_bytes(model, x):
    """Bytes saved for the backward pass, without what parameters hold."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), x)}
    found = {}

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = model(x)
    del y
    return sum(found.values())


def test_what_a_layer_keeps_for_the_backward_pass():
    tokens, m, n, k = 12, 96, 24, 24  # 4:1, so the factored route
    x = torch.randn(tokens, n)
    expected = {
        SST(RANK): tokens * k,
        SST(RANK, recompute=True): 0,
        SST(RANK, residual=True): 0,
        LoRA(RANK): 0,
        GaLore(RANK): 0,
    }
    for method, numbers in expected.items():
        layer, _ = one_layer(method, (m, n), dtype=torch.float32)
        layer.attached = True
        assert saved_bytes(layer, x) == 4 * numbers, method
    for method in (LoRA(RANK), GaLore(RANK), SST(RANK, residual=True)):
        layer, _ = one_layer(method, (m, n), dtype=torch.float32)
        layer.attached = True
        assert saved_bytes(layer, torch.randn(1000, n)) == 0  # what is built is built again
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert saved_bytes(layer, x) == 2 * tokens * n  # x in bf16, and no copy of W₀


@pytest.mark.parametrize("tokens", [7, 90])
@pytest.mark.parametrize("rank", [1, 6])
def test_loras_ways_to_its_gradients_agree_with_autograd(tokens, rank):
    """With the sum built or not, through the dense gradient or not."""
    layer, _ = one_layer(LoRA(rank, alpha=2.0), (8, 8))
    with torch.no_grad():
        layer.B.normal_()
    x = torch.randn(tokens, 8, dtype=torch.float64, requires_grad=True)
    leaves = x, layer.A, layer.B, layer.bias
    y = layer(x)
    cotangent = torch.randn_like(y)
    own = torch.autograd.grad(y, leaves, cotangent)
    exact = torch.autograd.grad(F.linear(x, layer.dense(), layer.bias), leaves, cotangent)
    for a, b in zip(own, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", [SST(2), SST(2, residual=True), LoRA(2), GaLore(2)], ids=str)
def test_a_second_derivative_is_refused_not_wrong(method):
    layer, _ = one_layer(method, (7, 7))
    x = torch.randn(40, 7, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_a_step_inside_autocast_is_not_rounded():
    """Folds and decompositions run in full precision wherever optimizer.step() is called."""
    for method in (GaLore(RANK, refresh_every=2), SST(RANK, residual=True, resample_every=2)):
        found = []
        for inside in (False, True):
            training = Training(method)
            for step in range(4):
                training.backward(step)
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
                    training.optimizer.step()
                training.optimizer.zero_grad()
            found.append(training.losses)
        assert found[0] == found[1]


# --- events -------------------------------------------------------------------------------------


def test_staggered_re_svds_come_once_a_round_each_and_never_all_at_once(monkeypatch):
    done = []
    module = importlib.import_module(SST.__module__)
    note = lambda layers: done.append([m.index for m in layers])  # noqa: E731
    monkeypatch.setattr(module, "redecompose", note)
    training = Training(SST(RANK, resample_every=2, iterations_per_round=2, stagger=True))
    training.run(0, 12)
    assert [m.index for m in training.layers] == [0, 1, 2, 3]
    assert done == [[1, 3], [0, 2]] * 3


def test_staggered_refreshes_come_once_a_period_each():
    training = Training(GaLore(RANK, refresh_every=4, stagger=True))
    seen = []
    for step in range(9):
        seen.append([m.index for m in training.layers if m.probe is not None])
        training.step(step)
    assert seen == [[0, 1, 2, 3], [1], [2], [3], [0], [1], [2], [3], [0]]


def test_equal_shapes_are_batched_off_the_cpu_within_a_bound(monkeypatch):
    layers = []
    for shape in ((8, 8), (8, 8), (6, 8), (8, 8)):
        with torch.device("meta"):
            layers.append(one_layer(SST(2), shape, dtype=torch.float32)[0].to("meta"))
    square = 4 * 8 * 8
    sizes = [[len(g) for g in of_equal_shape(layers, most)] for most in (10**6, 2 * square, 1)]
    assert sizes == [[3, 1], [2, 1, 1], [1, 1, 1, 1]]
    assert [len(g) for g in of_equal_shape(Training(SST(2)).layers)] == [1, 1, 1, 1]


def test_a_batched_re_svd_equals_one_by_one(monkeypatch):
    found = []
    for group in (lambda layers: [[m] for m in layers], lambda layers: [list(layers)]):
        monkeypatch.setattr(spectral, "of_equal_shape", group)
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(8, 6) for _ in range(3)))
        spectrain.apply(model, SST(2), report=None)
        with torch.no_grad():
            for layer in model:
                layer.U_active.add_(0.1 * torch.randn_like(layer.U_active))
        spectral.redecompose(list(model))
        found.append(model.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name])


def test_no_dense_gradient_is_formed_outside_a_refresh(monkeypatch):
    """Every product of a backward pass is seen: none has the shape of W."""
    training = Training(GaLore(2, refresh_every=3))
    training.run(0, 1)

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and func._schema.name in ("aten::mm", "aten::addmm"):
                shapes.append(tuple(out.shape))
            return out

    dense = {(m.out_features, m.in_features) for m in training.layers}
    for step in range(1, 4):
        shapes = []
        x, y = batch(step)
        loss = F.mse_loss(training.model(x), y)
        with Watch():
            loss.backward()
        assert bool(dense & set(shapes)) is (step == 3)
        training.optimizer.step()
        training.optimizer.zero_grad()


def test_w_follows_factors_that_are_exchanged_for_a_call(builds):
    """torch.func.functional_call frees what it was given: another tensor may lie there next time."""
    layer = Training(SST(RANK)).model.square
    x, s = torch.randn(50, 8), layer.s_active.detach().clone()
    ys = [
        torch.func.functional_call(layer, {"s_active": s * f}, (x,)).detach() for f in range(1, 30)
    ]
    torch.testing.assert_close(ys[-1] - ys[0], 28 * (ys[1] - ys[0]), rtol=1e-3, atol=1e-4)
    assert len({float(y.norm()) for y in ys}) == 29


@pytest.mark.parametrize("tokens", [2, 60])
@pytest.mark.parametrize(
    "method", [SST(2), SST(2, residual=True), LoRA(2), GaLore(2)], ids=["sst", "res", "lora", "ga"]
)
def test_a_backward_pass_inside_autocast_is_not_rounded(method, tokens):
    found = []
    for inside in (False, True):
        torch.manual_seed(0)
        layer, _ = one_layer(method, (24, 6), dtype=torch.float32)
        x = torch.randn(tokens, 6, requires_grad=True)
        loss = layer(x).square().sum()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            loss.backward()
        found.append([x.grad, *(p.grad for p in layer.factors().values())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_lora_keeps_no_copy_of_w_where_its_input_is_in_half_precision_already():
    layer, _ = one_layer(LoRA(RANK), (96, 24), dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = torch.randn(12, 24, dtype=torch.bfloat16, requires_grad=True)
        assert saved_bytes(layer, x) == 0


def test_frozen_singular_values_have_gradients_again_once_detached():
    training = Training(SST(RANK, frozen_s_every=3)).run(0, 1)
    spectrain.detach(training.model)
    training.backward(1)
    assert all(layer.s_frozen.grad is not None for layer in training.layers)


def test_one_graph_serves_all_numbers_of_tokens():
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(1)
        return graph.forward

    layer, _ = one_layer(SST(RANK), (96, 24), dtype=torch.float32)
    compiled = torch.compile(layer, backend=count, dynamic=True)
    for tokens in (5, 6, 7, 9, 11):
        compiled(torch.randn(tokens, 24, requires_grad=True)).sum().backward()
    assert len(graphs) == 1
