"""What each command does with its arguments."""

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
    options_of,
    settings_for,
)
from spectrain.errors import UsageError
from spectrain.method import Method, method_from, methods, registered
from spectrain.runs.options import RunOptions
from spectrain.tasks.lm.options import LanguageModelOptions

if TYPE_CHECKING:
    from rich.console import Console

    from spectrain.tasks.lm.task import LanguageModelling

OUT = click.Option(
    ["--out"], type=click.Path(path_type=Path), required=True, help="directory of the run"
)
MODEL_CONFIG = click.Option(
    ["--model-config"],
    multiple=True,
    metavar="KEY=VALUE",
    help="change a key of the model's transformers configuration, as num_hidden_layers=2",
)


# --- train lm ----------------------------------------------------------------------------------


def _train_lm(out: Path, method: str, model_config: tuple[str, ...], **values: Any) -> None:
    from rich.console import Console

    from spectrain.runs.lm import train
    from spectrain.runs.view import Terminal

    if method not in registered():
        method_from(method, {})  # raises, and suggests
    settings = given("method", values)
    chosen = method_from(method, settings)
    options = built(RunOptions, values)
    console = Console()
    task = _load_task(values, model_config, console)
    with Terminal(console) as view:
        result, report = train(task, chosen, options, out, view)
    if result.get("failed"):
        raise UsageError(
            f"the run in {out} diverged earlier ({result['failed']}); choose another --out and a "
            "lower --lr"
        )
    _summarise(console, chosen, result, out, report)


def _summarise(
    console: Console, method: Method, result: dict[str, Any], out: Path, report: Path
) -> None:
    from rich.table import Table

    sizes = result["bytes"]
    state = sum(sizes[part] for part in ("weights", "gradients", "optimizer"))
    rows = [
        ("method", method.title),
        ("steps", f"{result['steps']:,} ({result['tokens']:,} tokens)"),
        ("validation perplexity", f"{math.exp(result['validation_loss']):.2f}"),
        ("test perplexity", f"{math.exp(result['test_loss']):.2f}"),
        ("training time", f"{result['seconds']:.1f} s without evaluation"),
        ("training state", f"{state / 2**20:.1f} MiB (weights, gradients, optimizer)"),
        ("trainable parameters", f"{result['trainable_parameters']:,}"),
        ("report", str(report)),
        ("next", f"spectrain merge {out} --out DIR"),
    ]
    table = Table(show_header=False, box=None)
    for name, value in rows:
        table.add_row(name, value)
    console.print(table, highlight=False)
    for note in method.variations():
        console.print(f"note: {note}", highlight=False, markup=False)


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
                    ["--method"], default="sst", show_default=True, help=", ".join(registered())
                ),
                config_option(),
            ],
        ),
        ("Model and data", [*options_of(LanguageModelOptions), MODEL_CONFIG]),
        ("Training", options_of(RunOptions)),
        ("Settings of the method", method_options("method")),
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
    from spectrain.runs.terminal import render
    from spectrain.runs.view import Terminal

    chosen = {key: _arm(key, rank, values) for key in _words(methods)}
    grids = {
        key: _rates(f"--{key}.sweep-lr", values.get(f"{key}__sweep_lr") or sweep_lr)
        for key in chosen
    }
    ordinary: list[float | None] = [values["lr_ordinary"]]
    if sweep_lr_ordinary:
        ordinary = list(_rates("--sweep-lr-ordinary", sweep_lr_ordinary))
    options = built(RunOptions, {**values, "lr": 0.0})
    report_seeds = range(options.seed + 1, options.seed + 1 + seeds)
    console = Console()
    task = _load_task(values, model_config, console)
    with Terminal(console) as view:
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
        )
    console.print(render(comparison))
    console.print(f"\nReport with curves and spectra: {report}", highlight=False)


def _arm(key: str, rank: int, values: dict[str, Any]) -> Method:
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
        sections.append((f"{cls.card.title} only", [own, *options_of(cls, prefix=key)]))
    return sections


