"""`merge`: a run's checkpoint as an ordinary model, pruned where that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from spectrain.errors import UsageError
from spectrain.pruning import BY, Pruning

if TYPE_CHECKING:
    from rich.table import Table

    from spectrain.runs.prune import Pruned

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("run", type=_PATH)
@click.option("--out", type=_PATH, help="folder to write the ordinary model to")
@click.option(
    "--peft",
    type=_PATH,
    metavar="DIR",
    help="instead: folder to write what fine-tuning has changed to, as a LoRA adapter that peft loads",
)
@click.option(
    "--peft-rank", type=int, metavar="N", help="rank of an adapter that is cut from a change's SVD"
)
@click.option(
    "--peft-energy",
    type=float,
    metavar="SHARE",
    help="instead of a rank: the share of each layer's squared singular values that it keeps, as 0.95",
)
@click.option(
    "--checkpoint",
    "which",
    metavar="last|best|STEP",
    help="which one: the newest, the best on validation data, or that of a step; default: the one that "
    "the run's results are of, the best with --patience and else the newest",
)
@click.option(
    "--prune",
    "share",
    type=float,
    metavar="SHARE",
    help="keep the largest singular values of each layer that the method trains, up to this share of "
    "their sum: 0.9",
)
@click.option(
    "--prune-by",
    "by",
    metavar="|".join(BY),
    help="the share is of each layer's sum, or of the sum over all layers, by one threshold for all of "
    "them; default: layer",
)
@click.option(
    "--factored",
    is_flag=True,
    help="store a pruned layer as two thin matrices where these are smaller: less memory, less time",
)
@click.option("--verbose", is_flag=True, help="list the ranks that --prune keeps")
def merge(
    run: Path,
    out: Path | None,
    peft: Path | None,
    peft_rank: int | None,
    peft_energy: float | None,
    which: str | None,
    share: float | None,
    by: str | None,
    factored: bool,
    verbose: bool,
) -> None:
    """Turn a checkpoint of RUN into that of an ordinary model.

    A language model's holds no trace of spectrain: AutoModelForCausalLM.from_pretrained loads it. Other
    networks have their plain weights, and the function that loads them is printed. What comes out is
    compared with the trained model's outputs before this command says so.

    With --prune, RUN may also be a transformers folder of any causal language model with safetensors;
    every linear layer but the output head is pruned then. docs/pruning.md says more.

    With --peft, an adapter is written that peft.PeftModel.from_pretrained adds to the base model: exactly,
    if LoRA was trained; after other methods cut from the SVD of the change. docs/adapters.md says more.
    """
    pruning = _pruning(share, by, factored, verbose)
    which_one = checkpoint_named(which)
    if (out is None) == (peft is None):
        raise UsageError(
            "give --out DIR for an ordinary model or --peft DIR for an adapter, one of them"
        )
    if peft is not None:
        if pruning is not None:
            raise UsageError("--prune is of ordinary models: give --out DIR, or leave --prune out")
        _merge_to_adapter(run, peft, which_one, peft_rank, peft_energy)
        return
    assert out is not None
    if peft_rank is not None or peft_energy is not None:
        raise UsageError(
            "--peft-rank and --peft-energy belong to --peft: give --peft DIR with them"
        )
    from rich.console import Console
    from rich.progress import Progress

    from spectrain.runs.export import export

    errors = Console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("", visible=False)

        def show(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=name, visible=True)

        done = export(run, out, which=which_one, pruning=pruning, factored=factored, progress=show)
    step = "" if done.step is None else f"step {done.step}, "
    size = f"{out}: {step}{done.tensors} tensors, {done.bytes / 2**20:.1f} MiB."
    most = f"largest difference {done.difference:.2g} at logits up to {done.largest:.3g}"
    if done.pruned is None:
        click.echo(f"{size} Logits agree with the trained model's: {most}.")
    else:
        click.echo(size)
        if verbose:
            Console().print(_table(done.pruned))
        click.echo("\n".join(_summary(done.pruned)))
        click.echo(f"Logits were moved by pruning: {most}.")
    click.echo(f"Load it with {done.loader}({str(out)!r})")


def _merge_to_adapter(
    run: Path, out: Path, which: str | int | None, rank: int | None, energy: float | None
) -> None:
    from spectrain.runs.adapter import export_adapter
    from spectrain.runs.changes import Truncation

    asked = None if rank is None and energy is None else Truncation(rank, energy)
    done = export_adapter(run, out, which, asked)
    ranks = [layer.rank for layer in done.layers]
    click.echo(
        f"{out}: step {done.step}, adapter of {len(ranks)} layers, ranks {min(ranks)} … {max(ranks)}, "
        f"{done.bytes / 2**20:.2f} MiB"
        + (f"; saved whole: {', '.join(done.modules)}." if done.modules else ".")
    )
    most = f"largest difference {done.difference:.2g} at logits up to {done.largest:.3g}"
    if not done.error:
        click.echo(f"Its factors are those that were trained; with the base model, {most}.")
    else:
        worst, most_left = done.worst, done.worst.left_out / done.worst.norm
        click.echo(
            f"Left out of the change: {done.error:.3g} of its norm, at most {most_left:.3g} "
            f"({worst.name}). Logits were moved by that: {most}."
        )
    click.echo(f"Load it with peft.PeftModel.from_pretrained(base_model, {str(out)!r})")


def checkpoint_named(which: str | None) -> str | int | None:
    """The value of --checkpoint as `export` takes it."""
    if which is None or which in ("last", "best"):
        return which
    if not which.isdecimal():
        raise UsageError(f"--checkpoint {which}: give last, best or the number of a step")
    return int(which)


def _pruning(share: float | None, by: str | None, factored: bool, verbose: bool) -> Pruning | None:
    if share is not None:
        return Pruning(share) if by is None else Pruning(share, by)
    given = {"--prune-by": by is not None, "--factored": factored, "--verbose": verbose}
    if alone := [flag for flag, is_there in given.items() if is_there]:
        raise UsageError(
            f"{alone[0]} belongs to --prune: give --prune SHARE with it, as in --prune 0.9"
        )
    return None


def _summary(pruned: Pruned) -> list[str]:
    ranks = [layer.rank for layer in pruned.layers]
    thin = sum(layer.is_thin for layer in pruned.layers)
    how = "layer by layer" if pruned.pruning.by == "layer" else "by one threshold for all layers"
    before, after = pruned.parameters
    lines = [
        f"Pruned to {pruned.pruning.share:g} of the sum of singular values, {how}: {len(ranks)} layers, "
        f"ranks {min(ranks)} … {max(ranks)}, relative change up to {pruned.most_changed.change:.3g} "
        f"({pruned.most_changed.name}).",
    ]
    as_factors = f"{thin} of them are smaller as two factors; "
    if pruned.factored:
        lines.append(
            f"{as_factors}so stored, the model has {after:,} numbers instead of {before:,} "
            f"({after / before:.3f}), {pruned.bytes[1]:,} bytes instead of {pruned.bytes[0]:,}, and these "
            f"layers need {pruned.ratio:.3f} of the multiplications."
        )
    else:
        lines.append(
            f"{as_factors}the model keeps its {before:,} numbers ({pruned.bytes[0]:,} bytes), and with "
            f"--factored these layers would have {pruned.ratio:.3f} of theirs, and of the multiplications."
        )
    return lines


def _table(pruned: Pruned) -> Table:
    """A row for every layer."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("layer", overflow="fold")
    for heading in ("shape", "rank", "of", "share kept", "change", "stored"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in pruned.layers:
        table.add_row(
            layer.name,
            "×".join(map(str, layer.shape)),
            str(layer.rank),
            str(min(layer.shape)),
            f"{layer.share:.3f}",
            f"{layer.change:.3g}",
            "factors" if pruned.factored and layer.is_thin else "dense",
        )
    return table
