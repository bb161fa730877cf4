"""What `train` and `compare` have in common, whatever the task: options, arms, rates, the summary."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spectrain.cli.options import (
    built,
    config_option,
    given,
    method_options,
    missing,
    python_name,
    settings_for,
)
from spectrain.errors import UsageError
from spectrain.method import Method, method_from, registered
from spectrain.runs.options import RunOptions
from spectrain.runs.trials import MOST_EXTENSIONS

if TYPE_CHECKING:
    from rich.console import Console

    from spectrain.tasks.task import Task

OUT = click.Option(
    ["--out"],
    type=click.Path(path_type=Path),
    required=True,
    help="directory to work in; where it holds an unfinished run of this command, that is continued",
)

RUN: list[click.Parameter] = [
    OUT,
    click.Option(
        ["--fork"],
        type=click.Path(path_type=Path),
        metavar="RUN",
        help="begin where that run's newest checkpoint is, with the settings given now",
    ),
    click.Option(
        ["--method"],
        default="sst",
        show_default=True,
        help=f"one of {', '.join(registered())}",
    ),
    config_option(),
]


def method_sections() -> list[tuple[str, list[click.Parameter]]]:
    """The options of `train` for each method, under its heading."""
    return [
        (f"With --method {key}", method_options(cls, "method", "required"))
        for key, cls in registered().items()
    ]


def run_training(
    make_task: Callable[[Console], Task],
    chosen: Method,
    options: RunOptions,
    out: Path,
    fork: Path | None,
) -> tuple[Console, dict[str, Any], Path]:
    """Train, or continue, as `jobs.train` does; (console, result, the report's path)."""
    from rich.console import Console

    from spectrain.runs.jobs import train
    from spectrain.runs.processes import Team
    from spectrain.runs.view import Terminal

    team = Team()
    console = Console(quiet=not team.first)
    task = team.first_then_others(lambda: make_task(console))
    with Terminal(console, task.unit) as view:
        result, report = train(task, chosen, options, out, view, fork, team)
    if result.get("failed"):
        raise UsageError(
            f"the run in {out} diverged earlier ({result['failed']}); choose another --out and a "
            "lower --lr"
        )
    return console, result, report


def chosen_method(method: str, values: dict[str, Any]) -> Method:
    """The method of `train` with its --method.… settings."""
    if method not in registered():
        method_from(method, {})  # raises, and suggests
    settings = given("method", values)
    if needed := missing(registered()[method], settings):
        flags = ", ".join(f"--method.{name}" for name in needed)
        raise UsageError(f"--method {method} needs a value for {flags}")
    return method_from(method, settings)


def summarise(
    console: Console,
    method: Method,
    result: dict[str, Any],
    scores: Sequence[tuple[str, str]],
    last: Sequence[tuple[str, str]],
) -> None:
    """Print what a run came to: `scores` and `last` are rows of the task's own."""
    from spectrain.runs.memory import beside

    sizes = result["bytes"]
    state = sum(sizes[part] for part in ("weights", "gradients", "optimizer"))
    rows = [
        ("method", method.title),
        *scores,
        ("training time", f"{result['seconds']:.1f} s without evaluation"),
        ("training state", f"{state / 2**20:.1f} MiB (weights, gradients, optimizer)"),
        *beside(result),
        ("trainable parameters", f"{result['trainable_parameters']:,}"),
        *last,
    ]
    notes = [f"note: {note}" for note in method.variations()]
    for line in (*(f"{name:<23}{value}" for name, value in rows), *notes):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def after(method: Method, out: Path) -> tuple[str, str]:
    """The row that says what can be done with a finished run."""
    reason = method.against_merge()
    merging = f"spectrain merge {out} --out DIR"
    return ("next", merging) if reason is None else ("not to be merged", f"since {reason}")


# --- compare -----------------------------------------------------------------------------------


def comparison(rank: int, rates: str | None, default: str = "") -> list[click.Parameter]:
    """The options of `compare` that are not the task's.

    rank, rates: defaults of --rank and --sweep-lr; default: what the latter is where it depends.
    """
    return [
        OUT,
        click.Option(
            ["--methods"],
            default="full,sst,relora,lora,galore",
            show_default=True,
            help=f"names separated by commas, of {', '.join(registered())}",
        ),
        click.Option(
            ["--rank"],
            default=str(rank),
            show_default=True,
            help="rank of every method; several, as 1,2, make an arm for each",
        ),
        click.Option(
            ["--sweep-lr"],
            default=rates,
            show_default=rates is not None,
            help="learning rates of the matrices that each method tries on the first seed; the best on "
            f"validation data is used for the report{default}",
        ),
        click.Option(
            ["--sweep-lr-ordinary"], help="rates of everything else to try with each of them"
        ),
        click.Option(
            ["--seeds"],
            type=click.IntRange(min=0, max=1000),
            default=3,
            show_default=True,
            help="further seeds, on which the results are measured with test data",
        ),
        click.Option(
            ["--extend"],
            type=click.IntRange(min=0, max=MOST_EXTENSIONS),
            default=1,
            show_default=True,
            help="how often all grids may grow where a best rate lies at its edge",
        ),
        config_option(),
    ]


def arm_sections() -> list[tuple[str, list[click.Parameter]]]:
    """The options of `compare` for each method, under its heading."""
    sections = []
    for key, cls in registered().items():
        own = click.Option(
            [f"--{key}.sweep-lr", python_name(key, "sweep_lr")],
            help="its own rates instead of --sweep-lr",
        )
        sections.append(
            (f"{cls.card.title} only", [own, *method_options(cls, key, "default: as --rank")])
        )
    return sections


def arm(key: str, rank: int, values: dict[str, Any]) -> Method:
    """The method `key` at the common rank, with the options that were given for it alone."""
    cls = registered().get(key)
    if cls is None:
        return method_from(key, {})  # raises, and suggests
    shared = {"rank": rank} if has_rank(key) else {}
    return method_from(key, shared | settings_for(cls, key, values))


def arms_of(names: list[str], ranks: list[int], values: dict[str, Any]) -> dict[str, Method]:
    """A method at every rank, by the name that its arm has in files: sst, or sst-r1 and sst-r2."""
    arms = {}
    for key in names:
        several = len(ranks) > 1 and has_rank(key)
        for rank in ranks if several else ranks[:1]:
            arms[f"{key}-r{rank}" if several else key] = arm(key, rank, values)
    return arms


def ranks_of(text: str) -> list[int]:
    """The value of --rank."""
    try:
        ranks = [int(word) for word in words(text)]
    except ValueError:
        ranks = []
    if not ranks or len(set(ranks)) < len(ranks):
        raise UsageError(f"--rank {text!r}: give whole numbers separated by commas, as 1,2")
    return ranks


def has_rank(key: str) -> bool:
    """Whether the method has a rank to choose."""
    cls = registered().get(key)
    return cls is not None and any(f.name == "rank" for f in dataclasses.fields(cls))


def names_of(methods: str) -> list[str]:
    """The value of --methods, each name once."""
    names = words(methods)
    if len(set(names)) < len(names):
        raise UsageError(f"--methods {methods}: each method can stand there once")
    return names


def grids_of(names: Sequence[str], sweep_lr: str, values: dict[str, Any]) -> dict[str, list[float]]:
    """The rates that each method tries: its own, or those of --sweep-lr."""
    grids = {key: rates("--sweep-lr", sweep_lr) for key in names}
    for key in names:
        if own := values.get(python_name(key, "sweep_lr")):
            grids[key] = rates(f"--{key}.sweep-lr", own)
    return grids


def ordinary_rates(sweep: str | None, values: dict[str, Any]) -> list[float | None]:
    """The rates of everything else: one for all trials, or those of --sweep-lr-ordinary."""
    if not sweep:
        return [values["lr_ordinary"]]
    if values["lr_ordinary"] is not None:
        raise UsageError("give --lr-ordinary (one rate) or --sweep-lr-ordinary (several), not both")
    return list(rates("--sweep-lr-ordinary", sweep))


def run_comparison(make_task: Callable[[Console], Task], values: dict[str, Any]) -> None:
    """Compare, or continue, as `jobs.compare` does, and print the table.

    values: the options of the command, those of `comparison` among them.
    """
    names = names_of(values["methods"])
    arms = arms_of(names, ranks_of(values["rank"]), values)
    grids = grids_of(names, values["sweep_lr"], values)
    ordinary = ordinary_rates(values["sweep_lr_ordinary"], values)
    options = built(RunOptions, {**values, "lr": 0.0})
    from rich.console import Console

    from spectrain.runs.jobs import compare
    from spectrain.runs.processes import Team
    from spectrain.runs.terminal import render
    from spectrain.runs.view import Terminal

    team = Team()
    console = Console(quiet=not team.first)
    task = team.first_then_others(lambda: make_task(console))
    with Terminal(console, task.unit) as view:
        found, report = compare(
            task,
            arms,
            {key: grids[method.card.key] for key, method in arms.items()},
            options,
            ordinary_rates=ordinary,
            report_seeds=range(options.seed + 1, options.seed + 1 + values["seeds"]),
            max_extensions=values["extend"],
            out=values["out"],
            view=view,
            team=team,
        )
    console.print(render(found))
    text = f"\nReport with curves and spectra: {report}"
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def words(text: str) -> list[str]:
    """What stands between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def rates(flag: str, text: str) -> list[float]:
    """Learning rates separated by commas."""
    try:
        return [float(word) for word in words(text)]
    except ValueError:
        raise UsageError(
            f"{flag} {text!r}: give numbers separated by commas, as 1e-3,4e-3"
        ) from None
