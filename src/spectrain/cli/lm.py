"""`train lm` and `compare lm`: their options, and what is done with them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spectrain.cli.options import (
    SectionedCommand,
    built,
    config_option,
    given,
    method_options,
    missing,
    options_of,
    settings_for,
)
from spectrain.errors import UsageError
from spectrain.method import Method, method_from, registered
from spectrain.runs.options import RunOptions
from spectrain.runs.trials import MOST_EXTENSIONS
from spectrain.tasks.lm.options import LanguageModelOptions

if TYPE_CHECKING:
    from rich.console import Console

    from spectrain.tasks.lm.task import LanguageModelling

OUT = click.Option(
    ["--out"],
    type=click.Path(path_type=Path),
    required=True,
    help="directory to work in; where it holds an unfinished run of this command, that is continued",
)
MODEL_CONFIG = click.Option(
    ["--model-config"],
    multiple=True,
    metavar="KEY=VALUE",
    help="change a key of the model's transformers configuration, as num_hidden_layers=2; may be "
    "given again for another key",
)


# --- train lm ----------------------------------------------------------------------------------


def _train_lm(
    out: Path, fork: Path | None, method: str, model_config: tuple[str, ...], **values: Any
) -> None:
    from rich.console import Console

    from spectrain.runs.lm import train
    from spectrain.runs.processes import Team
    from spectrain.runs.view import Terminal

    if method not in registered():
        method_from(method, {})  # raises, and suggests
    settings = given("method", values)
    if needed := missing(registered()[method], settings):
        flags = ", ".join(f"--method.{name}" for name in needed)
        raise UsageError(f"--method {method} needs a value for {flags}")
    chosen = method_from(method, settings)
    options = built(RunOptions, values)
    team = Team()
    console = Console(quiet=not team.first)
    task = team.first_then_others(lambda: _load_task(values, model_config, console))
    with Terminal(console, task.unit) as view:
        result, report = train(task, chosen, options, out, view, fork, team)
    if result.get("failed"):
        raise UsageError(
            f"the run in {out} diverged earlier ({result['failed']}); choose another --out and a "
            "lower --lr"
        )
    _summarise(console, chosen, result, out, report)


def _summarise(
    console: Console, method: Method, result: dict[str, Any], out: Path, report: Path
) -> None:
    from spectrain.runs.memory import beside

    sizes = result["bytes"]
    state = sum(sizes[part] for part in ("weights", "gradients", "optimizer"))
    rows = [
        ("method", method.title),
        ("steps", f"{result['steps']:,} ({result['tokens']:,} tokens)"),
        ("validation perplexity", f"{math.exp(result['validation_loss']):.2f}"),
        ("test perplexity", f"{math.exp(result['test_loss']):.2f}"),
        ("training time", f"{result['seconds']:.1f} s without evaluation"),
        ("training state", f"{state / 2**20:.1f} MiB (weights, gradients, optimizer)"),
        *beside(result),
        ("trainable parameters", f"{result['trainable_parameters']:,}"),
        ("report", str(report)),
        ("next", f"spectrain merge {out} --out DIR"),
    ]
    notes = [f"note: {note}" for note in method.variations()]
    for line in (*(f"{name:<23}{value}" for name, value in rows), *notes):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


train_lm = SectionedCommand(
    "lm",
    callback=_train_lm,
    help="Train a causal language model, from random weights or a checkpoint.\n\n"
    "Example: spectrain train lm --model llama-20m --method sst --method.rank 32 --out runs/sst",
    sections=[
        (
            "Run",
            [
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
            ],
        ),
        ("Model and data", [*options_of(LanguageModelOptions), MODEL_CONFIG]),
        ("Training", options_of(RunOptions)),
        *(
            (f"With --method {key}", method_options(cls, "method", "required"))
            for key, cls in registered().items()
        ),
    ],
)


# --- compare lm --------------------------------------------------------------------------------


def _compare_lm(
    out: Path,
    methods: str,
    sweep_lr: str,
    sweep_lr_ordinary: str | None,
    seeds: int,
    extend: int,
    rank: int,
    model_config: tuple[str, ...],
    **values: Any,
) -> None:
    from rich.console import Console

    from spectrain.runs.lm import compare
    from spectrain.runs.processes import Team
    from spectrain.runs.terminal import render
    from spectrain.runs.view import Terminal

    names = words(methods)
    if len(set(names)) < len(names):
        raise UsageError(f"--methods {methods}: each method can stand there once")
    chosen = {key: arm(key, rank, values) for key in names}
    grids = {key: _rates("--sweep-lr", sweep_lr) for key in chosen}
    for key in chosen:
        if own := values[f"{key}__sweep_lr"]:
            grids[key] = _rates(f"--{key}.sweep-lr", own)
    ordinary: list[float | None] = [values["lr_ordinary"]]
    if sweep_lr_ordinary:
        if values["lr_ordinary"] is not None:
            raise UsageError(
                "give --lr-ordinary (one rate) or --sweep-lr-ordinary (several), not both"
            )
        ordinary = list(_rates("--sweep-lr-ordinary", sweep_lr_ordinary))
    options = built(RunOptions, {**values, "lr": 0.0})
    report_seeds = range(options.seed + 1, options.seed + 1 + seeds)
    team = Team()
    console = Console(quiet=not team.first)
    task = team.first_then_others(lambda: _load_task(values, model_config, console))
    with Terminal(console, task.unit) as view:
        comparison, report = compare(
            task,
            chosen,
            grids,
            options,
            ordinary_rates=ordinary,
            report_seeds=report_seeds,
            max_extensions=extend,
            out=out,
            view=view,
            team=team,
        )
    console.print(render(comparison))
    text = f"\nReport with curves and spectra: {report}"
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def arm(key: str, rank: int, values: dict[str, Any]) -> Method:
    """The method `key` at the common rank, with the options that were given for it alone."""
    cls = registered().get(key)
    if cls is None:
        return method_from(key, {})  # raises, and suggests
    shared = {"rank": rank} if any(f.name == "rank" for f in dataclasses.fields(cls)) else {}
    return method_from(key, shared | settings_for(cls, key, values))


def _arm_options() -> list[tuple[str, list[click.Parameter]]]:
    sections = []
    for key, cls in registered().items():
        own = click.Option(
            [f"--{key}.sweep-lr", f"{key}__sweep_lr"], help="its own rates instead of --sweep-lr"
        )
        sections.append(
            (f"{cls.card.title} only", [own, *method_options(cls, key, "default: as --rank")])
        )
    return sections


COMPARISON: list[click.Parameter] = [
    OUT,
    click.Option(
        ["--methods"],
        default="full,sst,relora,lora,galore",
        show_default=True,
        help=f"names separated by commas, of {', '.join(registered())}",
    ),
    click.Option(["--rank"], type=int, default=32, show_default=True, help="rank of every method"),
    click.Option(
        ["--sweep-lr"],
        default="1e-3,2e-3,4e-3",
        show_default=True,
        help="learning rates of the matrices that each method tries on the first seed; the best on "
        "validation data is used for the report",
    ),
    click.Option(["--sweep-lr-ordinary"], help="rates of everything else to try with each of them"),
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

compare_lm = SectionedCommand(
    "lm",
    callback=_compare_lm,
    help="Compare methods at training a causal language model: the same data order, budget and "
    "number of trials for each.\n\nFinished trials are kept; the same command continues. "
    "Example: spectrain compare lm --methods full,sst,lora --steps 1000 --out runs/cmp",
    sections=[
        ("Comparison", COMPARISON),
        ("Model and data", [*options_of(LanguageModelOptions), MODEL_CONFIG]),
        ("Training", options_of(RunOptions, skip=("lr",))),
        *_arm_options(),
    ],
)


# --- shared ------------------------------------------------------------------------------------


def _load_task(
    values: dict[str, Any], model_config: tuple[str, ...], console: Console
) -> LanguageModelling:
    from spectrain.tasks.lm.task import LanguageModelling

    overrides = overrides_from(model_config)
    options = built(LanguageModelOptions, values)
    with console.status("preparing the corpus") as status:
        task = LanguageModelling.load(options, overrides, progress=status.update)
    corpus = task.corpus
    tokens = ", ".join(f"{name} {len(t):,}" for name, t in corpus.splits.items())
    size = f"{corpus.name}: {tokens} tokens, vocabulary {corpus.vocab_size:,}"
    for line in (size, *(f"note: {note}" for note in corpus.notes)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return task


def overrides_from(model_config: tuple[str, ...]) -> dict[str, str]:
    """The values of --model-config by key."""
    overrides = {}
    for item in model_config:
        key, separator, value = item.partition("=")
        if not separator:
            raise UsageError(f"--model-config {item!r}: give KEY=VALUE, as num_hidden_layers=2")
        overrides[key] = value
    return overrides


def words(text: str) -> list[str]:
    """What stands between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _rates(flag: str, text: str) -> list[float]:
    try:
        return [float(word) for word in words(text)]
    except ValueError:
        raise UsageError(
            f"{flag} {text!r}: give numbers separated by commas, as 1e-3,4e-3"
        ) from None
