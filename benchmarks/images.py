"""The SST paper's table of an MLP on MNIST, Fashion-MNIST and EMNIST, as far as the data at hand carry it.

    python benchmarks/images.py --data FOLDER                 Fashion-MNIST, 30 epochs
    python benchmarks/images.py --data FOLDER --dataset mnist --epochs 100
    python benchmarks/images.py --data FOLDER --steps 20 --seeds 1    a minute, to see that it runs
    python benchmarks/images.py --collect                     only write the table of what there is

FOLDER holds the IDX files of that data set, which are not part of this repository. The runs are one
`spectrain compare image`: interrupt it and run it again, finished trials are kept, those of this
repository too. The table goes to benchmarks/results/images/.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from statistics import mean, stdev

from kept import give_back, keep
from workers import Workers

from spectrain.runs.compare import Comparison, load_comparison
from spectrain.runs.plots import plot_comparison
from spectrain.runs.report import write_report
from spectrain.runs.summary import summarise
from spectrain.tasks.image.options import ImageOptions
from spectrain.tasks.image.task import ImageClassification

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "images"
TRIALS = RESULTS / "trials"
EPOCHS = 30
RANK, BATCH_SIZE = 16, 100
OPTIONS = (
    *("--methods", "full,lora,relora,galore,sst", "--rank", str(RANK), "--hidden", "512,512,512"),
    # Three rates for each, as wide as three can be without leaving a gap; lower where a rate is that of W
    # itself, which GaLore's is with a scale of 1.
    *("--sweep-lr", "1e-3,3e-3,1e-2", "--extend", "0", "--galore.scale", "1.0"),
    *("--full.sweep-lr", "3e-4,1e-3,3e-3", "--galore.sweep-lr", "3e-4,1e-3,3e-3"),
    *("--batch-size", str(BATCH_SIZE), "--checkpoint-every", "1000"),
)
TITLES = {"mnist": "MNIST", "emnist": "EMNIST", "fashion-mnist": "Fashion-MNIST"}
ARMS = {
    "full": "Full rank",
    "lora": "LoRA",
    "relora": "ReLoRA\\*",
    "galore": "GaLore",
    "sst": "SST",
}
# Zhao et al. (2025), table 24: test accuracy in per cent, mean and deviation. It has no GaLore.
PUBLISHED = {
    "mnist": {
        "full": (98.63, 0.04),
        "lora": (97.69, 0.10),
        "relora": (97.72, 0.05),
        "sst": (98.33, 0.04),
    },
    "emnist": {
        "full": (85.32, 0.24),
        "lora": (79.45, 0.26),
        "relora": (84.12, 0.12),
        "sst": (84.96, 0.11),
    },
    "fashion-mnist": {
        "full": (90.44, 0.06),
        "lora": (88.30, 0.01),
        "relora": (89.08, 0.16),
        "sst": (89.22, 0.06),
    },
}


def command(given: argparse.Namespace) -> list[str]:
    """What is typed behind `spectrain`; one iteration of ReLoRA* and SST is one epoch, as published."""
    options = ImageOptions(data=str(given.data), batch_size=BATCH_SIZE)
    epoch = round(ImageClassification.load(options).steps_per_epoch)
    steps = given.steps or given.epochs * epoch
    return [
        *("compare", "image", *OPTIONS),
        *("--data", str(given.data), "--steps", str(steps), "--eval-every", str(epoch)),
        *("--sst.resample-every", str(epoch), "--relora.merge-every", str(epoch)),
        *("--seeds", str(given.seeds), "--out", str(given.out / given.dataset)),
    ]


def cell(values: list[float]) -> str:
    """Mean and standard deviation of per cents."""
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{spread}" if values else "–"


def rows(comparison: Comparison, name: str) -> list[str]:
    """One for each method: ours, published, the chosen rate, trained parameters."""
    found = []
    for arm, title in ARMS.items():
        results = [
            result
            for trial, result in comparison.results.items()
            if trial.arm == arm and trial.purpose == "report" and not result.get("failed")
        ]
        best = comparison.progress.best.get(arm)
        published = PUBLISHED[name].get(arm)
        cells = (
            title,
            cell([100 * result["test_accuracy"] for result in results]),
            f"{published[0]:.2f} ± {published[1]:.2f}" if published else "–",
            f"{best.lr:g}" if best else "–",
            f"{results[0]['trainable_parameters']:,}" if results else "–",
        )
        found.append(f"| {' | '.join(cells)} |")
    return found


def collect(runs: Path) -> None:
    """Write results/images/table.md from the comparisons under `runs`, as far as they are."""
    known = {n: load_comparison(runs / n) for n in TITLES if (runs / n / "config.json").exists()}
    known = {name: comparison for name, comparison in known.items() if comparison.results}
    for name, comparison in known.items():
        asked = comparison.settings["options"]
        if asked["steps"] == EPOCHS * asked["eval_every"]:  # no shorter try
            keep(comparison.directory, TRIALS / f"{name}.jsonl")
    if not known:
        print("no comparison has results yet")
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    lines = [
        "# An MLP on images\n",
        "Made by `python benchmarks/images.py --data FOLDER`: 784-512-512-512-C with ReLU, r = "
        f"{RANK}, AdamW without decay, batches of {BATCH_SIZE}; every hidden layer is trained by the "
        "method, the output layer (its rank is that of the classes) as usual. A tenth of the training "
        "images is held out to choose rates with a seed of its own. Test accuracy in per cent, mean ± "
        "standard deviation over seeds, beside the SST paper's table 24 (100 epochs, rate 0.01 for "
        "every method; it has no GaLore, and names neither optimizer nor batch size).\n",
    ]
    for name, comparison in known.items():
        one = next(iter(comparison.results.values()))
        per_epoch = comparison.settings["options"]["eval_every"]
        done, planned = len(comparison.results), len(comparison.progress.trials)
        lines += [
            f"## {TITLES[name]}\n",
            f"{one['steps']:,} steps, {one['steps'] / per_epoch:.1f} epochs; {done} of {planned} trials.\n",
            "| method | accuracy | published | rate | trained parameters |",
            "|---|--:|--:|--:|--:|",
            *rows(comparison, name),
            "",
            *(f"- {sentence}" for sentence in summarise(comparison).sentences),
            "",
        ]
        plot_comparison(comparison)
        write_report(comparison.directory)
        shutil.copy2(comparison.directory / "results.csv", RESULTS / f"{name}.csv")
        picture = comparison.directory / "score_by_step.png"
        if picture.exists():
            shutil.copy2(picture, RESULTS / f"{name}_by_step.png")
    (RESULTS / "table.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    print(f"wrote {RESULTS / 'table.md'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the IDX files")
    parser.add_argument("--dataset", choices=TITLES, default="fashion-mnist", help="what they are")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--steps", type=int, help="instead of epochs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "runs" / "images")
    parser.add_argument("--collect", action="store_true", help="only write the table")
    given = parser.parse_args()
    code = 0
    if not given.collect:
        if given.data is None or not given.data.is_dir():
            parser.error(
                "the images are not part of this repository: give their folder with --data"
            )
        if given.steps is None and given.epochs == EPOCHS:
            give_back(TRIALS / f"{given.dataset}.jsonl", given.out / given.dataset, given.data)
        code = Workers(given.out).run_all([given.dataset], lambda _: command(given), 1)
    collect(given.out)
    sys.exit(code)


if __name__ == "__main__":
    main()
