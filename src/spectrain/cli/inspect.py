"""`inspect`: the spectra of a checkpoint's matrices, and what changed since another one."""

from __future__ import annotations

from pathlib import Path

import click

from spectrain.diagnostics.measures import RANK
from spectrain.errors import UsageError

_PATH = click.Path(path_type=Path)


@click.command("inspect")
@click.argument("checkpoint", type=_PATH)
@click.option(
    "--against", type=_PATH, metavar="OTHER", help="measure the change since this checkpoint"
)
@click.option("--layers", metavar="REGEX", help="only tensors whose name this is found in")
@click.option(
    "--rank",
    type=click.IntRange(min=1),
    default=RANK,
    show_default=True,
    help="of the leading subspaces whose angles --against takes",
)
@click.option("--all", "every", is_flag=True, help="a row for every matrix, however many there are")
@click.option(
    "--json", "json_file", type=_PATH, metavar="FILE", help="write everything, spectra too"
)
@click.option(
    "--plot", type=_PATH, metavar="FILE.png", help="draw spectra by kind, and blocks as a map"
)
def inspect(
    checkpoint: Path,
    against: Path | None,
    layers: str | None,
    rank: int,
    every: bool,
    json_file: Path | None,
    plot: Path | None,
) -> None:
    """Measure every weight matrix of CHECKPOINT, one at a time.

    CHECKPOINT is a folder with model.safetensors (or shards with their index), as transformers and others
    write it, a .safetensors file, a run directory or one checkpoint of a run; what is in low-rank or
    spectral form there is built layer by layer. docs/diagnostics.md defines each measure.
    """
    for option, file in (("--json", json_file), ("--plot", plot)):
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise UsageError(f"{option} {file}: give a file in a folder that exists")
    if plot is not None and plot.suffix != ".png":
        raise UsageError(f"--plot {plot}: give a file that ends in .png")
    from rich.console import Console
    from rich.progress import Progress

    from spectrain.cli.inspection_table import inspection_table
    from spectrain.runs import inspection
    from spectrain.runs.files import write_json

    errors = Console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("")

        def show(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=f"{done + 1} of {total}")

        found = inspection.inspect(checkpoint, against, layers, rank, show)
    Console().print(inspection_table(found, every))
    if json_file is not None:
        write_json(json_file, found.to_json())
    if plot is not None:
        from spectrain.runs.inspection_plot import plot_inspection

        plot_inspection(found, plot)
    for file in (json_file, plot):
        if file is not None:
            click.echo(f"written: {file}")
