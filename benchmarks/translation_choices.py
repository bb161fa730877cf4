"""The SST paper's ablations on translation, and two that it does not have: Multi30K, d = 64, r = d/8.

    python benchmarks/translation_choices.py --data FOLDER     about an hour on an idle core
    python benchmarks/translation_choices.py --collect         only write the table of what there is

FOLDER holds train, val and test_2016_flickr in .de and .en (compressed or not). The data, the network and
the rate are those of translation.py; every arm differs in one thing from the first. Finished trials are
kept, those of this repository too: interrupt it and run it again. With OMP_NUM_THREADS=1 it leaves a second
core to others.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from kept import give_back, keep
from rich.console import Console
from studies import Study, run, table

from spectrain import SST
from spectrain.tasks.score import LOSS
from spectrain.tasks.translate.options import TranslateOptions
from spectrain.tasks.translate.task import BLEU, Translation

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "translation"
TRIALS = RESULTS / "trials" / "choices.jsonl"
STEPS = 800
BASE = SST(8, resample_every=50, warmup=5, iterations_per_round=8)  # as in translation.py; 8 = d/r
ARMS = {
    "as in the table": BASE,
    # Which singular vectors are trained: the paper's table 6, and magnitude alone.
    **{
        f"sampling {name}": replace(BASE, sampling=name)
        for name in ("magnitude", "uniform", "sequential", "top")
    },
    # Table 15's "update only the sampled s" (the frozen ones move at the first step alone), and the
    # gradient of the vectors as it is, which nobody has published.
    "sampled s": replace(BASE, frozen_s_every=STEPS),
    "default gradient": replace(BASE, gradient="default"),
    # Table 16: steps of an iteration. Table 17: iterations from one SVD to the next.
    **{f"iteration {n}": replace(BASE, resample_every=n) for n in (10, 25, 100, 200)},
    **{f"round {n}": replace(BASE, iterations_per_round=n) for n in (1, 2, 16)},
}
STUDY = Study(
    "choices of SST", {name.replace(" ", "-"): arm for name, arm in ARMS.items()}, STEPS, 1.6e-2, 2
)
OPTIONS = {"dim": 64, "layers": 3, "heads": 4, "vocab_size": 4000, "batch_tokens": 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the texts")
    parser.add_argument("--out", type=Path, default=HERE / "runs" / "translation_choices")
    parser.add_argument("--collect", action="store_true", help="only write the table")
    given = parser.parse_args()
    if not given.collect:
        if given.data is None or not given.data.is_dir():
            parser.error("the texts are not part of this repository: give their folder with --data")
        give_back(TRIALS, given.out, given.data)
        task = Translation.load(
            TranslateOptions(data=str(given.data), test_set="test_2016_flickr", **OPTIONS)
        )
        run(STUDY, given.out, task, Console(), (8e-3,), exclude="head", clip=1.0)
    rows = table(STUDY, given.out, {BLEU: "{:.2f}".format, LOSS: "{:.4f}".format})
    lines = [
        "# Choices of SST, on translation\n",
        "Made by `python benchmarks/translation_choices.py --data FOLDER`: Multi30K, German to English, "
        f"Euclidean, d = 64, r = 8, {STEPS} steps of 1,024 tokens; BLEU on test_2016_flickr.\n",
        *rows,
    ]
    keep(given.out, TRIALS)
    (RESULTS / "choices.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
