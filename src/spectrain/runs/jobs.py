"""What the commands do: one training run, and a comparison of methods."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from spectrain.errors import RunError
from spectrain.groups import param_groups
from spectrain.method import Method
from spectrain.runs.compare import Arm, Comparison, Plan, Trial, run_comparison
from spectrain.runs.directory import command_line, open_directory, run_config
from spectrain.runs.files import CURE, read_json
from spectrain.runs.fork import origin
from spectrain.runs.lock import locked
from spectrain.runs.loop import DivergedError, Training
from spectrain.runs.options import RunOptions
from spectrain.runs.plots import plot_comparison
from spectrain.runs.processes import Team
from spectrain.runs.report import write_report
from spectrain.runs.run_plots import plot_run
from spectrain.runs.view import View
from spectrain.surgery import apply, coverage, select
from spectrain.tasks.task import Task


def train(
    task: Task,
    method: Method,
    options: RunOptions,
    out: Path,
    view: View,
    fork: Path | None = None,
    team: Team | None = None,
) -> tuple[dict[str, Any], Path]:
    """Train in the run directory `out`, or continue there; the result and the report's path.

    A finished run is not trained again. fork: the run from whose newest checkpoint a new one begins.
    team: the processes that train together; they share the file system.
    Raises as `Training`, `locked`, `open_directory` and `fork.origin` do.
    """
    team = team or Team()
    with _locked(out, team):
        result = _train(task, method, options, out, view, team, fork)
        return result, _report(out, team, partial(plot_run, out))


@contextmanager
def _locked(directory: Path, team: Team) -> Iterator[None]:
    """`locked` by the first process, for all of them."""
    with ExitStack() as stack:
        team.decide(lambda: stack.enter_context(locked(directory)))
        yield


def _train(
    task: Task,
    method: Method,
    options: RunOptions,
    directory: Path,
    view: View,
    team: Team,
    fork: Path | None = None,
) -> dict[str, Any]:
    """The result of the run in a directory that is locked."""

    def open_it() -> dict[str, Any] | None:
        begun_at = origin(fork, directory, task, method, options)
        settings = _settings(task, options)
        command = command_line()
        config = run_config(task, settings, method, command, begun_at)
        return open_directory(directory, config)

    result = team.decide(open_it)
    return result or Training(task, method, options, directory, view, team).train()


def _report(directory: Path, team: Team, draw: Callable[[], Any]) -> Path:
    """Write the report and, for papers and talks, the PNG files that `draw` makes."""

    def write() -> str:
        draw()
        return str(write_report(directory))

    try:
        return Path(team.decide(write))
    except OSError as error:
        raise RunError(
            f"all results are in {directory}, but its report could not be written: "
            f"{error.strerror or error}; {CURE}"
        ) from None


def compare(
    task: Task,
    methods: Mapping[str, Method],
    grids: Mapping[str, Sequence[float]],
    options: RunOptions,
    *,
    ordinary_rates: Sequence[float | None],
    report_seeds: Sequence[int],
    max_extensions: int,
    out: Path,
    view: View,
    team: Team | None = None,
) -> tuple[Comparison, Path]:
    """Methods × learning rates × seeds in `out`, or what of it is missing; and the report's path.

    methods: by the name that their arm has in files. grids: the rates each of them begins with.
    options.seed chooses the rates; report_seeds are what the results are averaged over.
    """
    plan = Plan(
        arms=tuple(_arm(key, method, grids[key], methods) for key, method in methods.items()),
        ordinary_rates=tuple(ordinary_rates),
        sweep_seed=options.seed,
        report_seeds=tuple(report_seeds),
        max_extensions=max_extensions,
        scores=task.scores,
    )
    recorded = {
        **_settings(task, options),
        "methods": {key: method.settings() for key, method in methods.items()},
    }
    team = team or Team()
    _check(task, methods, options, view)
    run_trial = _trial_runner(task, methods, options, view, team)
    with _locked(out, team):
        comparison = run_comparison(
            plan, run_trial, out, options=recorded, say=view.say, command=command_line(), team=team
        )
        return comparison, _report(out, team, partial(plot_comparison, comparison))


def _arm(key: str, method: Method, rates: Sequence[float], methods: Mapping[str, Method]) -> Arm:
    """The arm `key`; one of several ranks of a method says which, and is compared within its rank."""
    several = sum(type(other) is type(method) for other in methods.values()) > 1
    rank = getattr(method, "rank", None)
    group = f"r={rank}" if several else ""
    return Arm(
        key,
        f"{method.title} {group}".strip(),
        tuple(method.variations()),
        method.schedule_text(),
        method.card.paper_schedule,
        tuple(rates),
        group=group,
        method=method.card.key,
    )


def _check(task: Task, methods: Mapping[str, Method], options: RunOptions, view: View) -> None:
    """Refuse now what a later trial could not start with, and show what all of them exchange."""
    options.find_device()
    model = task.skeleton()
    covered = coverage(model, select(model, options.targets, options.excluded))
    for method in methods.values():
        for phase, _ in method.phases(options.steps):
            own = apply(copy.deepcopy(model), phase, options.targets, options.excluded, report=None)
            options.build_optimizer(param_groups(own, options.lr))
    view.say(f"Every method trains {covered}")


def _trial_runner(
    task: Task,
    methods: Mapping[str, Method],
    options: RunOptions,
    view: View,
    team: Team,
) -> Callable[[Trial, Path], Mapping[str, Any]]:
    def run(trial: Trial, directory: Path) -> Mapping[str, Any]:
        own = dataclasses.replace(
            options, lr=trial.lr, lr_ordinary=trial.lr_ordinary, seed=trial.seed
        )
        with _locked(directory, team):
            try:
                return _train(task, methods[trial.arm], own, directory, _Quiet(view), team)
            except DivergedError:
                result: dict[str, Any] = team.decide(lambda: read_json(directory / "result.json"))
                return result

    return run


class _Quiet:
    """A trial's view: progress bar and alerts, but no other sentence; the comparison has its own."""

    def __init__(self, view: View) -> None:
        self.alert = view.alert
        self.begin, self.advance, self.end = view.begin, view.advance, view.end

    def say(self, sentence: str) -> None: ...


def _settings(task: Task, options: RunOptions) -> dict[str, Any]:
    return task.settings() | dataclasses.asdict(options)
