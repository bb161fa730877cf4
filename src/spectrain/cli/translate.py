"""`train translate`, `compare translate`, and `translate`: their options, and what is done with them."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from spectrain.cli import training
from spectrain.cli.options import SectionedCommand, built, options_of
from spectrain.errors import UsageError
from spectrain.runs.options import RunOptions
from spectrain.tasks.translate.options import TranslateOptions
from spectrain.tasks.translate.recipes import NOTES, RECIPES, recipe_for

if TYPE_CHECKING:
    from rich.console import Console

    from spectrain.tasks.translate.task import Translation
    from spectrain.tasks.translate.translating import Translating

DEFAULTS: dict[str, Any] = {"exclude": "head", "lr": 2e-3, "clip": 1.0}
NOT_HERE = ("compile", "shard")  # batches change their shape; their rows have unequal weights
RECIPE = click.Option(
    ["--recipe"],
    default="none",
    show_default=True,
    help=f"settings of the SST paper's experiments, where no flag gives them: {', '.join(RECIPES)}",
)


def _train_translate(out: Path, fork: Path | None, method: str, recipe: str, **values: Any) -> None:
    chosen = training.chosen_method(method, values)
    values = _settled(values, recipe, full_rank=not training.has_rank(method))
    options, task_options = built(RunOptions, values), built(TranslateOptions, values)
    console, result, report = training.run_training(
        lambda console: _task(task_options, recipe, console), chosen, options, out, fork
    )
    target = task_options.target
    training.summarise(
        console,
        chosen,
        result,
        [
            ("BLEU", f"{result['validation_bleu']:.2f} validation, {result['test_bleu']:.2f} test"),
            ("loss", f"{result['validation_loss']:.4f} validation, {result['test_loss']:.4f} test"),
        ],
        [
            ("translations", str(out / f"translation.{target}")),
            ("report", str(report)),
            ("next", f"spectrain translate {out} < text.{task_options.source}"),
        ],
    )


train_translate = SectionedCommand(
    "translate",
    callback=_train_translate,
    help="Train an encoder–decoder Transformer on parallel text, in Euclidean or hyperbolic space.\n\n"
    "Example: spectrain train translate --method sst --method.rank 16 --steps 400 --out runs/numbers\n\n"
    "Example: spectrain train translate --data multi30k --source de --target en --method full "
    "--out runs/captions\n\nResults are of the last checkpoint; with --patience, of the best on validation "
    "data (as large as --steps, it stops nothing early).",
    sections=[
        ("Run", [*training.RUN, RECIPE]),
        ("Text and model", options_of(TranslateOptions)),
        ("Training", options_of(RunOptions, skip=NOT_HERE, defaults=DEFAULTS)),
        *training.method_sections(),
    ],
)


def _compare_translate(recipe: str, **values: Any) -> None:
    values = _settled(values, recipe, full_rank=False)
    task_options = built(TranslateOptions, values)
    training.run_comparison(lambda console: _task(task_options, recipe, console), values)


compare_translate = SectionedCommand(
    "translate",
    callback=_compare_translate,
    help="Compare methods at training a translator: the same data order, budget and number of trials for "
    "each.\n\nFinished trials are kept; the same command continues. "
    "Example: spectrain compare translate --methods full,sst,lora --rank 8,16 --steps 400 --out runs/cmp",
    sections=[
        ("Comparison", [*training.comparison(16, "1e-3,2e-3,4e-3"), RECIPE]),
        ("Text and model", options_of(TranslateOptions)),
        ("Training", options_of(RunOptions, skip=("lr", *NOT_HERE), defaults=DEFAULTS)),
        *training.arm_sections(),
    ],
)


def _settled(values: dict[str, Any], recipe: str, *, full_rank: bool) -> dict[str, Any]:
    """The values with the recipe's where no flag gave one."""
    source = click.get_current_context().get_parameter_source
    silent = None, ParameterSource.DEFAULT  # None: not an option of this command
    given = {name: value for name, value in values.items() if source(name) not in silent}
    return values | recipe_for(recipe, given, full_rank) | given


def _task(options: TranslateOptions, recipe: str, console: Console) -> Translation:
    """Load it, and print what is learned from."""
    from spectrain.tasks.translate.task import Translation

    with console.status("reading the text and learning its vocabulary"):
        task = Translation.load(options)
    notes = [*task.notes(), *([NOTES[recipe]] if recipe in NOTES else [])]
    for line in (task.describe(), *(f"note: {note}" for note in notes)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return task


@click.command("translate")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--beam", type=click.IntRange(1, 1000), help="beams; default: as in training")
@click.option(
    "--length-penalty",
    type=click.FloatRange(min=0),
    help="α of log p / ((5 + length)/6)^α; default: as in training",
)
@click.option(
    "--checkpoint",
    "which",
    metavar="last|best|STEP",
    help="of a run: which one; default: the one that the run's results are of",
)
def translate(run: Path, beam: int | None, length_penalty: float | None, which: str | None) -> None:
    """Translate standard input, line by line, to standard output, once all of it is read.

    Lines of more tokens than --max-length was in training are cut, and it is said how many.

    RUN is the directory of a run of `train translate`, or what `merge` made of it.

    Example: spectrain translate runs/captions < captions.de > captions.en
    """
    from spectrain.cli.merge import checkpoint_named

    translator = _translator(run, checkpoint_named(which))
    try:
        texts = sys.stdin.buffer.read().decode("utf-8").removeprefix("\ufeff").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"standard input is not UTF-8 text ({error.reason} at byte {error.start:,}): convert it first"
        ) from None
    texts = texts if texts[-1] else texts[:-1]
    if cut := translator.cut(texts):
        most = translator.max_length
        click.echo(f"Warning: {cut:,} lines are longer than {most} tokens and cut", err=True)
    for text in translator(texts, beam=beam, length_penalty=length_penalty):
        click.echo(text)


def _translator(run: Path, which: str | int | None) -> Translating:
    """What a run has trained, or what was merged from one."""
    from spectrain.runs.export import export
    from spectrain.tasks.translate.plain import LOADER, load_translator

    if not (run / "checkpoints").is_dir() and (run / "config.json").is_file():
        if which is not None:
            raise UsageError(f"--checkpoint {which}: {run} is one merged model, no run")
        return load_translator(run)
    with tempfile.TemporaryDirectory() as folder:
        done = export(run, Path(folder) / "plain", which=which)
        if done.loader != LOADER:
            raise UsageError(f"{run} is no run of train translate, so it cannot translate")
        return load_translator(done.directory)
