"""The committed experiment: five methods pre-train a small LLaMA, on two corpora.

    python benchmarks/pretraining.py stdlib                       standard-library source
    python benchmarks/pretraining.py novels --data FOLDER         English novels (train/valid/test.txt.gz)
    python benchmarks/pretraining.py stdlib --steps 60 --seeds 1  a few minutes, to see that it runs

Each is a `spectrain compare lm`: interrupt it and run it again, finished trials are kept. When it
ends, or with --collect at any time, table, CSV and picture are copied to benchmarks/results/.
Set OMP_NUM_THREADS=1 to run both corpora side by side on two cores, as the committed results were.
"""

import argparse
import shutil
import sys
from pathlib import Path

from spectrain.cli.lm import compare_lm
from spectrain.errors import SpectrainError
from spectrain.runs.compare import load_comparison
from spectrain.runs.plots import plot_comparison
from spectrain.runs.report import write_report
from spectrain.runs.summary import summarise

HERE = Path(__file__).parent
# d = 64 and r = 4, as in the smallest rows of the SST paper's table 1. Every method has three rates, a
# factor of two apart, placed by shorter trial runs; all grids may grow where a best one is at an edge.
OPTIONS = (
    *("--model", "llama-9m", "--model-config", "num_hidden_layers=2"),
    *("--model-config", "hidden_size=64", "--model-config", "intermediate_size=176"),
    *("--vocab-size", "1024", "--sequence-length", "128", "--batch-size", "4", "--rank", "4"),
    *("--lr-ordinary", "4e-3", "--extend", "1"),
    *("--sweep-lr", "4e-3,8e-3,1.6e-2", "--full.sweep-lr", "1e-3,2e-3,4e-3"),
    *("--galore.sweep-lr", "8e-3,1.6e-2,3.2e-2"),
    # Periods are the papers' (200 steps), but a round is 4 iterations instead of k/r = 16, which would
    # be longer than the run: so there are 3 re-SVDs in 3,000 steps.
    *("--sst.iterations-per-round", "4"),
    # The published refresh: an exact basis, moments left in the old coordinates.
    *("--galore.projector", "svd", "--galore.moments", "keep"),
    *("--eval-every", "250", "--eval-tokens", "16384", "--final-tokens", "131072"),
    *("--checkpoint-every", "1000", "--keep", "1"),
)


def collect(run: Path, name: str) -> None:
    """Copy what the comparison in `run` found so far to results/: table, rows, pictures."""
    comparison = load_comparison(run)
    plot_comparison(comparison)
    write_report(run)
    summary = summarise(comparison)
    done, needed = len(comparison.results), len(comparison.progress.trials)
    folder = " --data FOLDER" if name == "novels" else ""
    lines = [
        f"# Pre-training on {name}\n",
        f"Made by `python benchmarks/pretraining.py {name}{folder}`: {done} of {needed} trials finished.\n",
        "| " + " | ".join(summary.columns) + " |",
        "|" + "---|" * len(summary.columns),
        *("| " + " | ".join(row) + " |" for row in summary.cells),
        "",
        *(f"- {sentence}" for sentence in summary.sentences),
        *(f"- [{i}] {note}" for i, note in enumerate(summary.footnotes, 1)),
    ]
    target = HERE / "results" / name
    target.mkdir(parents=True, exist_ok=True)
    (target / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for file in (run / "results.csv", *run.glob("*.png")):
        shutil.copy2(file, target / file.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", choices=("stdlib", "novels"))
    parser.add_argument("--data", help="folder of the novels")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "runs")
    parser.add_argument("--collect", action="store_true", help="only copy what there is")
    given = parser.parse_args()
    if given.corpus == "novels" and not given.data and not given.collect:
        parser.error("the novels are not part of this repository: give their folder with --data")
    run = given.out / given.corpus
    if not given.collect:
        budget = ["--steps", str(given.steps), "--seeds", str(given.seeds), "--out", str(run)]
        data = ["--data", given.data] if given.data else []
        try:
            compare_lm.main([*OPTIONS, *budget, *data], standalone_mode=False)
        except SpectrainError as error:
            sys.exit(f"Error: {error}")
    collect(run, given.corpus)


if __name__ == "__main__":
    main()
