"""What a comparison consists of: arms, trials, and the rule that says which trials come next.

The rule, `planned`, is a pure function of the plan and the results so far. So a comparison can be
interrupted, continued and reported on at any time without any state but its finished trials.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from spectrain.errors import UsageError
from spectrain.runs.scores import LANGUAGE, column_name, cost_of
from spectrain.tasks.score import Score

Result = Mapping[str, Any]  # a run's result.json
Axis = Literal["learning rate", "ordinary learning rate"]
Side = Literal["lowest", "highest"]

MOST_EXTENSIONS = 20  # by rates that double, a grid a million times as wide


@dataclass(frozen=True)
class Arm:
    """One method in a comparison; with different settings it may be in several arms."""

    key: str  # name in file names: "sst"
    title: str  # name in tables: "SST"
    variations: tuple[str, ...]  # how it differs from the published method
    schedule: str  # its events here, in words
    paper_schedule: str  # its events in the paper, in words
    learning_rates: tuple[float, ...]  # its grid to begin with
    group: str = ""  # gaps are measured within it, "r=1"; full rank belongs to every group
    method: str = ""  # its name in the registry; empty: the key


@dataclass(frozen=True)
class Trial:
    """One training run of a comparison."""

    arm: str
    lr: float
    lr_ordinary: float | None  # rate of the parameters that no method factorises; None: as ``lr``
    seed: int
    purpose: Literal["sweep", "report"]
    ordinary_swept: bool = False  # then it belongs to the name

    @property
    def slug(self) -> str:
        """Name of the trial's directory: ``sst-lr4e-03-seed0`` or ``sst-lr4e-03-ord1e-02-seed0``"""
        ordinary = f"-ord{_exact(self.lr_ordinary or self.lr)}" if self.ordinary_swept else ""
        return f"{self.arm}-lr{_exact(self.lr)}{ordinary}-seed{self.seed}"


def _exact(rate: float) -> str:
    """4e-3 as ``4e-03``, 1.25e-3 as ``1.25e-03``."""
    digits, exponent = f"{rate:.9e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{exponent}"


@dataclass(frozen=True)
class Plan:
    """Methods × learning rates on one seed, then the best of each method on other seeds.

    Raises UsageError where methods would not be treated alike or names would be ambiguous.
    """

    arms: tuple[Arm, ...]
    ordinary_rates: tuple[float | None, ...]  # one: fixed alike for all; several: swept alike
    sweep_seed: int
    report_seeds: tuple[int, ...]  # none: the sweep's own trials are the results
    max_extensions: int  # how often the grid may grow where a best rate lies at its edge
    scores: tuple[Score, ...] = LANGUAGE  # the first decides

    def __post_init__(self) -> None:
        keys = [arm.key for arm in self.arms]
        if not keys or len(set(keys)) < len(keys):
            raise UsageError(
                f"a comparison needs distinct methods, got {', '.join(keys) or 'none'}"
            )
        if odd := [key for key in keys if not re.fullmatch(r"[\w-]+", key)]:
            raise UsageError(f"{odd[0]!r} cannot be part of a file name; take letters and digits")
        if not 0 <= self.max_extensions <= MOST_EXTENSIONS:
            raise UsageError(
                f"the grids can grow 0 to {MOST_EXTENSIONS} times, not {self.max_extensions}"
            )
        if len({len(arm.learning_rates) for arm in self.arms}) > 1:
            counts = ", ".join(f"{arm.title} {len(arm.learning_rates)}" for arm in self.arms)
            raise UsageError(f"every method needs equally many learning rates, got {counts}")
        for name, rates in (
            *((f"learning rates of {arm.title}", arm.learning_rates) for arm in self.arms),
            ("ordinary learning rates", self.ordinary_rates),
        ):
            numbers = [rate for rate in rates if rate is not None]
            positive = all(0 < rate < math.inf for rate in numbers)  # False for NaN
            if not rates or len(set(rates)) < len(rates) or not positive:
                raise UsageError(f"the {name} must be distinct positive numbers, got {rates}")
            if None in rates and len(rates) > 1:
                raise UsageError(f"the {name} are either swept (numbers) or not given, got {rates}")
        if self.sweep_seed in self.report_seeds:
            raise UsageError(
                f"seed {self.sweep_seed} chooses the learning rates, so it cannot be a seed of the "
                "report too: choose other seeds for the report"
            )
        if len(set(self.report_seeds)) < len(self.report_seeds):
            raise UsageError(f"the report's seeds must be distinct, got {self.report_seeds}")
        names = [column_name(score) for score in self.scores]
        titles = {score.title for score in self.scores}
        if not names or len(set(names)) < len(names) or len(titles) < len(names):
            raise UsageError(
                f"a comparison needs distinct scores, got {', '.join(names) or 'none'}"
            )

    @property
    def ordinary_swept(self) -> bool:
        return len(self.ordinary_rates) > 1

    def arm(self, key: str) -> Arm:
        return next(arm for arm in self.arms if arm.key == key)


