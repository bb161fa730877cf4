"""The core inside ordinary training code: accumulation, scalers, several optimizers, autocast."""

from __future__ import annotations

import copy
import itertools
import pickle
import warnings

import pytest
import torch
from cases import PERIOD, RANK, every_default, every_default_matrix, every_method
from torch.nn import functional as F
from toys import Training, batch, make_net, same

import spectrain
from spectrain import SST, FullRank, GaLore, LoRA, ReLoRA
from spectrain.surgery import parametrized

# --- one step is one step -----------------------------------------------------------------------


@every_method
def test_accumulation_equals_one_large_batch_on_event_steps_too(method):
    if getattr(method, "dropout", 0):
        pytest.skip("dropout draws other masks for other batch sizes")
    large, accumulated = (Training(method, dtype=torch.float64) for _ in range(2))
    for step in range(2 * PERIOD + 1):
        large.step(step, micro_batches=1)
        accumulated.step(step, micro_batches=4)
    for (name, a), b in zip(
        large.model.state_dict().items(), accumulated.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8, msg=name)


@every_default
def test_forward_passes_between_backward_and_step_change_nothing(method):
    plain, watched = Training(method), Training(method)
    for step in range(2 * PERIOD + 1):
        plain.step(step)
        watched.backward(step)
        watched.model(batch(50)[0])
        with torch.no_grad():
            watched.model(batch(51)[0])
        watched.optimizer.step()
        watched.scheduler.step()
        watched.optimizer.zero_grad()
    assert same(plain.model.state_dict(), watched.model.state_dict())


@every_default
@pytest.mark.parametrize("skipped_at", [0, 1, PERIOD - 1, PERIOD])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "loop"])
def test_an_overflow_step_under_a_grad_scaler_never_happened(method, skipped_at, fused):
    def train(with_overflow):
        training = Training(method, optimizer=lambda g: torch.optim.AdamW(g, fused=fused))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        for step in range(2 * PERIOD + 1):
            if with_overflow and step == skipped_at:
                before = copy.deepcopy(
                    (training.model.state_dict(), training.optimizer.state_dict())
                )
                x, y = batch(77)
                scaler.scale(F.mse_loss(training.model(x), y) * float("inf")).backward()
                scaler.step(training.optimizer)
                scaler.update()
                training.optimizer.zero_grad()
                assert same(training.model.state_dict(), before[0])
                state = training.optimizer.state_dict()
                if fused and step == 0:  # torch has made the state, all zero, by now
                    state = state | {"state": {}}
                    made = training.optimizer.state.values()
                    assert not any(value.any() for s in made for value in s.values())
                assert same(state, before[1])
            x, y = batch(step)
            scaler.scale(F.mse_loss(training.model(x), y)).backward()
            scaler.step(training.optimizer)
            scaler.update()
            training.optimizer.zero_grad()
        return training.model.state_dict()

    plain, interrupted = train(False), train(True)
    assert int(interrupted["wide.clock"]) == 2 * PERIOD + 1
    for name, value in plain.items():
        torch.testing.assert_close(interrupted[name], value, rtol=1e-5, atol=1e-6, msg=name)


@every_default_matrix
def test_two_optimizers_tick_once(method):
    """Muon takes matrices only: a second optimizer steps the vectors."""
    net = spectrain.apply(make_net(), method, report=None)
    groups = spectrain.param_groups(net, 0.01)

    def part(ndim):
        chosen = [{**g, "params": [p for p in g["params"] if p.ndim == ndim]} for g in groups]
        return [g for g in chosen if g["params"]]

    optimizers = [torch.optim.Muon(part(2)), torch.optim.AdamW(part(1))]
    spectrain.attach(net, optimizers)
    rates = [[g["lr"] for g in o.param_groups] for o in optimizers]
    losses = []
    for step in range(3 * PERIOD):
        x, y = batch(step % 2)
        loss = F.mse_loss(net(x), y)
        losses.append(loss.item())
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        assert {int(layer.clock) for _, layer in parametrized(net)} == {step + 1}
        assert [[g["lr"] for g in o.param_groups] for o in optimizers] == rates
    assert sum(losses[-4:]) < sum(losses[:4])
    spectrain.merge(net)


