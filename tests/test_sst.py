"""What Sparse Spectral Training promises, after every step and at every event of a real run."""

from __future__ import annotations

import pytest
import torch
from cases import RANK
from torch import nn
from torch.nn import functional as F
from toys import Training, one_layer

import spectrain
from spectrain import SST
from spectrain.parametrizations.residual import SpectralResidual
from spectrain.parametrizations.spectral import Spectral
from spectrain.sampling import SCHEMES, draw

T3 = 3
EVERY = {"resample_every": T3, "iterations_per_round": 2, "warmup": 2}


def sst(**settings):
    return SST(**{"rank": RANK} | EVERY | settings)


both_forms = pytest.mark.parametrize("residual", [False, True], ids=["spectral", "residual"])


def norms(rows):
    return torch.linalg.vector_norm(rows.double(), dim=1)


@both_forms
@pytest.mark.parametrize("gradient", ["enhanced", "default"])
def test_unit_vectors_and_nonnegative_s_after_every_step(residual, gradient):
    training = Training(sst(residual=residual, gradient=gradient), lr=0.5)
    for step in range(8):
        training.step(step)
        for layer in training.layers:
            assert (norms(layer.U_active) - 1).abs().max() < 1e-6
            assert (norms(layer.V_active) - 1).abs().max() < 1e-6
            assert layer.s.min() >= 0
    assert any(layer.s.min() == 0 for layer in training.layers)  # the clamp was needed


@both_forms
def test_frozen_parts_are_bit_identical_within_an_iteration(residual):
    training = Training(sst(residual=residual))
    names = ("base",) if residual else ("U_frozen", "V_frozen")
    frozen = [[getattr(layer, n).clone() for n in names] for layer in training.layers]
    for step in range(7):
        training.step(step)
        now = [[getattr(layer, n).clone() for n in names] for layer in training.layers]
        unchanged = [all(map(torch.equal, *pair)) for pair in zip(frozen, now, strict=True)]
        assert all(unchanged) is ((step + 1) % T3 != 0)
        frozen = now


@pytest.mark.parametrize("sampling", SCHEMES)
def test_events_leave_the_function_alone(sampling, monkeypatch):
    seen = {"activate": 0, "hold": 0}

    def watch(name):
        original = getattr(Spectral, name)

        def watched(layer, *args):
            before = layer.dense()
            triples = torch.cat((layer.U_active, layer.U_frozen)).clone()
            original(layer, *args)
            torch.testing.assert_close(layer.dense(), before, rtol=1e-12, atol=1e-12)
            after = torch.cat((layer.U_active, layer.U_frozen))
            if name == "activate":  # a swap: the same rows in another order, the chosen ones first
                (chosen, _clock) = args
                assert len(set(chosen.tolist())) == layer.rank == len(chosen)
                wanted = {tuple(triples[i].tolist()) for i in chosen.tolist()}
                assert {tuple(row.tolist()) for row in layer.U_active} == wanted
                assert {tuple(r.tolist()) for r in after} == {tuple(r.tolist()) for r in triples}
            else:
                V = torch.cat((layer.V_active, layer.V_frozen))
                for rows in (after, V):
                    torch.testing.assert_close(
                        rows @ rows.mT, torch.eye(layer.size, dtype=rows.dtype), atol=1e-12, rtol=0
                    )
                assert torch.equal(layer.s, layer.s.sort(descending=True).values)
            seen[name] += 1

        monkeypatch.setattr(Spectral, name, watched)

    watch("activate")
    watch("hold")
    training = Training(sst(sampling=sampling), dtype=torch.float64).run(0, 13)
    assert seen == {"activate": 4 * (1 + 4), "hold": 4 * 2}
    assert len(training.layers) == 4


def test_events_leave_the_function_alone_in_the_residual_form(monkeypatch):
    original, seen = SpectralResidual.renew, []

    def watched(layer, *args):
        before = layer.dense()
        original(layer, *args)
        torch.testing.assert_close(layer.dense(), before, rtol=1e-12, atol=1e-12)
        for rows in (layer.U_active, layer.V_active):
            torch.testing.assert_close(rows @ rows.mT, torch.eye(RANK, dtype=rows.dtype))
        seen.append(layer)

    training = Training(sst(residual=True), dtype=torch.float64)
    monkeypatch.setattr(SpectralResidual, "renew", watched)
    training.run(0, 7)
    assert len(seen) == 2 * 4


