"""How far factors' gradients follow those of a full-rank twin: the SST paper's figure 2.

    python benchmarks/gradient_norms.py             about 15 minutes on an idle core
    python benchmarks/gradient_norms.py --collect   only write the table of what there is

The set-up of pretraining.py on standard-library source over 2,000 steps, each method at the rate that its
sweep chose there, with a look at every 20th step; a seed gives all methods the same initial weights and the
same batches. Finished trials are kept: interrupt it and run it again. Writes results/gradient_norms.md and
.png.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pretraining import HERE, OPTIONS

from spectrain.cli.lm import compare_lm
from spectrain.diagnostics.dynamics import gradient_correlation, gradient_norms
from spectrain.errors import SpectrainError
from spectrain.runs.compare import Comparison, load_comparison
from spectrain.runs.files import read_rows

METHODS = "full,sst,relora,lora,galore"
RATES = {"full": "2e-3", "sst": "8e-3", "relora": "8e-3", "lora": "4e-3", "galore": "1.6e-2"}
STEPS, SEEDS = 2000, 2  # further seeds, beside the first
PUBLISHED = {("sst", "U_active"): "0.85", ("relora", "A"): "0.58"}
SHOWN = (
    ("full", "weight"),
    ("sst", "U_active"),
    ("sst", "V_active"),
    ("relora", "A"),
    ("relora", "B"),
)
Rows = list[dict[str, object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "runs" / "gradient_norms")
    parser.add_argument("--collect", action="store_true", help="only write the table")
    given = parser.parse_args()
    if not given.collect:
        rates = (word for key, rate in RATES.items() for word in (f"--{key}.sweep-lr", rate))
        own = ("--methods", METHODS, "--steps", str(STEPS), "--seeds", str(SEEDS))
        look = ("--look-every", "20", "--extend", "0")
        try:
            command = [*OPTIONS, *rates, *own, *look, "--out", str(given.out)]
            compare_lm.main(command, standalone_mode=False)
        except SpectrainError as error:
            sys.exit(f"Error: {error}")
    comparison = load_comparison(given.out)
    looks = {(t.arm, t.seed): rows_of(comparison, t.slug) for t in comparison.results}
    lines = [
        "# Gradient norms beside those of full rank\n",
        "Made by `python benchmarks/gradient_norms.py`: standard-library source, d = 64, r = 4, "
        f"{STEPS:,} steps of 512 tokens, looks at every 20th. Pearson's correlation over looks of the norm "
        "of a factor's gradient with that of the same layer's W in the full-rank run of the same seed; the "
        "mean over layers, then over seeds (± standard deviation). The same after the first tenth of the "
        "run, in which they change the most.\n",
        "| method | factor | correlation | after the first tenth | published | seeds |",
        "|---|---|--:|--:|--:|--:|",
        *table(looks),
        "\nPublished (Zhao et al. 2025, figure 2): OPT-125M, OpenWebText, r = 64.\n",
        "![Gradient norms over training](gradient_norms.png)",
    ]
    (HERE / "results" / "gradient_norms.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    picture(looks)


def rows_of(comparison: Comparison, slug: str) -> Rows:
    return read_rows(comparison.directory / "trials" / slug / "dynamics.jsonl")


def table(looks: dict[tuple[str, int], Rows]) -> Iterator[str]:
    """A line for each method and kind of factor."""
    late = {key: [row for row in rows if row["step"] > STEPS // 10] for key, rows in looks.items()}
    seeds = sorted(seed for arm, seed in looks if arm == "full")
    for arm in METHODS.split(",")[1:]:
        own = [seed for seed in seeds if (arm, seed) in looks]
        for factor in factors(looks[arm, own[0]]) if own else ():
            cells = [
                written([gradient_correlation(of[arm, s], of["full", s], factor) for s in own])
                for of in (looks, late)
            ]
            published = PUBLISHED.get((arm, factor), "–")
            yield f"| {arm} | {factor} | {' | '.join(cells)} | {published} | {len(own)} |"


def factors(rows: Rows) -> list[str]:
    """The kinds of factors that looks have gradients of."""
    layers = [row["layers"] for row in rows if isinstance(row.get("layers"), dict)]
    return list({f: None for look in layers for v in look.values() for f in v.get("gradient", {})})


def written(values: list[float]) -> str:
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return "–"
    spread = f" ± {stdev(known):.2f}" if len(known) > 1 else ""
    return f"{mean(known):.2f}{spread}".replace("-", "−")


def picture(looks: dict[tuple[str, int], Rows]) -> None:
    """Median over layers of a seed's norms, each over its own mean."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes: Axes = figure.add_subplot()
    for place, (arm, factor) in enumerate(SHOWN):
        if (arm, 0) not in looks:
            continue
        norms = gradient_norms(looks[arm, 0], factor)
        steps = sorted({step for of in norms.values() for step in of})
        level = {layer: np.mean(list(of.values())) or 1.0 for layer, of in norms.items()}
        medians = [
            np.median([of[step] / level[layer] for layer, of in norms.items() if step in of])
            for step in steps
        ]
        axes.plot(
            steps,
            medians,
            label=f"{arm}: {factor}",
            linestyle=("-", "--", ":", "-.", (0, (5, 1)))[place],
        )
    axes.set(xlabel="step", ylabel="gradient norm over its mean", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(HERE / "results" / "gradient_norms.png", dpi=120)


if __name__ == "__main__":
    main()
