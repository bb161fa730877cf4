"""SwitchLoRA beside a slow plain version of the paper's algorithm, and what its card promises."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from toys import SHAPES, Training, batch, drift, make_net, one_layer, same, steered

import spectrain
from spectrain import SwitchLoRA, UsageError
from spectrain.parametrizations.base import event_generator

RANK, STEPS, RATE = 4, 24, 0.05
OFTEN = SwitchLoRA(RANK, interval=4, freeze=2, decay_steps=40)
OPTIMIZERS = {
    "AdamW": torch.optim.AdamW,
    "fused": partial(torch.optim.AdamW, fused=True),
    "amsgrad": partial(torch.optim.AdamW, amsgrad=True, betas=(0.8, 0.95), eps=1e-3),
    "coupled-decay": torch.optim.Adam,
    "no-first-moment": partial(torch.optim.Adam, betas=(0.0, 0.99)),
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "RMSprop": torch.optim.RMSprop,
}


class Vector:
    """A vector with an optimizer of its own, which is made anew whenever its moments are cleared."""

    def __init__(self, value: torch.Tensor, make: Any, decay: float) -> None:
        self.value, self.rest = nn.Parameter(value.clone()), 0
        self._make, self._decay = make, decay
        self.restart(0)

    def restart(self, rest: int) -> None:
        self.rest = rest
        self._own = self._make([{"params": [self.value], "lr": RATE, "weight_decay": self._decay}])

    def step(self, gradient: torch.Tensor) -> None:
        if self.rest:
            self.rest -= 1
            return
        self.value.grad = gradient.clone()
        self._own.step()


def plainly(layer: Any, method: SwitchLoRA, make: Any, decay: float) -> list[torch.Tensor]:
    """W after every step, one vector and one switch at a time, from the layer's start on."""
    r, scale = method.rank, method.alpha / method.rank
    W0 = layer.base.detach().clone()
    a = [Vector(row, make, decay) for row in layer.A.detach()]
    b = [Vector(column, make, decay) for column in layer.B.detach().mT]
    pools = [layer.row_pool.clone(), layer.column_pool.clone()]
    slots = [[find(pool, v.value) for v in vs] for pool, vs in zip(pools, (a, b), strict=True)]
    turn, candidate = [0, r // 2], [r, r]
    path = []

    def product() -> torch.Tensor:
        return sum(torch.outer(y.value, x.value) for x, y in zip(a, b, strict=True)).detach()

    for clock, C in enumerate(drift(tuple(W0.shape), STEPS)):
        G = C + W0 + scale * product()
        gradients = [[scale * G.mT @ y.value.detach() for y in b]]
        gradients.append([scale * G @ x.value.detach() for x in a])
        exact = r / (method.interval / 0.3 ** ((clock + 1) / method.decay_steps))
        draw = float(torch.rand((), generator=event_generator(layer, clock)))
        count = math.floor(exact) + (draw < exact - math.floor(exact))
        count = min(count, r // 2 - sum(y.rest > 0 for y in b))
        for side, own, other in ((0, a, b), (1, b, a)):
            for _ in range(count):
                k, pool = turn[side], pools[side]
                old, new = own[k].value.detach().clone(), pool[candidate[side]].clone()
                difference, partner = old - new, other[k].value.detach()
                W0 += scale * (
                    torch.outer(partner, difference)
                    if side == 0
                    else torch.outer(difference, partner)
                )
                pool[slots[side][k]] = old
                own[k].value.data.copy_(new)
                slots[side][k] = candidate[side]
                other[k].restart(method.freeze)
                turn[side] = (k + 1) % r
                candidate[side] = (candidate[side] + 1) % len(pool)
        for vectors, own_gradients in zip((a, b), gradients, strict=True):
            for vector, gradient in zip(vectors, own_gradients, strict=True):
                vector.step(gradient)
        path.append(W0 + scale * product())
    return path


def find(pool: torch.Tensor, vector: torch.Tensor) -> int:
    """The slot that holds the vector."""
    return int((pool == vector.detach()).all(1).nonzero())


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_it_is_the_papers_algorithm(shape, optimizer):
    """Moments, bias correction and weight decay of each vector are those of an optimizer of its own."""
    starts = []

    def keep_the_first(layer):
        if not starts:
            starts.append(copy.deepcopy(layer))

    path, layer = steered(
        OFTEN, shape, optimizer, drift(shape, STEPS), rate=lambda t: RATE, watch=keep_the_first
    )
    assert int(layer.switched) > RANK  # every row at least once
    for W, expected in zip(path, plainly(starts[0], OFTEN, optimizer, 0.1), strict=True):
        torch.testing.assert_close(W, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_switches_keep_the_function_and_the_candidates(shape):
    layer, plain = one_layer(OFTEN, shape)
    torch.testing.assert_close(layer.dense(), plain.weight.detach(), rtol=1e-12, atol=1e-12)
    pools = layer.row_pool.clone(), layer.column_pool.clone()
    for count in (1, 2, 2, 1, 2, 2, 2, 1, 2, 2, 2, 2):
        rows, columns = layer.switch(count)
        assert not set(rows.tolist()) & set(columns.tolist())
        torch.testing.assert_close(layer.dense(), plain.weight.detach(), rtol=1e-12, atol=1e-12)
        assert torch.equal(layer.row_pool, pools[0])
        assert torch.equal(layer.column_pool, pools[1])
        for vectors, pool in ((layer.A, pools[0]), (layer.B.mT, pools[1])):
            assert len({find(pool, vector) for vector in vectors}) == RANK  # slots, all different


def test_a_counterpart_loses_its_moments_and_rests_for_n_updates_exactly():
    """Also from weight decay; the switched vectors themselves train on."""
    method = SwitchLoRA(4, interval=16, freeze=3, decay_steps=1000)
    training = Training(method, lr=0.01, weight_decay=0.5)
    layer = training.model.square  # 8 × 8
    rest = dict.fromkeys(range(4), 0)  # of B's columns
    seen = 0
    for step in range(40):
        before, switched = layer.B.detach().clone(), int(layer.switched)
        training.step(step)
        for k in range(switched, int(layer.switched)):
            rest[k % 4] = method.freeze
            seen += 1
        moments = training.optimizer.state[layer.B]
        for k, left in rest.items():
            still = torch.equal(layer.B[:, k], before[:, k])
            assert still == (left > 0), (step, k)
            for name in ("exp_avg", "exp_avg_sq"):
                assert bool(moments[name][:, k].any()) == (left == 0)
            rest[k] = max(0, left - 1)
    assert seen > 4


def test_the_start_is_the_papers():
    """Deviations of the pools; B A / r has that of torch's own start."""
    torch.manual_seed(1)
    layer, _ = one_layer(SwitchLoRA(64), (320, 200))
    m, n, r, gain = 320, 200, 64, 3**-0.5
    expected = (r * m**0.5 / n**1.5) ** 0.25 * gain**0.5, (r / (m * n) ** 0.5) ** 0.25 * gain**0.5
    for pool, deviation in zip((layer.row_pool, layer.column_pool), expected, strict=True):
        assert float(pool.std()) == pytest.approx(deviation, rel=0.02)
        assert float(pool.abs().max()) == pytest.approx(3**0.5 * deviation, rel=0.01)
    product = (layer.B @ layer.A).detach() / r
    assert float(product.std()) == pytest.approx((3 * n) ** -0.5, rel=0.02)


def test_the_rate_falls_and_is_capped():
    method = SwitchLoRA(32, interval=20, freeze=5, decay_steps=300)
    training = Training(method, net=nn.Sequential(nn.Linear(64, 64)), attach=False)
    (layer,) = training.layers
    counts = [method._count(layer, clock) for clock in range(600)]
    assert set(counts[:20]) <= {1, 2}
    expected = sum(32 / 20 * 0.3 ** ((clock + 1) / 300) for clock in range(600))
    assert sum(counts) == pytest.approx(expected, abs=4 * math.sqrt(600) / 2)
    layer.column_age[:15] = -1
    assert max(method._count(layer, clock) for clock in range(20)) == 1
    layer.column_age[:16] = -1
    assert max(method._count(layer, clock) for clock in range(20)) == 0


def test_no_layer_at_full_rank_and_none_of_rank_one_is_switched():
    for method in (SwitchLoRA(5, interval=2, freeze=1), SwitchLoRA(1, interval=2, freeze=1)):
        training = Training(method).run(0, 4)
        assert int(training.model.wide.switched) == 0  # 5 × 8
    assert SwitchLoRA(1).variations() == ["at rank 1 nothing is switched"]


def test_the_length_of_a_run_decides_how_fast_the_rate_falls():
    assert SwitchLoRA(4).phases(2500) == [(SwitchLoRA(4, decay_steps=250), 2500)]
    assert SwitchLoRA(4).phases(3)[0][0].decay_steps == 1
    assert SwitchLoRA(4, decay_steps=7).phases(2500)[0][0].decay_steps == 7


def test_an_interval_too_short_for_the_rest_is_refused():
    with pytest.raises(UsageError, match="interval is 9, but vectors that rest for freeze=5"):
        SwitchLoRA(4, interval=9)


@pytest.mark.parametrize("at", [3, 4, 7])
def test_a_run_goes_on_exactly_from_the_middle_of_a_rest(at):
    unbroken, first = Training(OFTEN).run(0, 12), Training(OFTEN).run(0, at)
    second = Training(OFTEN, seed=5)
    second.load(first.save())
    second.run(at, 12)
    assert same(second.model.state_dict(), unbroken.model.state_dict())
    assert same(second.optimizer.state_dict(), unbroken.optimizer.state_dict())


def test_an_optimizer_whose_step_calls_its_parents_switches_once():
    class Mine(torch.optim.AdamW):
        def step(self, closure=None):
            return super().step(closure)

    mine, plain = Training(OFTEN, optimizer=Mine).run(0, 6), Training(OFTEN).run(0, 6)
    assert same(mine.model.state_dict(), plain.model.state_dict())


# --- host memory ------------------------------------------------------------------------------------


def test_pools_are_in_the_state_but_no_buffers():
    """So `.to(device)` leaves them where they are, and DistributedDataParallel does not send them."""
    net = spectrain.apply(make_net(), OFTEN, report=None)
    names = {"row_pool", "column_pool", "row_age", "column_age", "switched"}
    assert {n.split(".")[-1] for n in net.wide.state_dict()} >= names
    assert not names & {n for n, _ in (*net.wide.named_buffers(), *net.wide.named_parameters())}
    pools = net.wide.row_pool, net.wide.column_pool
    net.double()
    assert pools[0] is net.wide.row_pool
    on_meta = copy.deepcopy(net).to("meta")
    assert on_meta.wide.row_pool.is_meta
    on_meta.to_empty(device="cpu").load_state_dict(net.state_dict())
    assert same(on_meta.state_dict(), net.state_dict())


@pytest.mark.parametrize("assign", [True, False])
def test_a_state_without_pools_or_with_others_is_refused(assign):
    net = spectrain.apply(make_net(), OFTEN, report=None)
    state = net.state_dict()
    missing = {k: v for k, v in state.items() if k != "wide.row_pool"}
    with pytest.raises(RuntimeError, match=r"Missing key.*wide\.row_pool"):
        net.load_state_dict(missing, assign=assign)
    with pytest.raises(RuntimeError, match=r"size mismatch for wide\.row_pool"):
        net.load_state_dict(state | {"wide.row_pool": torch.zeros(2, 2)}, assign=assign)
    assert net.wide.row_pool.shape == (5, 8)


def train_with_other_pools() -> str:
    net = spectrain.apply(make_net(), OFTEN, report=None)
    net.wide.row_pool[0, 0] += dist.get_rank()
    optimizer = torch.optim.AdamW(spectrain.param_groups(net, 0.01))
    spectrain.attach(net, optimizer)
    model = DistributedDataParallel(net)
    model(batch(0)[0]).sum().backward()
    with pytest.raises(UsageError, match="different seeds or clocks") as caught:
        optimizer.step()
    return str(caught.value)


def test_processes_with_other_candidates_are_refused(pair):
    assert len(set(pair.call(train_with_other_pools))) == 1