def test_a_round_is_k_over_r_iterations_rounded_up():
    layer, _ = one_layer(SST(3, resample_every=5), (7, 9))
    redecompose, resample = layer.method.events()
    assert (redecompose.period(layer), resample.period(layer)) == (15, 5)


@both_forms
def test_moments_of_the_factors_alone_are_cleared_at_a_resample(residual):
    training = Training(sst(residual=residual)).run(0, T3)
    factors = {id(p) for layer in training.layers for p in layer.factors().values()}
    for p, state in training.optimizer.state.items():
        values = [v.abs().max().item() for v in state.values()]
        if id(p) in factors:
            assert values == [0, 0, 0]
        else:
            assert min(values) > 0
            assert state["step"] == T3
    training.run(T3, T3 + 1)
    steps = {id(p): int(s["step"]) for p, s in training.optimizer.state.items()}
    assert {n for i, n in steps.items() if i in factors} == {1}
    assert {n for i, n in steps.items() if i not in factors} == {T3 + 1}


@both_forms
def test_the_step_after_a_resample_equals_one_with_a_new_optimizer(residual):
    old = Training(sst(residual=residual, warmup=0), weight_decay=0.0).run(0, T3)
    new = Training(sst(residual=residual, warmup=0), weight_decay=0.0, attach=False)
    new.model.load_state_dict(old.model.state_dict())
    spectrain.attach(new.model, new.optimizer)
    for training in (old, new):
        for group in training.optimizer.param_groups:
            group["lr"] = 0.01
        training.backward(T3)
        training.optimizer.step()
    for a, b in zip(old.layers, new.layers, strict=True):
        for name, p in a.factors().items():
            assert torch.equal(p, b.factors()[name])


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (7, 7)])
@pytest.mark.parametrize("tokens", [3, 200])
@both_forms
def test_enhanced_gradient_times_s_is_the_default_one(shape, tokens, residual):
    found = []
    for gradient in ("enhanced", "default"):
        torch.manual_seed(0)
        layer, _ = one_layer(sst(gradient=gradient, residual=residual), shape)
        layer(torch.randn(tokens, shape[1], dtype=torch.float64)).square().sum().backward()
        found.append((layer.s, {n: p.grad for n, p in layer.factors().items()}))
    (s, enhanced), (_, default) = found
    for name in ("U_active", "V_active"):
        torch.testing.assert_close(
            enhanced[name] * s[:RANK, None], default[name], rtol=1e-12, atol=0
        )
    assert torch.equal(enhanced["s_active"], default["s_active"])


def test_a_dead_triple_moves_under_the_enhanced_gradient_only():
    for gradient, moves in (("enhanced", True), ("default", False)):
        torch.manual_seed(0)
        layer, _ = one_layer(sst(gradient=gradient), (7, 7))
        with torch.no_grad():
            layer.s_active[0] = 0
        layer(torch.randn(3, 7, dtype=torch.float64)).square().sum().backward()
        assert bool(layer.U_active.grad[0].abs().max() > 0) is moves


@pytest.mark.parametrize("sampling", SCHEMES)
@both_forms
def test_a_zero_matrix_can_be_trained(sampling, residual):
    if residual and sampling == "sequential":
        return
    model = nn.Sequential(nn.Linear(6, 8))
    nn.init.zeros_(model[0].weight)
    spectrain.apply(model, sst(sampling=sampling, residual=residual), report=None)
    optimizer = torch.optim.AdamW(spectrain.param_groups(model, 0.05))
    spectrain.attach(model, optimizer)
    x, y = torch.randn(32, 6), torch.randn(32, 8)
    losses = []
    for _ in range(20):
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert model[0].dense().abs().max() > 0


# --- sampling -----------------------------------------------------------------------------------


def test_sequential_takes_all_triples_before_any_twice():
    training = Training(sst(rank=3, sampling="sequential", iterations_per_round=100))
    layer = training.model.square  # k = 8: two full draws, then the last two and the oldest one
    counts = [int((layer.sampled_at >= 0).sum())]
    for step in range(0, 3 * T3, T3):
        training.run(step, step + T3)
        counts.append(int((layer.sampled_at >= 0).sum()))
    assert counts == [3, 6, 8, 8]
    assert sorted(layer.sampled_at.tolist()) == [3] * 2 + [6] * 3 + [9] * 3


