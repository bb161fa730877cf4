"""`report`: one page for a run, a comparison, or several of them."""

from __future__ import annotations

from pathlib import Path

import click

from spectrain.errors import UsageError

_PATH = click.Path(path_type=Path)


@click.command("report")
@click.argument("runs", type=_PATH, nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--out",
    type=_PATH,
    metavar="FILE.html",
    help="default: report.html in RUN; of several, spectrain-report.html in the current folder",
)
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write one HTML page with all that is known of RUN: a run or a comparison, finished or not.

    Several are laid over each other. The page needs no network: curves that zoom and tell their values,
    spectra and sampling over training, events, memory, environment and the command. docs/report.md says
    what each part shows.
    """
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise UsageError(f"--out {out}: give a file in a folder that exists")
    if out is not None and out.suffix not in (".html", ".htm"):
        raise UsageError(f"--out {out}: give a file that ends in .html")
    from spectrain.runs.report import write_report

    path = write_report(*runs, out=out)
    click.echo(f"{path}: {path.stat().st_size / 2**20:.2f} MiB")
