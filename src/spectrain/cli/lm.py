"""`train lm` and `compare lm`: their options, and what is done with them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spectrain.cli import training
from spectrain.cli.options import SectionedCommand, built, options_of
from spectrain.errors import UsageError
from spectrain.runs.options import RunOptions
from spectrain.tasks.lm.options import LanguageModelOptions

if TYPE_CHECKING:
    from rich.console import Console

    from spectrain.tasks.lm.task import LanguageModelling

MODEL_CONFIG = click.Option(
    ["--model-config"],
    multiple=True,
    metavar="KEY=VALUE",
    help="change a key of the model's transformers configuration, as num_hidden_layers=2; may be "
    "given again for another key",
)


def _train_lm(
    out: Path, fork: Path | None, method: str, model_config: tuple[str, ...], **values: Any
) -> None:
    chosen = training.chosen_method(method, values)
    options = built(RunOptions, values)
    console, result, report = training.run_training(
        lambda console: _load_task(values, model_config, console), chosen, options, out, fork
    )
    scores = [
        ("steps", f"{result['steps']:,} ({result['tokens']:,} tokens)"),
        ("validation perplexity", f"{math.exp(result['validation_loss']):.2f}"),
        ("test perplexity", f"{math.exp(result['test_loss']):.2f}"),
    ]
    last = [("report", str(report)), training.after(chosen, out)]
    training.summarise(console, chosen, result, scores, last)


train_lm = SectionedCommand(
    "lm",
    callback=_train_lm,
    help="Train a causal language model, from random weights or a checkpoint.\n\n"
    "Example: spectrain train lm --model llama-20m --method sst --method.rank 32 --out runs/sst",
    sections=[
        ("Run", training.RUN),
        ("Model and data", [*options_of(LanguageModelOptions), MODEL_CONFIG]),
        ("Training", options_of(RunOptions)),
        *training.method_sections(),
    ],
)


def _compare_lm(model_config: tuple[str, ...], **values: Any) -> None:
    training.run_comparison(lambda console: _load_task(values, model_config, console), values)


compare_lm = SectionedCommand(
    "lm",
    callback=_compare_lm,
    help="Compare methods at training a causal language model: the same data order, budget and "
    "number of trials for each.\n\nFinished trials are kept; the same command continues. "
    "Example: spectrain compare lm --methods full,sst,lora --steps 1000 --out runs/cmp",
    sections=[
        ("Comparison", training.comparison(32, "1e-3,2e-3,4e-3")),
        ("Model and data", [*options_of(LanguageModelOptions), MODEL_CONFIG]),
        ("Training", options_of(RunOptions, skip=("lr",))),
        *training.arm_sections(),
    ],
)


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