def test_events_clear_the_moments_in_every_optimizer():
    net = spectrain.apply(make_net(), SST(RANK, resample_every=2), report=None)
    *ordinary, factors = spectrain.param_groups(net, 0.01)
    vectors = [p for p in factors["params"] if p.ndim == 1]
    matrices = [p for p in factors["params"] if p.ndim == 2]
    adam = torch.optim.AdamW([*ordinary, {**factors, "params": vectors}])
    muon = torch.optim.Muon([{**factors, "params": matrices}])
    spectrain.attach(net, [adam, muon])
    for step in range(2):
        F.mse_loss(net(batch(step)[0]), batch(step)[1]).backward()
        adam.step()
        muon.step()
    assert all(muon.state[p]["momentum_buffer"].abs().max() == 0 for p in matrices)
    assert all(adam.state[p]["exp_avg"].abs().max() == 0 for p in vectors)
    assert all(adam.state[p]["step"] == 2 for g in ordinary for p in g["params"])


@pytest.mark.parametrize("method", [SST(RANK, resample_every=4, warmup=4), ReLoRA(RANK)])
def test_rates_are_whole_again_after_a_step_that_raised(method):
    training, applied = Training(method), []
    fail = [True]

    def between(optimizer, args, kwargs):
        applied.append([g["lr"] for g in optimizer.param_groups])
        if fail:
            fail.pop()
            raise RuntimeError("out of memory")

    training.optimizer.register_step_pre_hook(between)
    training.backward(0)
    with pytest.raises(RuntimeError, match="out of memory"):
        training.optimizer.step()
    training.step(0)
    assert applied[0] == applied[1]  # scaled once, not twice
    assert training.rates[-1] == [pytest.approx(0.005)] * len(applied[0])
    assert {int(layer.clock) for layer in training.layers} == {1}
    spectrain.detach(training.model)


@every_default
def test_a_closure_equals_backward_and_step(method):
    plain, closing = Training(method).run(0, 4), Training(method)
    for step in range(4):

        def closure(step=step):
            closing.optimizer.zero_grad()
            closing.backward(step)
            return closing.losses[-1]

        assert closing.optimizer.step(closure) == closing.losses[-1]
        closing.scheduler.step()
    assert closing.losses == plain.losses
    assert same(closing.model.state_dict(), plain.model.state_dict())


@every_default
def test_a_subclass_that_calls_its_parents_step_ticks_once(method):
    class Mine(torch.optim.AdamW):
        def step(self, closure=None):
            return super().step(closure)

    mine, plain = Training(method, optimizer=Mine), Training(method)
    assert same(mine.run(0, 5).model.state_dict(), plain.run(0, 5).model.state_dict())
    assert mine.rates == plain.rates


def test_accelerates_wrapper_is_looked_through():
    class AcceleratedOptimizer:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    net = spectrain.apply(make_net(), LoRA(RANK), report=None)
    optimizer = torch.optim.AdamW(spectrain.param_groups(net, 0.01))
    spectrain.attach(net, AcceleratedOptimizer(optimizer))
    net(batch(0)[0]).sum().backward()
    optimizer.step()
    assert int(net.wide.clock) == 1


# --- optimizers whose moments are edited ---------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda g: torch.optim.SGD(g, momentum=0.9, nesterov=True),
    "plain-sgd": torch.optim.SGD,
    "adam-amsgrad": lambda g: torch.optim.Adam(g, amsgrad=True),
    "rmsprop": lambda g: torch.optim.RMSprop(g, momentum=0.9, centered=True),
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adamax": torch.optim.Adamax,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "fused-adamw": lambda g: torch.optim.AdamW(g, fused=True),
    "foreach-adamw": lambda g: torch.optim.AdamW(g, foreach=True),
    "capturable-rate": lambda g: torch.optim.AdamW(g, lr=torch.tensor(0.01)),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_cleared_state_is_that_of_a_new_optimizer(kind):
    old, new = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    used = OPTIMIZERS[kind]([{"params": [old], "lr": 0.01}])
    for _ in range(3):
        old.grad = torch.randn(3, 4)
        used.step()
    spectrain.moments.Moments([used]).clear(old)
    with torch.no_grad():
        new.copy_(old)
    unused = OPTIMIZERS[kind]([{"params": [new], "lr": 0.01}])
    for _ in range(3):
        old.grad = torch.randn(3, 4)
        new.grad = old.grad.clone()
        used.step()
        unused.step()
    assert torch.equal(old, new)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@every_default
