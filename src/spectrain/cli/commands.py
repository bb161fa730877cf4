"""`demo` and `methods`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from spectrain.cli.lm import compare_lm
from spectrain.method import methods, registered

# Periods are scaled to the budget so that every method lives through its events: in 600 steps 14
# resamplings and merges, 2 re-SVDs, 6 refreshes.
DEMO = (
    *("--model", "llama-9m", "--model-config", "num_hidden_layers=2"),
    *("--model-config", "hidden_size=64", "--model-config", "intermediate_size=176"),
    *("--vocab-size", "1024", "--sequence-length", "128", "--batch-size", "4", "--steps", "600"),
    *("--eval-tokens", "8192", "--final-tokens", "65536", "--eval-every", "100"),
    *("--checkpoint-every", "0", "--keep", "1", "--rank", "4"),
    *("--lr-ordinary", "4e-3", "--extend", "0", "--seeds", "3"),
    *("--sweep-lr", "4e-3,8e-3,1.6e-2", "--full.sweep-lr", "1e-3,2e-3,4e-3"),
    *("--galore.sweep-lr", "1.6e-2,3.2e-2,6.4e-2"),
    *("--galore.refresh-every", "100"),
    *("--sst.resample-every", "40", "--sst.iterations-per-round", "5", "--sst.warmup", "4"),
    *("--relora.merge-every", "40", "--relora.rewarm", "4"),
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
    click.echo(
        "\nThe order depends on the length of the run, and this one is short: at 12,000 steps SST and "
        "ReLoRA* are ahead of LoRA (benchmarks/horizon.py)."
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