COMPARISON: list[click.Parameter] = [
    OUT,
    click.Option(
        ["--methods"],
        default="full,sst,relora,lora,galore",
        show_default=True,
        help=f"names separated by commas, of {', '.join(registered())}",
    ),
    click.Option(["--rank"], type=int, default=32, show_default=True, help="rank of all of them"),
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
        type=click.IntRange(min=0),
        default=3,
        show_default=True,
        help="further seeds, on which the results are measured with test data",
    ),
    click.Option(
        ["--extend"],
        type=click.IntRange(min=0),
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


# --- demo, merge, methods ----------------------------------------------------------------------

# Periods are scaled to the budget so that every method lives through its events: 14 resamplings
# and merges, 3 re-SVDs, 7 refreshes in 350 steps.
DEMO = (
    *("--model", "llama-9m", "--model-config", "num_hidden_layers=2", "--vocab-size", "1024"),
    *("--sequence-length", "128", "--batch-size", "4", "--steps", "350"),
    *("--eval-tokens", "8192", "--final-tokens", "65536", "--eval-every", "50"),
    *("--checkpoint-every", "0", "--keep", "1", "--rank", "16"),
    *("--lr-ordinary", "4e-3", "--extend", "0", "--seeds", "3"),
    *("--sst.resample-every", "25", "--sst.iterations-per-round", "4", "--sst.warmup", "3"),
    *("--relora.merge-every", "25", "--relora.rewarm", "3", "--galore.refresh-every", "50"),
)


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="directory of the comparison",
)
def demo(out: Path) -> None:
    """Compare five methods on the standard library's source code, in a few minutes on two cores.

    A small LLaMA learns Python source from random weights with full rank, SST, ReLoRA*, LoRA and
    GaLore: a learning-rate sweep on one seed, then three further seeds. It ends with a table and a
    report. Run it again to continue after an interruption.
    """
    compare_lm.main([*DEMO, "--out", str(out)], standalone_mode=False)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder to write")
def merge(run: Path, out: Path) -> None:
    """Turn the newest checkpoint of RUN into an ordinary transformers checkpoint.

    The result holds no trace of spectrain: AutoModelForCausalLM.from_pretrained loads it. Its
    logits are compared with the trained model's before this command says so.
    """
    from spectrain.runs.export import export

    done = export(run, out)
    click.echo(
        f"{out}: step {done.step}, {done.tensors} tensors, {done.bytes / 2**20:.1f} MiB. Logits agree "
        f"with the trained model's: largest difference {done.difference:.2g} at logits up to "
        f"{done.largest:.3g}.\nLoad it with "
        f"transformers.AutoModelForCausalLM.from_pretrained({str(out)!r})"
    )


@click.command("methods")
@click.option("--bibtex", is_flag=True, help="print each method's papers as BibTeX")
def list_methods(bibtex: bool) -> None:
    """List the methods: the four choices each one makes, and its papers."""
    if bibtex:
        papers = {paper.key: paper for card in methods() for paper in card.papers}
        click.echo("\n\n".join(paper.bibtex() for paper in papers.values()))
        return
    for card in methods():
        click.echo(f"{click.style(card.key, bold=True)}  {card.title}: {card.summary}")
        for axis in ("parametrization", "initializer", "step_rule", "schedule"):
            click.echo(f"    {axis.replace('_', ' '):<16} {getattr(card, axis)}")
        for paper in card.papers:
            click.echo(f"    {paper.title} ({paper.year}), arXiv:{paper.arxiv}")
        settings = ", ".join(f.name for f in dataclasses.fields(registered()[card.key]))
        click.echo(f"    settings         {settings or 'none'}\n")


# --- shared ------------------------------------------------------------------------------------


def _load_task(
    values: dict[str, Any], model_config: tuple[str, ...], console: Console
) -> LanguageModelling:
    from spectrain.tasks.lm.task import LanguageModelling

    overrides = {}
    for item in model_config:
        key, separator, value = item.partition("=")
        if not separator:
            raise UsageError(f"--model-config {item!r}: give KEY=VALUE, as num_hidden_layers=2")
        overrides[key] = value
    options = built(LanguageModelOptions, values)
    with console.status("preparing the corpus") as status:
        task = LanguageModelling.load(options, overrides, progress=status.update)
    corpus = task.corpus
    tokens = ", ".join(f"{name} {len(t):,}" for name, t in corpus.splits.items())
    console.print(
        f"{corpus.name}: {tokens} tokens, vocabulary {corpus.vocab_size:,}", highlight=False
    )
    for note in corpus.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    return task


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _rates(flag: str, text: str) -> list[float]:
    try:
        return [float(word) for word in _words(text)]
    except ValueError:
        raise UsageError(
            f"{flag} {text!r}: give numbers separated by commas, as 1e-3,4e-3"
        ) from None
