"""What GaLore promises: the basis, the subspace of the update, decay on W, SGD in full rank."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import RANK
from torch import nn
from torch.nn import functional as F
from toys import Training, batch, drift, make_net, one_layer, rows_of, same, steered

import spectrain
from spectrain import GaLore

T = 3


def galore(**settings):
    published = {"projector": "svd", "moments": "keep"}
    return GaLore(**{"rank": RANK, "refresh_every": T} | published | settings)


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        ("std", {"tall": 6, "square": 7, "wide": 6}),
        ("reverse_std", {"tall": 9, "square": 7, "wide": 9}),
        ("left", {"tall": 9, "square": 7, "wide": 6}),
        ("right", {"tall": 6, "square": 7, "wide": 9}),
    ],
)
def test_the_basis_stands_on_the_side_of_the_rule(side, expected):
    for name, shape in {"tall": (9, 6), "square": (7, 7), "wide": (6, 9)}.items():
        layer, _ = one_layer(galore(side=side), shape)
        assert layer.basis.shape == (RANK, expected[name])
    square, _ = one_layer(galore(), (7, 7))
    assert square.side == "right"


@pytest.mark.parametrize("projector", ["svd", "randomized", "subspace"])
def test_the_basis_is_orthonormal_after_every_step(projector):
    training = Training(galore(projector=projector))
    for step in range(8):
        for layer in training.layers:
            torch.testing.assert_close(
                layer.basis @ layer.basis.mT, torch.eye(RANK), atol=1e-5, rtol=0
            )
            assert layer.R.abs().max() == 0
        training.step(step)


@pytest.mark.parametrize("refresh", ["same_step", "next_step"])
@pytest.mark.parametrize("side", ["std", "reverse_std"])
def test_a_refresh_takes_the_best_subspace_of_the_whole_steps_gradient(refresh, side):
    training = Training(galore(refresh=refresh, side=side), dtype=torch.float64)
    dense = make_net(dtype=torch.float64)
    for step in range(T + 1):
        before = [layer.basis.clone() for layer in training.layers]
        names = [n for n, _ in training.model.named_modules() if hasattr(_, "basis")]
        with torch.no_grad():  # a dense twin of the same weights gives the dense gradients
            for name, layer in zip(names, training.layers, strict=True):
                weight = dense.get_submodule(name).weight
                weight.copy_(layer.dense().mT if name == "conv" else layer.dense())
            ordinary = dict(training.model.named_parameters())
            for name, p in dense.named_parameters():
                if name in ordinary and not name.endswith("weight"):
                    p.copy_(ordinary[name])
            dense.norm.load_state_dict(training.model.norm.state_dict())
        dense.zero_grad()
        x, y = batch(step, torch.float64)
        F.mse_loss(dense(x), y).backward()
        training.step(step)
        for name, layer, old in zip(names, training.layers, before, strict=True):
            if step % T:
                assert torch.equal(layer.basis, old)
                continue
            gradient = dense.get_submodule(name).weight.grad
            G = rows_of(layer, gradient.mT if name == "conv" else gradient)
            U, s, Vh = torch.linalg.svd(G, full_matrices=False)
            best = (U[:, :RANK] * s[:RANK]) @ Vh[:RANK]
            torch.testing.assert_close(
                layer.basis.mT @ (layer.basis @ G), best, rtol=1e-8, atol=1e-10
            )


def test_the_dense_gradient_exists_on_refresh_steps_only():
    training = Training(galore())
    for step in range(2 * T + 1):
        due = step % T == 0
        assert all((layer.probe is not None) is due for layer in training.layers)
        training.backward(step)
        if due:
            for layer in training.layers:
                torch.testing.assert_close(layer.R.grad, layer.down(layer.gathered))
        training.optimizer.step()
        training.optimizer.zero_grad()


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (7, 7)])
@pytest.mark.parametrize("refresh", ["same_step", "next_step"])
def test_updates_have_rank_r_and_stay_in_the_span_between_refreshes(shape, refresh):
    def adam(groups):
        return torch.optim.Adam([{**g, "weight_decay": 0.0} for g in groups])

    method = GaLore(2, refresh_every=T, refresh=refresh)
    path, layer = steered(method, shape, adam, drift(shape, 2 * T))
    for before, after in itertools.pairwise(path):
        assert torch.linalg.matrix_rank(after - before, rtol=1e-9) <= 2
    moved = rows_of(layer, path[-1] - path[T])  # the last period: its basis is still the layer's
    outside = moved - layer.basis.mT @ (layer.basis @ moved)
    assert outside.abs().max() < 1e-12 * moved.abs().max()


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (7, 7)])
@pytest.mark.parametrize("refresh", ["same_step", "next_step"])
def test_full_rank_with_sgd_is_dense_sgd_with_its_weight_decay(shape, refresh):
    method = GaLore(min(shape), refresh_every=T, scale=1.0, refresh=refresh)
    projected, _ = steered(method, shape, torch.optim.SGD, drift(shape))
    dense, _ = steered(None, shape, torch.optim.SGD, drift(shape))
    torch.testing.assert_close(projected, dense, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (7, 7)])
def test_full_rank_with_momentum_is_dense_if_moments_are_rotated(shape):
    def momentum(groups):
        return torch.optim.SGD([{**g, "weight_decay": 0.0} for g in groups], momentum=0.9)

    settings = {"projector": "svd", "refresh_every": T, "scale": 1.0, "refresh": "same_step"}
    dense, _ = steered(None, shape, momentum, drift(shape))
    rotated, _ = steered(
        GaLore(min(shape), moments="rotate", **settings), shape, momentum, drift(shape)
    )
    kept, _ = steered(GaLore(min(shape), moments="keep", **settings), shape, momentum, drift(shape))
    torch.testing.assert_close(rotated, dense, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(kept[:T], dense[:T], rtol=1e-11, atol=1e-12)
    assert not torch.allclose(kept[T], dense[T], rtol=1e-3)  # the check can fail


@pytest.mark.parametrize("refresh", ["same_step", "next_step"])
def test_both_sides_behave_identically(refresh):
    method = GaLore(3, refresh_every=T, refresh=refresh)
    tall, right = steered(method, (9, 6), torch.optim.AdamW, drift((9, 6)))
    wide, left = steered(method, (6, 9), torch.optim.AdamW, [C.mT for C in drift((9, 6))])
    assert (right.side, left.side) == ("right", "left")
    torch.testing.assert_close([W.mT for W in wide], tall, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_weight_decay_acts_on_w(weight_decay):
    model = nn.Sequential(nn.Linear(6, 9, bias=False).double())
    W = model[0].weight.detach().clone()
    spectrain.apply(model, galore(), report=None)
    optimizer = torch.optim.AdamW(spectrain.param_groups(model, 0.1, weight_decay=weight_decay))
    spectrain.attach(model, optimizer)
    for _ in range(T + 2):
        (0 * model(torch.randn(2, 6, dtype=torch.float64))).sum().backward()
        optimizer.step()
    expected = W * (1 - 0.1 * weight_decay) ** (T + 2)
    torch.testing.assert_close(model[0].dense().detach(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("moments", ["keep", "rotate", "reset"])
def test_moments_at_a_refresh(moments):
    training = Training(galore(moments=moments), attach=False)
    before = {}

    def snapshot(optimizer, args, kwargs):
        for layer in training.layers:
            state = {k: v.clone() for k, v in optimizer.state[layer.R].items()}
            before[layer] = state, layer.basis.clone()

    training.optimizer.register_step_post_hook(snapshot)
    spectrain.attach(training.model, training.optimizer)
    training.run(0, T + 1)
    for layer in training.layers:
        (old, basis), new = before[layer], training.optimizer.state[layer.R]
        if moments == "reset":
            assert all(value.abs().max() == 0 for value in new.values())
            continue
        assert int(new["step"]) == T  # cleared after step 0, whose basis was random
        if moments == "keep":
            assert torch.equal(new["exp_avg"], old["exp_avg"])
            assert torch.equal(new["exp_avg_sq"], old["exp_avg_sq"])
            continue
        Q = layer.basis @ basis.mT
        # The estimates of mean and mean square are the bias-corrected moments.
        weights = {
            name: 1 - beta**T
            for name, beta in zip(("exp_avg", "exp_avg_sq"), (0.9, 0.999), strict=True)
        }
        mean, square = (rows_of(layer, old[n]) / w for n, w in weights.items())
        moved = {
            "exp_avg": Q @ mean,
            "exp_avg_sq": Q.square() @ (square - mean.square()).clamp(min=0) + (Q @ mean).square(),
        }
        for name, weight in weights.items():
            torch.testing.assert_close(rows_of(layer, new[name]) / weight, moved[name])


def test_clipping_is_refused_with_the_published_order_and_works_with_the_default():
    for refresh in ("same_step", "next_step"):
        training = Training(galore(refresh=refresh))
        training.backward(0)
        nn.utils.clip_grad_norm_(training.model.parameters(), 1e-3)
        if refresh == "same_step":
            with pytest.raises(spectrain.UsageError, match="next_step"):
                training.optimizer.step()
        else:
            training.optimizer.step()


def test_a_basis_waits_where_the_gradient_is_not_finite_or_missing():
    training = Training(galore())
    bases = [layer.basis.clone() for layer in training.layers]
    training.backward(0)
    for layer in training.layers:
        layer.gathered.fill_(float("nan"))
    with pytest.warns(spectrain.errors.SpectrainWarning, match="waits a step"):
        training.optimizer.step()
    training.optimizer.zero_grad()
    assert all(map(torch.equal, bases, [layer.basis for layer in training.layers]))
    training.step(1)
    for layer, basis in zip(training.layers, bases, strict=True):
        assert not torch.equal(layer.basis, basis)
        assert layer.basis.isfinite().all()


def test_every_departure_from_the_paper_is_labelled():
    assert galore(refresh="same_step").variations() == []
    assert len(GaLore(RANK).variations()) == 3
    for settings in (
        {},
        {"projector": "subspace"},
        {"moments": "rotate"},
        {"projector": "randomized"},
    ):
        published = {"refresh": "same_step"} if settings else {}
        assert len(galore(**published, **settings).variations()) == 1


def skipping(training, step):
    """One step in which the square layer goes unused."""
    square = training.model.square
    square.forward = lambda x: torch.zeros_like(x)
    training.step(step)
    del square.forward


@pytest.mark.filterwarnings("ignore:1 trainable parameters had no gradient")
@pytest.mark.parametrize("interrupted", [3, 4, 5])
def test_a_refresh_that_had_to_wait_is_waited_for_after_a_resume(interrupted):
    """The third step's refresh finds no gradient for one layer; it comes a step later there."""
    method = GaLore(RANK, refresh_every=3)

    def run(training, start, stop):
        for step in range(start, stop):
            if step == 3:
                skipping(training, step)
            else:
                training.step(step)
        return training

    unbroken = run(Training(method), 0, 8)
    square, wide = unbroken.model.square, unbroken.model.wide
    assert (int(square.refreshed_at), int(wide.refreshed_at)) == (6, 6)
    first = run(Training(method), 0, interrupted)
    second = Training(method, seed=9)
    second.load(first.save())
    run(second, interrupted, 5)
    assert (int(second.model.square.refreshed_at), int(second.model.wide.refreshed_at)) == (4, 3)
    run(second, 5, 8)
    assert same(second.model.state_dict(), unbroken.model.state_dict())
    assert same(second.optimizer.state_dict(), unbroken.optimizer.state_dict())


def test_a_probe_follows_its_model_to_another_dtype():
    training = Training(GaLore(RANK, refresh_every=3))
    training.model.double()
    x, y = batch(0, torch.float64)
    F.mse_loss(training.model(x), y).backward()
    assert training.model.wide.gathered.dtype == torch.float64
