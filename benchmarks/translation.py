"""Multi30K, German to English: five methods, two sizes, two geometries, as the SST paper compares them.

    python benchmarks/translation.py --data FOLDER             two at a time, some hours on two cores
    python benchmarks/translation.py --data FOLDER --only euclidean-64
    python benchmarks/translation.py --data FOLDER --steps 20 --seeds 1   minutes, to see that it runs
    python benchmarks/translation.py --collect                 only write the tables of what there is

FOLDER holds train, val and test_2016_flickr in .de and .en (compressed or not). Each size and geometry is
a `spectrain compare translate` in a process of its own with one thread: interrupt it and run it again,
finished trials are kept, those of this repository too. Results go to benchmarks/results/translation/.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import mean, stdev

from kept import give_back, keep
from workers import Workers

from spectrain.runs.compare import Comparison, load_comparison
from spectrain.runs.report import write_report
from spectrain.runs.summary import summarise

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "translation"
TRIALS = RESULTS / "trials"
STEPS = 800
SIZES = {
    f"{geometry}-{dim}": (geometry, dim)
    for dim in (64, 128)
    for geometry in ("euclidean", "hyperbolic")
}
OPTIONS = (
    *("--source", "de", "--target", "en", "--test-set", "test_2016_flickr"),
    *("--methods", "full,sst,relora,lora,galore", "--extend", "0"),
    *("--layers", "3", "--heads", "4", "--vocab-size", "4000"),
    *("--batch-tokens", "1024", "--eval-every", "200", "--checkpoint-every", "0", "--keep", "1"),
    # Periods are the paper's times this run's steps over its 40,000, and no shorter than a warm-up lets be.
    *("--sst.resample-every", "50", "--sst.warmup", "5"),
    *("--relora.merge-every", "50", "--relora.rewarm", "5"),
    *("--galore.refresh-every", "50", "--galore.scale", "1.0"),
    # As many rates for each; those of full rank and GaLore, whose rate is that of W itself, are lower.
    *("--lr-ordinary", "8e-3", "--sweep-lr", "8e-3,1.6e-2,3.2e-2"),
    *("--full.sweep-lr", "4e-3,8e-3,1.6e-2", "--galore.sweep-lr", "4e-3,8e-3,1.6e-2"),
)
ARMS = {
    "full": "Full rank",
    **{
        f"{key}-{share}": f"{title}, r = d/{share[1:]}"
        for share in ("d8", "d16")
        for key, title in (
            ("lora", "LoRA"),
            ("relora", "ReLoRA\\*"),
            ("galore", "GaLore"),
            ("sst", "SST"),
        )
    },
}


def command(name: str, given: argparse.Namespace) -> list[str]:
    """The comparison of one size and geometry, as it is typed behind `spectrain`."""
    geometry, dim = SIZES[name]
    return [
        *("compare", "translate", *OPTIONS, "--data", str(given.data)),
        *("--geometry", geometry, "--dim", str(dim), "--rank", f"{dim // 8},{dim // 16}"),
        *("--steps", str(given.steps), "--seeds", str(given.seeds)),
        *("--out", str(given.out / name)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the texts")
    parser.add_argument("--only", choices=SIZES, nargs="+", default=list(SIZES))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "runs" / "translation")
    parser.add_argument("--collect", action="store_true", help="only write the tables")
    given = parser.parse_args()
    code = 0
    if not given.collect:
        if given.data is None or not given.data.is_dir():
            parser.error("the texts are not part of this repository: give their folder with --data")
        for name in given.only if given.steps == STEPS else ():
            give_back(TRIALS / f"{name}.jsonl", given.out / name, given.data)
        workers = Workers(given.out)
        code = workers.run_all(given.only, lambda name: command(name, given), given.workers)
    collect(given.out)
    sys.exit(code)


# --- the tables --------------------------------------------------------------------------------


def collect(runs: Path) -> None:
    """Write results/translation/table.md from the comparisons under `runs`, as far as they are."""
    known = {n: load_comparison(runs / n) for n in SIZES if (runs / n / "config.json").exists()}
    for name, comparison in known.items():
        if comparison.settings["options"]["steps"] == STEPS:  # no shorter try
            keep(comparison.directory, TRIALS / f"{name}.jsonl")
    found = {n: bleu_of(c, SIZES[n][1]) for n, c in known.items()}
    found = {n: scores for n, scores in found.items() if scores}
    if not found:
        print("no comparison has results yet")
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    titles = [f"{SIZES[n][0]}, d = {SIZES[n][1]}" for n in found]
    lines = [
        "# Translation: Multi30K, German to English\n",
        "Made by `python benchmarks/translation.py --data FOLDER`: BLEU on test_2016_flickr, rates chosen "
        "by validation BLEU on one seed, other seeds reported (mean ± standard deviation where there are "
        "several).\n",
        f"| method | {' | '.join(titles)} |",
        "|---" + "|--:" * len(titles) + "|",
    ]
    for arm, title in ARMS.items():
        lines.append(f"| {title} | {' | '.join(cell(found[n].get(arm)) for n in found)} |")
    lines += [
        "\nPublished (Zhao et al. 2025, table 3; Euclidean, d = 512, r = 32, 100,000 steps of 128 "
        "sentences): full rank 40.7, LoRA 40.1, ReLoRA\\* 41.6, SST 43.4.\n",
        "\n## How\n",
    ]
    for name in found:
        comparison = known[name]
        lines += [f"### {name}\n", *(f"- {text}" for text in summarise(comparison).sentences), ""]
        write_report(comparison.directory)
    (RESULTS / "table.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    print(f"wrote {RESULTS / 'table.md'}")


def bleu_of(comparison: Comparison, dim: int) -> dict[str, list[float]]:
    """Test BLEU of the report seeds, for each arm by its share of d."""
    shares = {f"r{dim // part}": f"d{part}" for part in (8, 16)}
    found: dict[str, list[float]] = {}
    for trial in comparison.progress.trials:
        result = comparison.results.get(trial)
        if trial.purpose == "report" and result and not result.get("failed"):
            key, _, rank = trial.arm.partition("-")
            arm = f"{key}-{shares[rank]}" if rank else key
            found.setdefault(arm, []).append(result["test_bleu"])
    return found


def cell(values: list[float] | None) -> str:
    if not values:
        return "–"
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
