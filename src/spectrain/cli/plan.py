"""`plan`: what a run will need in memory, and what fits into a given one."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from spectrain.cli.lm import MODEL_CONFIG, overrides_from
from spectrain.cli.options import (
    SectionedCommand,
    built,
    config_option,
    given,
    method_options,
    missing,
    options_of,
)
from spectrain.cli.training import arm, words
from spectrain.errors import UsageError
from spectrain.method import Method, method_from, registered
from spectrain.runs.options import RunOptions
from spectrain.tasks.lm.options import LanguageModelOptions

if TYPE_CHECKING:
    from torch import nn

    from spectrain.memory.plan import Plan

MODEL = (
    *("model", "vocab_size", "sequence_length", "batch_size", "accumulate", "loss_chunk"),
    "gradient_checkpointing",
)
TRAINING = ("optimizer", "dtype", "device", "targets", "exclude", "layerwise")
UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _plan(
    method: str | None,
    methods: str | None,
    rank: int,
    memory: str | None,
    as_json: bool,
    model_config: tuple[str, ...],
    **values: Any,
) -> None:
    budget = None if memory is None else _bytes(memory)
    chosen = _methods(method, methods, rank, values)
    task, options = built(LanguageModelOptions, values), built(RunOptions, values)
    planner = _planner(task, options, model_config)

    from rich.console import Console

    answers = []
    with Console(stderr=True).status("planning"):
        for one in chosen:
            made = planner(one, task.batch_size)
            answers.append((made, None if budget is None else _fits(planner, one, made, budget)))
    if as_json:
        found = [p.to_json() | ({} if fit is None else {"fits": fit}) for p, fit in answers]
        click.echo(json.dumps(found, indent=2))
        return

    from spectrain.cli.tables import fit_table, overview, plan_table

    console = Console()
    for made, _ in answers:
        console.print(plan_table(made))
    if len(answers) > 1:
        console.print(overview([made for made, _ in answers]))
    if budget is not None:
        console.print(fit_table([(p.title, fit) for p, fit in answers if fit], budget))


def _planner(
    task: LanguageModelOptions, options: RunOptions, model_config: tuple[str, ...]
) -> Callable[[Method, int], Plan]:
    """A function that plans a method at a batch size, as `train lm` would run it."""
    import torch

    from spectrain.memory.plan import plan
    from spectrain.tasks.lm.evaluate import token_loss
    from spectrain.tasks.lm.models import build_model

    try:
        device = torch.device("cpu" if options.device == "auto" else options.device)
    except RuntimeError:
        raise UsageError(f"--device {options.device}: torch knows no such device") from None
    # It would print a traceback of what `plan` says in a sentence.
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    with torch.device("meta"):
        model: nn.Module = build_model(
            task.model,
            vocab_size=task.vocab_size,
            sequence_length=task.sequence_length,
            overrides=overrides_from(model_config),
            gradient_checkpointing=task.gradient_checkpointing,
            weights=False,
        )

    @functools.cache
    def planned(method: Method, batch_size: int) -> Plan:
        made = plan(
            model,
            method,
            batch_size=batch_size,
            sequence_length=task.sequence_length,
            accumulate=task.accumulate,
            dtype=getattr(torch, options.dtype),
            optimizer=options.build_optimizer,
            device=device,
            loss=lambda model, ids: token_loss(model, ids, chunk=task.loss_chunk),
            targets=options.targets,
            exclude=options.excluded,
            layerwise=options.layerwise,
        )
        setting = {
            "model": task.model,
            **made.setting,
            "optimizer": options.optimizer,
            "gradient_checkpointing": task.gradient_checkpointing,
            "loss_chunk": task.loss_chunk,
        }
        return dataclasses.replace(made, setting=setting)

    return planned


def _methods(
    method: str | None, methods: str | None, rank: int, values: dict[str, Any]
) -> list[Method]:
    """The one method of --method, or those of --methods at a common rank."""
    if method is not None and methods is not None:
        raise UsageError("give --method (one, with --method.rank) or --methods (several), not both")
    settings = given("method", values)
    if methods is not None:
        if settings:
            flags = ", ".join(f"--method.{name.replace('_', '-')}" for name in settings)
            raise UsageError(
                f"{flags} goes with --method; with --methods give --rank, or --sst.rank"
            )
        names = words(methods)
        if len(set(names)) < len(names):
            raise UsageError(f"--methods {methods}: each method can stand there once")
        return [arm(key, rank, values) for key in names]
    key = method or "sst"
    if key not in registered():
        method_from(key, {})  # raises, and suggests
    if needed := missing(registered()[key], settings):
        flags = ", ".join(f"--method.{name}" for name in needed)
        raise UsageError(f"--method {key} needs a value for {flags}")
    return [method_from(key, settings)]


def _fits(
    planner: Callable[[Method, int], Plan], method: Method, made: Plan, budget: int
) -> dict[str, Any]:
    """The largest batch at the method's rank, and the largest rank at the plan's batch."""
    from spectrain.memory.fit import LARGEST_BATCH, largest

    batch, at_batch = largest(lambda n: planner(method, n), budget, LARGEST_BATCH)
    answer: dict[str, Any] = {
        "memory": budget,
        "batch_size": batch,
        "batch_peak": at_batch.peak,
        "dominant": at_batch.dominant,
        "next": at_batch.advice,
        "at_batch_size": made.setting["batch_size"],
    }
    rank = getattr(method, "rank", None)
    if rank is None:
        return answer
    ranks = functools.partial(_at_rank, planner, method, made.setting["batch_size"])
    most, at_rank = largest(ranks, budget, made.largest_rank)
    return answer | {
        "at_rank": rank,
        "rank": most,
        "rank_peak": at_rank.peak,
        "largest_rank": made.largest_rank,
    }


def _at_rank(
    planner: Callable[[Method, int], Plan], method: Any, batch_size: int, rank: int
) -> Plan:
    changed: Method = dataclasses.replace(method, rank=rank)
    return planner(changed, batch_size)


def _bytes(text: str) -> int:
    """24GiB, 24 GB, 1.5T, 800MiB; a plain number is bytes. GB means 10⁹, GiB and G 2³⁰."""
    match = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?)(I?)(B?)\s*", text.upper())
    try:
        number = float(match[1]) if match else 0.0
    except ValueError:
        number = 0.0
    if match is None or not 0 < number < 1e18:
        raise UsageError(f"--memory {text}: give a size, as 24GiB, 80GB or 800MiB")
    decimal = match[2] and match[4] and not match[3]
    unit = 1000 ** " KMGT".index(match[2]) if decimal else UNITS[match[2]]
    return int(number * unit)


def _method_sections() -> list[tuple[str, list[click.Parameter]]]:
    """For every method its options with --method, and with --methods."""
    sections: list[tuple[str, list[click.Parameter]]] = []
    for key, cls in registered().items():
        if dataclasses.fields(cls):
            sections.append((f"With --method {key}", method_options(cls, "method", "required")))
    for key, cls in registered().items():
        if dataclasses.fields(cls):
            title = f"{cls.card.title} with --methods"
            sections.append((title, method_options(cls, key, "default: as --rank")))
    return sections


plan = SectionedCommand(
    "plan",
    callback=_plan,
    help="Say what training will need in memory, without allocating any of it.\n\n"
    "A training step is rehearsed on tensors without data. What is exact and what is an estimate "
    "is marked. Example: spectrain plan --model llama-1b --methods full,sst,lora --rank 128 "
    "--memory 24GiB",
    sections=[
        (
            "Plan",
            [
                click.Option(["--method"], help=f"one of {', '.join(registered())}; default: sst"),
                click.Option(["--methods"], help="several methods, separated by commas"),
                click.Option(
                    ["--rank"],
                    type=int,
                    default=32,
                    show_default=True,
                    help="rank of every method, with --methods",
                ),
                click.Option(
                    ["--memory"],
                    metavar="SIZE",
                    help="what fits into this, as 24GiB: the largest batch at the given rank, and "
                    "the largest rank at the given batch",
                ),
                click.Option(["--json", "as_json"], is_flag=True, help="print JSON"),
                config_option(),
            ],
        ),
        (
            "Model and data",
            [
                *options_of(
                    LanguageModelOptions,
                    skip=[
                        f.name
                        for f in dataclasses.fields(LanguageModelOptions)
                        if f.name not in MODEL
                    ],
                ),
                MODEL_CONFIG,
            ],
        ),
        (
            "Training",
            options_of(
                RunOptions,
                skip=[f.name for f in dataclasses.fields(RunOptions) if f.name not in TRAINING],
            ),
        ),
        *_method_sections(),
    ],
)