def test_events_work_with_every_usual_optimizer(method, kind):
    training = Training(method, optimizer=OPTIMIZERS[kind], weight_decay=0.0, lr=1e-3)
    training.run(0, 2 * PERIOD + 1)
    assert {int(layer.clock) for layer in training.layers} == {2 * PERIOD + 1}
    assert all(value == value for value in training.losses)


@pytest.mark.parametrize("method", [SST(RANK), ReLoRA(RANK), GaLore(RANK)])
def test_state_that_cannot_be_edited_is_refused_at_the_first_step(method):
    training = Training(method, optimizer=torch.optim.Rprop, weight_decay=0.0, attach=False)
    spectrain.attach(training.model, training.optimizer)
    training.backward(0)
    with pytest.raises(spectrain.UsageError, match=r"Rprop keeps .*step_size.* use AdamW"):
        training.optimizer.step()


@pytest.mark.parametrize("method", [LoRA(RANK), FullRank()])
def test_any_state_is_fine_where_nothing_is_edited(method):
    Training(method, optimizer=torch.optim.Adafactor).run(0, 2)


# --- copies and hooks -----------------------------------------------------------------------------


@every_default
def test_a_copy_does_not_carry_the_optimizer(method):
    training = Training(method).run(0, 2)
    reachable = copy.deepcopy(training.model)
    hooks = itertools.chain(*(m._load_state_dict_post_hooks.values() for m in reachable.modules()))
    assert not any(hasattr(hook, "__self__") for hook in hooks)
    assert not any(layer.attached for _, layer in parametrized(reachable))


@every_default
def test_detach_takes_every_hook_off(method):
    training = Training(method).run(0, 2)
    spectrain.detach(training.model)
    assert not training.optimizer._optimizer_step_pre_hooks
    assert not training.optimizer._optimizer_step_post_hooks
    assert not any(layer.attached for layer in training.layers)
    state = copy.deepcopy(training.model.state_dict())
    spectrain.attach(training.model, training.optimizer)  # and on again, where it was
    assert same(training.model.state_dict(), state)
    training.run(2, 4)
    unbroken = Training(method).run(0, 4)
    assert same(training.model.state_dict(), unbroken.model.state_dict())


@every_method
def test_an_attached_model_can_be_pickled(method):
    training = Training(method).run(0, 3)
    copied = pickle.loads(pickle.dumps(training.model))  # as a spawned process is sent it
    assert same(copied.state_dict(), training.model.state_dict())
    assert not any(layer.attached for _, layer in parametrized(copied))


def test_a_skipped_step_of_one_of_two_optimizers_begins_a_new_round():
    net = spectrain.apply(make_net(), SST(4, resample_every=3, warmup=0), report=None)
    parts = [list(layer.factors().values()) for layer in (net.wide, net.square)]
    rest = [p for layer in (net.tall, net.conv) for p in layer.factors().values()]
    optimizers = [torch.optim.SGD(parts[0] + rest, 0.01), torch.optim.SGD(parts[1], 0.01)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spectrain.attach(net, optimizers)

    def step(both):
        x, y = batch(0)
        F.mse_loss(net(x), y).backward()
        for optimizer in optimizers if both else optimizers[:1]:
            optimizer.step()
        net.zero_grad()

    step(both=False)
    assert int(net.wide.clock) == 0
    step(both=True)
    assert int(net.wide.clock) == 1
    norms = torch.linalg.vector_norm(net.wide.U_active, dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
