"""How the order of the methods depends on the length of the run.

    python benchmarks/horizon.py                          750, 3,000 and 12,000 steps, one seed
    python benchmarks/horizon.py --steps 750 --out DIR    the first of them alone

The set-up of pretraining.py on standard-library source, each method at the rate that its sweep chose
there. SST trains r of k vectors at a time, so a run of N steps visits N·r / (200·k) times each of them
on average: 0.23, 0.94 and 3.75 here, 6 to 17 in its paper. Finished trials are kept.
"""

import argparse
import sys
from pathlib import Path

from pretraining import HERE, OPTIONS

from spectrain.cli.lm import compare_lm
from spectrain.errors import SpectrainError
from spectrain.runs.compare import load_comparison
from spectrain.runs.scores import cost_of
from spectrain.tasks.score import LOSS

METHODS = "full,sst,relora,lora"
RATES = ("--full.sweep-lr", "2e-3", "--sst.sweep-lr", "8e-3")
RATES += ("--relora.sweep-lr", "8e-3", "--lora.sweep-lr", "4e-3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[750, 3000, 12000])
    parser.add_argument("--out", type=Path, default=HERE / "runs" / "horizon")
    given = parser.parse_args()
    lines = [
        "# Test loss by length of run\n",
        "Made by `python benchmarks/horizon.py`: standard-library source, one seed, nats per token.\n",
        "| steps | passes over SST's vectors | full rank | SST | ReLoRA* | LoRA |",
        "|---|---|---|---|---|---|",
    ]
    for steps in given.steps:
        run = given.out / str(steps)
        own = ("--methods", METHODS, "--seed", "1", "--seeds", "0", "--steps", str(steps))
        try:
            compare_lm.main([*OPTIONS, *RATES, *own, "--out", str(run)], standalone_mode=False)
        except SpectrainError as error:
            sys.exit(f"Error: {error}")
        results = load_comparison(run).results
        losses = {trial.arm: cost_of(result, "test", LOSS) for trial, result in results.items()}
        figures = " | ".join(f"{losses[key]:.3f}" for key in METHODS.split(","))
        lines.append(f"| {steps:,} | {steps * 4 / (200 * 64):.2f} | {figures} |")
        target = HERE / "results" / "horizon.md"
        target.parent.mkdir(exist_ok=True)
        target.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