@dataclass(frozen=True)
class Edge:
    """A method's best rate is the lowest or highest of its grid, so a better one may lie beyond."""

    arm: str
    axis: Axis
    side: Side
    rate: float


@dataclass(frozen=True)
class Progress:
    """Where a comparison stands: all trials known to be needed so far, and what the sweep chose."""

    trials: tuple[Trial, ...]  # in the order in which they are run
    best: Mapping[str, Trial]  # by arm, once the sweep is complete; no entry if all diverged
    edges: tuple[Edge, ...]  # the best rates at an edge of the final grid
    extensions: int  # how often the grid grew


def planned(plan: Plan, results: Mapping[Trial, Result]) -> Progress:
    """The trials that ``plan`` asks for, as far as ``results`` let it be known.

    Sweep: all rates on the sweep seed, methods interleaved (all at their first rate, then all at
    their second) so that a partial comparison is useful. Where some method's best rate lies at an
    edge, every method's grid grows by one rate in that direction, by its own ratio, at most
    ``max_extensions`` times. Then, on the report seeds, every method at its best rate.
    """
    grids = {arm.key: tuple(sorted(arm.learning_rates)) for arm in plan.arms}
    ordinary = tuple(sorted(plan.ordinary_rates, key=lambda rate: rate or 0.0))
    extensions = 0
    sweep: dict[Trial, None] = {}  # an ordered set: an extension adds to its end
    while True:
        for lr_ordinary in ordinary:
            for rates in zip(*grids.values(), strict=True):
                for key, lr in zip(grids, rates, strict=True):
                    trial = Trial(
                        key, lr, lr_ordinary, plan.sweep_seed, "sweep", plan.ordinary_swept
                    )
                    sweep[trial] = None
        if any(trial not in results for trial in sweep):
            return Progress(tuple(sweep), {}, (), extensions)
        best = _best(plan, sweep, results)
        edges = _edges(best, grids, ordinary)
        if not edges or extensions == plan.max_extensions:
            break
        extensions += 1
        for side in sorted({edge.side for edge in edges if edge.axis == "learning rate"}):
            grids = {key: _grown(grid, side) for key, grid in grids.items()}
        for side in sorted({edge.side for edge in edges if edge.axis == "ordinary learning rate"}):
            ordinary = _grown(tuple(rate for rate in ordinary if rate is not None), side)
    report = [
        Trial(key, trial.lr, trial.lr_ordinary, seed, "report", plan.ordinary_swept)
        for seed in plan.report_seeds
        for key, trial in best.items()
    ]
    return Progress((*sweep, *report), best, edges, extensions)


def _best(
    plan: Plan, sweep: Mapping[Trial, None], results: Mapping[Trial, Result]
) -> dict[str, Trial]:
    """Each arm's trial of best validation score; no entry for an arm whose trials all diverged."""
    best = {}
    for arm in plan.arms:
        # Where the score that decides is equal, as BLEU is 0 for all bad translations, the next one does.
        costs = {
            trial: [cost_of(results[trial], "validation", score) for score in plan.scores]
            for trial in sweep
            if trial.arm == arm.key
        }
        winner = min(costs, key=costs.__getitem__)
        if math.isfinite(costs[winner][0]):
            best[arm.key] = winner
    return best


def _edges(
    best: Mapping[str, Trial],
    grids: Mapping[str, tuple[float, ...]],
    ordinary: tuple[float | None, ...],
) -> tuple[Edge, ...]:
    """Where best rates lie at an edge; a single rate is fixed, not swept, and has no edges."""
    edges: list[Edge] = []
    for key, grid in grids.items():
        axes: list[tuple[Axis, tuple[float | None, ...], float | None]] = [
            # An arm that diverged everywhere wants lower rates.
            ("learning rate", grid, best[key].lr if key in best else grid[0]),
            ("ordinary learning rate", ordinary, best[key].lr_ordinary if key in best else None),
        ]
        for axis, rates, rate in axes:
            if len(rates) > 1 and rate is not None and rate in (rates[0], rates[-1]):
                edges.append(Edge(key, axis, "lowest" if rate == rates[0] else "highest", rate))
    return tuple(edges)


def _grown(grid: tuple[float, ...], side: Side) -> tuple[float, ...]:
    """``grid``, ascending, with one more rate at the given side, by the ratio of its neighbours."""
    if side == "lowest":
        return (_rounded(grid[0] * grid[0] / grid[1]), *grid)
    return (*grid, _rounded(grid[-1] * grid[-1] / grid[-2]))


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")
