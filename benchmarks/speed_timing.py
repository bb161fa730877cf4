"""Times of training steps: all arms in one process, a step of each in turn, warm-up dropped."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from statistics import mean, median, quantiles

import psutil
import torch
from speed_arms import Arm, TimedEvent
from torch import Tensor, nn

DISTURBED = 0.05


@dataclass(frozen=True)
class Step:
    """Seconds of one training step."""

    forward: float
    backward: float
    update: float

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.update


@dataclass(frozen=True)
class Feed:
    """What every arm gets: an input, and the gradient of the output (None where that is a loss)."""

    x: Tensor
    cotangent: Tensor | None
    autocast: bool = False  # bf16, on a GPU

    def clock(self) -> float:
        """Now, with nothing left to wait for."""
        if self.x.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


@dataclass
class Samples:
    """The steps of one arm by round; `cycle` rounds make the whole that is averaged."""

    steps: dict[int, Step]
    cycle: int

    def typical(self, value: Callable[[int], float]) -> float:
        """Median of value(round), for every step of the cycle by itself, then their mean."""
        phases: dict[int, list[float]] = {}
        for i in self.steps:
            phases.setdefault(i % self.cycle, []).append(value(i))
        return mean(median(values) for values in phases.values())

    def seconds(self) -> Step:
        names = [field.name for field in fields(Step)]
        return Step(*(self.typical(lambda i, n=n: getattr(self.steps[i], n)) for n in names))

    def ratio(self, other: Samples) -> float:
        """Typical step time over that of `other`: a ratio of medians.

        Single steps are disturbed now and then, in either arm; a median of ratios would take in both.
        """
        return self.seconds().total / other.seconds().total

    def spread(self, other: Samples) -> float:
        """Half the distance between the quartiles of the ratio round by round, over its median."""
        ratios = [step.total / other.steps[i].total for i, step in self.steps.items()]
        if len(ratios) < 2:
            return 0.0
        low, middle, high = quantiles(ratios, n=4, method="inclusive")
        return (high - low) / 2 / middle


def train_step(arm: Arm, feed: Feed) -> Step:
    """One training step: forward, backward, the optimizer with its step rule and zero_grad."""
    context = (
        torch.autocast(feed.x.device.type, torch.bfloat16)
        if feed.autocast
        else contextlib.nullcontext()
    )
    start = feed.clock()
    with context:
        y = arm.model(feed.x)
    forward = feed.clock()
    y.backward(feed.cotangent)
    del y
    backward = feed.clock()
    arm.update()
    arm.optimizer.zero_grad(set_to_none=True)
    feed.x.grad = None
    return Step(forward - start, backward - forward, feed.clock() - backward)


class Products:
    """The products of full-rank linear layers and nothing else: y, gradient of x, gradient of W."""

    def __init__(self, matrices: Sequence[tuple[int, int]], feed: Feed, tokens: int) -> None:
        device, dtype = feed.x.device, torch.bfloat16 if feed.autocast else torch.float32
        sides = {size for shape in matrices for size in shape}
        rows = {size: torch.randn(tokens, size, device=device, dtype=dtype) for size in sides}
        self.layers = [
            (rows[n], torch.randn(m, n, device=device, dtype=dtype), rows[m]) for m, n in matrices
        ]
        self.feed = feed

    def step(self) -> Step:
        start = self.feed.clock()
        for x, W, _ in self.layers:
            nn.functional.linear(x, W)
        forward = self.feed.clock()
        for x, W, gy in self.layers:
            gy @ W
            gy.mT @ x
        return Step(forward - start, self.feed.clock() - forward, 0.0)


class Elsewhere:
    """How much of the machine's processor time other processes took meanwhile."""

    def __init__(self) -> None:
        self.before = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        machine, own = psutil.cpu_times(), os.times()
        waiting = machine.idle + getattr(machine, "iowait", 0.0)
        return sum(machine[:8]), sum(machine[:8]) - waiting, own.user + own.system

    def share(self) -> float:
        """From 0, this process alone, to 1."""
        whole, busy, own = (b - a for a, b in zip(self.before, self._now(), strict=True))
        return max(0.0, (busy - own) / whole) if whole else 0.0


@dataclass
class Interleaved:
    """Samples of every arm and of the bare products, from the same rounds."""

    arms: list[Samples]
    products: Samples
    elsewhere: float  # share of the processors' time that other processes took in these rounds
    repeated: int  # rounds that were left out because others took too much


def interleave(
    arms: Sequence[Arm], products: Products, feed: Feed, rounds: int, warmup: int
) -> Interleaved:
    """`rounds` rounds of one step of every arm, in random order.

    A round in which other processes took more than DISTURBED of the processors' time is repeated;
    after twice as many rounds as were asked for, all are taken as they are.
    """
    order = random.Random(0)
    runs: list[Callable[[], Step]] = [lambda arm=arm: train_step(arm, feed) for arm in arms]
    runs.append(products.step)
    cycles = [*(arm.cycle for arm in arms), 1]
    steps: list[dict[int, Step]] = [{} for _ in runs]
    shares: dict[int, float] = {}
    with _no_collection():
        for number in range(-warmup, 2 * rounds):
            elsewhere = Elsewhere()
            for i in order.sample(range(len(runs)), len(runs)):
                steps[i][number] = runs[i]()
            shares[number] = elsewhere.share()
            quiet = [i for i in range(number + 1) if shares[i] <= DISTURBED]
            if _covers(quiet, rounds, max(cycles)):
                break
        else:
            quiet = list(range(2 * rounds))
    made = [
        Samples({i: of_one[i] for i in quiet}, cycle)
        for of_one, cycle in zip(steps, cycles, strict=True)
    ]
    return Interleaved(made[:-1], made[-1], mean(shares[i] for i in quiet), number + 1 - len(quiet))


def _covers(kept: Sequence[int], rounds: int, cycle: int) -> bool:
    """True if every step of a cycle has its part of `rounds` samples."""
    least = max(1, rounds // cycle)
    return len(kept) >= rounds and all(
        sum(i % cycle == phase for i in kept) >= least for phase in range(cycle)
    )


def refresh_seconds(arm: Arm, feed: Feed, pairs: int) -> tuple[float, float]:
    """What a refresh adds to a step, and what of it to the update: steps with and without one, in turn.

    In the update a basis is made. The rest is the dense gradient that it is made from, where the
    method does not form that in every step.
    """
    assert arm.refreshing is not None
    for _ in range(2):  # the first refresh of all starts from nothing
        train_step(arm.refreshing, feed)
    with _no_collection():
        steps = [(train_step(arm.refreshing, feed), train_step(arm, feed)) for _ in range(pairs)]
    added = max(0.0, median(refreshing.total - plain.total for refreshing, plain in steps))
    return added, max(0.0, median(refreshing.update - plain.update for refreshing, plain in steps))


def event_seconds(event: TimedEvent, feed: Feed, runs: int) -> float:
    """Median of at most `runs` runs, fewer where they take long."""
    times: list[float] = []
    with _no_collection():
        while len(times) < runs and sum(times) < 3.0:
            start = feed.clock()
            event.run()
            times.append(feed.clock() - start)
    return median(times)


@contextlib.contextmanager
def _no_collection():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