def test_a_re_svd_forgets_which_triples_had_their_turn():
    training = Training(sst(sampling="sequential")).run(0, 2 * T3)
    for layer in training.layers:
        assert layer.sampled_at.tolist() == [2 * T3] * RANK + [-1] * (layer.size - RANK)
        assert torch.equal(layer.s, layer.s.sort(descending=True).values)  # the first r again


def test_top_is_the_top():
    training = Training(sst(sampling="top", iterations_per_round=100)).run(0, 2 * T3)
    for layer in training.layers:
        assert layer.s[:RANK].min() >= layer.s[RANK:].max()


@pytest.mark.parametrize(
    ("scheme", "share"), [("mixture", 0.5), ("magnitude", 1.0), ("uniform", 0.0)]
)
def test_draws_follow_the_equations(scheme, share):
    s = torch.tensor([5.0, 2.0, 1.0, 1.0, 0.5, 0.5, 0.0, 0.0])
    expected = share * s / s.sum() + (1 - share) / len(s)  # equation 16 with share ½, 5 with 1
    generator = torch.Generator().manual_seed(3)
    trials = 4000
    counts = torch.zeros(8)
    for _ in range(trials):
        counts[draw(scheme, s, 1, generator)] += 1
    sigma = (expected * (1 - expected) / trials).sqrt()
    assert ((counts / trials - expected).abs() <= 4.5 * sigma + 1e-9).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("count", [1, 5, 8])
def test_draws_are_distinct_even_with_zero_singular_values(scheme, count):
    for s in (torch.zeros(8), torch.tensor([1.0] + 7 * [0.0])):
        waited = torch.arange(8)
        drawn = draw(scheme, s, count, torch.Generator().manual_seed(0), waited)
        assert len(set(drawn.tolist())) == count == len(drawn)


def test_layers_draw_independently_and_anew_at_every_iteration():
    model = nn.Sequential(*[nn.Linear(32, 32, bias=False) for _ in range(2)])
    model[1].load_state_dict(model[0].state_dict())
    spectrain.apply(model, SST(4, resample_every=1, sampling="uniform"), report=None)
    optimizer = torch.optim.SGD(spectrain.param_groups(model, 0.0))
    spectrain.attach(model, optimizer)
    drawn = []
    for _ in range(5):
        model(torch.randn(2, 32)).sum().backward()
        drawn += [frozenset(round(v, 5) for v in layer.s[:4].tolist()) for layer in model]
        optimizer.step()
    assert len(set(drawn)) == len(drawn)


# --- warm-up ------------------------------------------------------------------------------------


def test_warm_up_ramps_the_factors_alone_and_no_scheduler_sees_it():
    training = Training(sst(resample_every=5, warmup=4), weight_decay=0.0)
    factors = {id(p) for layer in training.layers for p in layer.factors().values()}
    applied = []

    def note(optimizer, args, kwargs):  # registered after attach: sees the rate that is applied
        applied.append([group["lr"] for group in optimizer.param_groups])

    training.optimizer.register_step_pre_hook(note)
    training.run(0, 12)
    groups = training.optimizer.param_groups
    own = [all(id(p) in factors for p in group["params"]) for group in groups]
    assert own.count(True) >= 1
    for t in range(12):
        scheduled = 0.01 / (1 + t)
        ramp = min(1.0, (t % 5 + 1) / 4)
        expected = [scheduled * (ramp if mine else 1.0) for mine in own]
        assert applied[t] == pytest.approx(expected, rel=1e-12)
        assert training.rates[t] == [pytest.approx(0.01 / (2 + t), rel=1e-12)] * len(groups)


def test_bf16_storage_of_frozen_vectors_stays_within_its_rounding():
    exact, rough = (Training(sst(frozen_dtype=d)).run(0, 6) for d in (None, "bfloat16"))
    assert {layer.U_frozen.dtype for layer in rough.layers} == {torch.bfloat16}
    assert {layer.U_active.dtype for layer in rough.layers} == {torch.float32}
    assert rough.losses == pytest.approx(exact.losses, rel=0.02)
    assert SST(RANK, frozen_dtype=torch.bfloat16) == SST(RANK, frozen_dtype="bfloat16")


def test_learning_reaches_directions_outside_the_first_active_set():
    training = Training(sst(rank=2), lr=0.05)
    start = training.model.square.dense().detach().clone()
    training.run(0, 12)
    moved = torch.linalg.matrix_rank(training.model.square.dense() - start, atol=1e-4)
    assert int(moved) > 4
