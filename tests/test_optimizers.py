"""Optimizers other than AdamW: events edit what they keep, runs resume exactly, the rest is refused."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from cases import PERIOD, RANK, VARIANTS, every_default, every_method, small
from torch.nn import functional as F
from torch.optim import SGD, Adafactor, AdamW, Muon
from toys import batch, make_net, same

import spectrain
from spectrain import GaLore, ReLoRA
from spectrain.method import registered
from spectrain.moments import Moments
from spectrain.surgery import parametrized

bitsandbytes = pytest.importorskip("bitsandbytes")


def adamw_8bit(groups):
    """Every tensor in 8 bits, however small it is."""
    return bitsandbytes.optim.AdamW8bit(groups, min_8bit_size=0)


def muon_beside_adamw(groups):
    """Muon steps the matrices, AdamW the vectors."""
    matrices = [g | {"params": [p for p in g["params"] if p.ndim == 2]} for g in groups]
    vectors = [g | {"params": [p for p in g["params"] if p.ndim < 2]} for g in groups]
    return Muon(matrices), AdamW(vectors)


OPTIMIZERS = {
    "sgd": lambda groups: (SGD(groups, momentum=0.9),),
    "adafactor": lambda groups: (Adafactor(groups),),
    "muon-and-adamw": muon_beside_adamw,
    "adamw-8bit": lambda groups: (adamw_8bit(groups),),
}
every_optimizer = pytest.mark.parametrize("optimizers", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


class Run:
    """A loop with one optimizer or several, that saves and loads without unpickling."""

    def __init__(self, method, optimizers, seed=0):
        self.model = spectrain.apply(make_net(seed), method, report=None)
        self.optimizers = optimizers(spectrain.param_groups(self.model, lr=0.01))
        spectrain.attach(self.model, self.optimizers)
        self.losses = []

    def train(self, start, stop):
        for step in range(start, stop):
            x, y = batch(step % 2)
            loss = F.mse_loss(self.model(x), y)
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            self.losses.append(loss.item())
        return self

    def state(self):
        optimizers = (optimizer.state_dict() for optimizer in self.optimizers)
        return [torch.get_rng_state(), self.model.state_dict(), *optimizers]

    def save(self):
        file = io.BytesIO()
        torch.save(self.state(), file)
        return file.getvalue()

    def load(self, saved):
        random, model, *optimizers = torch.load(io.BytesIO(saved), weights_only=True)
        torch.set_rng_state(random)
        self.model.load_state_dict(model)
        for own, state in zip(self.optimizers, optimizers, strict=True):
            own.load_state_dict(state)
        return self

    def factor_states(self):
        """What the optimizers keep for each factor."""
        for _, layer in parametrized(self.model):
            for name, factor in layer.factors().items():
                for optimizer in self.optimizers:
                    if factor in optimizer.state:
                        yield name, optimizer.state[factor]


def numbers(state):
    """All of a state but the code books, which are constants."""
    return {
        name: torch.as_tensor(value)
        for name, value in state.items()
        if value is not None and not name.startswith("qmap")
    }


# Every registered method, and the options by which events edit other moments, or others' moments.
EDITS = {small(cls).card.key: small(cls) for cls in registered().values()} | {
    name: VARIANTS[name]
    for name in (
        *("sst-rounds", "sst-frozen-s", "sst-residual", "lora-dropout"),
        *("relora-prune-magnitude", "relora-fresh", "relora-reset-every"),
        *("galore-left", "galore-keep", "galore-reset", "galore-published"),
    )
}


@pytest.mark.parametrize("method", EDITS.values(), ids=EDITS.keys())
@every_optimizer
def test_training_crosses_every_event_and_resumes_exactly(method, optimizers):
    if getattr(method, "moments", "") == "prune" and optimizers is OPTIMIZERS["adafactor"]:
        pytest.skip("refused: Adafactor keeps no entries that could be pruned")
    steps = 4 * PERIOD
    unbroken = Run(method, optimizers).train(0, steps)
    assert sum(unbroken.losses[-4:]) < sum(unbroken.losses[:4])
    for _, state in unbroken.factor_states():
        assert all(value.isfinite().all() for value in numbers(state).values())
    stop = 2 * PERIOD  # right after an event
    saved = Run(method, optimizers).train(0, stop).save()
    resumed = Run(method, optimizers, seed=9).load(saved).train(stop, steps)
    assert resumed.losses == unbroken.losses[stop:]
    assert same(resumed.state(), unbroken.state())


def scaled(method, kind, overflows):
    """2 · PERIOD + 1 steps of AdamW under a gradient scaler; after each, maybe, one that overflows."""
    run = Run(method, lambda groups: (AdamW(groups, **{kind: True}),))
    (optimizer,) = run.optimizers
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)

    def step(number, factor):
        x, y = batch(number)
        scaler.scale(F.mse_loss(run.model(x), y) * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    for number in range(2 * PERIOD + 1):
        step(number, 1.0)
        clocks = {int(layer.clock) for _, layer in parametrized(run.model)}
        assert clocks == {number + 1}
        if overflows:
            before = copy.deepcopy(run.state())
            step(number + 1, float("inf"))
            torch.set_rng_state(before[0])
            assert same(run.state(), before)
    return run.state()


@every_method
@pytest.mark.parametrize("kind", ["fused", "foreach"])
def test_overflow_steps_move_no_clock_and_no_moment(method, kind):
    if getattr(method, "refresh", "") == "same_step":
        with pytest.raises(spectrain.UsageError, match="gradients were clipped or scaled"):
            scaled(method, kind, overflows=False)
        return
    # A scale is a power of two, so that nothing is rounded by another one.
    assert same(scaled(method, kind, overflows=True), scaled(method, kind, overflows=False))


CLEARING = (
    ReLoRA(RANK, merge_every=PERIOD),
    spectrain.SST(RANK, resample_every=PERIOD),
    GaLore(RANK, refresh_every=PERIOD, moments="reset"),
)


@pytest.mark.parametrize("method", CLEARING, ids=lambda method: method.title)
@every_optimizer
def test_an_event_puts_the_moments_back_to_their_start(method, optimizers):
    run = Run(method, optimizers).train(0, 2)
    assert any(value.any() for _, state in run.factor_states() for value in numbers(state).values())
    # A refresh follows the step whose gradient it is made from, the first one after the period.
    run.train(2, PERIOD + 1 if isinstance(method, GaLore) else PERIOD)
    states = [state for name, state in run.factor_states() if name != "s_frozen"]
    assert states
    assert not any(value.any() for state in states for value in numbers(state).values())


def lion_8bit(groups):
    return bitsandbytes.optim.Lion8bit(groups, min_8bit_size=0)


NEW = [Muon, Adafactor, adamw_8bit, lion_8bit, bitsandbytes.optim.AdamW8bit]  # small: in float32


@pytest.mark.parametrize("make", NEW, ids=lambda make: make.__name__)
def test_a_cleared_state_is_that_of_a_new_optimizer(make):
    old, new = (torch.nn.Parameter(torch.ones(20, 30)) for _ in range(2))
    used = make([{"params": [old], "lr": 0.01}])
    for _ in range(3):
        old.grad = torch.randn(20, 30)
        used.step()
    Moments([used]).clear(old)
    with torch.no_grad():
        new.copy_(old)
    unused = make([{"params": [new], "lr": 0.01}])
    for _ in range(3):
        old.grad = torch.randn(20, 30)
        new.grad = old.grad.clone()
        used.step()
        unused.step()
    assert torch.equal(old, new)


def stepped(make, steps=3):
    """A parameter (20, 30) after a few steps, its Moments and its state."""
    parameter = torch.nn.Parameter(torch.randn(20, 30))
    optimizer = make([{"params": [parameter], "lr": 0.01}])
    for _ in range(steps):
        parameter.grad = torch.randn(20, 30) * torch.rand(20, 1) * torch.rand(30)
        optimizer.step()
    return parameter, Moments([optimizer]), optimizer.state[parameter]


def decoded(state, which):
    return bitsandbytes.functional.dequantize_blockwise(
        state[f"state{which}"],
        absmax=state[f"absmax{which}"],
        code=state[f"qmap{which}"],
        blocksize=256,
    )


@pytest.mark.parametrize("dim", [0, 1])
def test_single_rows_and_columns_are_cleared(dim):
    index = torch.tensor([1, 4])
    parameter, moments, state = stepped(Adafactor)
    before = {name: value.clone() for name, value in state.items()}
    moments.clear(parameter, index, dim)
    part, other = ("row_var", "col_var") if dim == 0 else ("col_var", "row_var")
    assert not state[part].index_select(dim, index).any()
    assert int((state[part] == 0).sum()) == 2
    assert same([state[other], state["step"]], [before[other], before["step"]])
    parameter, moments, state = stepped(adamw_8bit)
    before = decoded(state, 1), decoded(state, 2)
    moments.clear(parameter, index, dim)
    for which, old in enumerate(before, 1):
        assert torch.equal(decoded(state, which), old.index_fill(dim, index, 0.0))


@pytest.mark.parametrize("dim", [0, 1])
def test_adafactors_second_moment_is_carried_exactly(dim):
    parameter, moments, state = stepped(Adafactor)

    def variance():
        return state["row_var"] @ state["col_var"] / state["row_var"].mean()

    size = parameter.shape[dim]
    overlap = torch.linalg.qr(torch.randn(size, size))[0][: size - 2]
    overlap = F.pad(overlap, (0, 0, 0, 2))  # two directions are lost
    before = variance() if dim == 0 else variance().mT
    moments.rotate(parameter, overlap, dim=dim)
    after = variance() if dim == 0 else variance().mT
    torch.testing.assert_close(after, overlap.square() @ before)
    assert state["row_var"].mean() == pytest.approx(state["col_var"].mean().item(), rel=1e-5)


@pytest.mark.parametrize("dim", [0, 1])
def test_moments_in_8_bits_are_carried_to_rounding(dim):
    parameter, moments, state = stepped(adamw_8bit)
    kept = {name: value.clone() for name, value in numbers(state).items()}
    moments.rotate(parameter, torch.eye(parameter.shape[dim]), dim=dim)
    assert torch.equal(state["state1"], kept["state1"])  # nothing to round anew
    overlap = torch.linalg.qr(torch.randn(parameter.shape[dim], parameter.shape[dim]))[0]
    plain = torch.nn.Parameter(parameter.detach().clone())
    reference = torch.optim.AdamW([plain])
    plain.grad = torch.zeros_like(plain)
    reference.step()
    exact = reference.state[plain]
    exact["step"].fill_(state["step"])
    for name, which in (("exp_avg", 1), ("exp_avg_sq", 2)):
        exact[name].copy_(decoded(state, which))
    moments.rotate(parameter, overlap, dim=dim)
    Moments([reference]).rotate(plain, overlap, dim=dim)
    for name, which in (("exp_avg", 1), ("exp_avg_sq", 2)):
        difference = (decoded(state, which) - exact[name]).abs().max()
        assert difference < 0.02 * exact[name].abs().max()


@pytest.mark.parametrize("by", ["random", "magnitude"])
def test_moments_in_8_bits_are_pruned_at_the_same_entries(by):
    parameter, moments, state = stepped(adamw_8bit)
    before = decoded(state, 1)
    moments.prune(parameter, 0.9, by, torch.Generator().manual_seed(0))
    dropped = decoded(state, 2) == 0
    assert dropped.float().mean() == pytest.approx(0.9, abs=0.05)
    assert torch.equal(decoded(state, 1), before.masked_fill(dropped, 0.0))


def test_entries_that_adafactor_does_not_keep_cannot_be_pruned():
    parameter, moments, _ = stepped(Adafactor)
    with pytest.raises(
        spectrain.UsageError, match=r"Adafactor keeps its second moment as a row and a"
    ):
        moments.prune(parameter, 0.9, "random", torch.Generator())


class Wrapped(torch.Tensor):
    """A tensor in a form of its own, as torchao's optimizers keep their moments."""

    @staticmethod
    def __new__(cls, codes):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape)

    def __init__(self, codes):
        self.codes = codes

    def __tensor_flatten__(self):
        return ["codes"], None

    @classmethod
    def __tensor_unflatten__(cls, inner, context, size, stride):
        return cls(inner["codes"])

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError(function)


class Foreign(torch.optim.Optimizer):
    def __init__(self, groups):
        super().__init__(groups, {"lr": 0.01})

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["exp_avg"] = Wrapped(torch.zeros(p.shape))


@pytest.mark.parametrize("make", [torch.optim.Rprop, bitsandbytes.optim.RMSprop8bit, Foreign])
@every_default
def test_state_of_an_unknown_kind_is_refused_by_name_in_the_first_step(method, make):
    net = spectrain.apply(make_net(), method, report=None)
    groups = spectrain.param_groups(net, 0.01)
    for group in groups:
        del group["weight_decay"]  # Rprop has none
    optimizer = make(groups)
    spectrain.attach(net, optimizer)
    F.mse_loss(net(batch(0)[0]), batch(0)[1]).backward()
    if not method.has_schedule:
        optimizer.step()
        return
    with pytest.raises(
        spectrain.UsageError, match=r"keeps .*(step_size|state1|exp_avg).* use AdamW"
    ):
        optimizer.step()
