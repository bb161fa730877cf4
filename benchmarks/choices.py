"""What the cheap variants cost in loss: forms of SST, and GaLore's refresh.

    python benchmarks/choices.py                      all studies
    python benchmarks/choices.py galore sst-r4-750    some of them
    python benchmarks/choices.py --collect            only write the table of what there is

Within a study all arms have the same data, rates, seeds and budget, so a difference is the choice's
alone; a seed gives all arms the same initial weights, and the noise floor is that of paired
differences. Rates are those that pretraining.py's sweeps chose for the published form, not swept again
for each variant. Finished trials are kept: interrupt it and run it again. With OMP_NUM_THREADS=1 two
studies can run side by side on two cores.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from rich.console import Console

from spectrain import SST, GaLore
from spectrain.errors import SpectrainError
from spectrain.method import Method
from spectrain.runs.compare import load_comparison
from spectrain.runs.jobs import compare
from spectrain.runs.options import RunOptions
from spectrain.runs.scores import cost_of
from spectrain.runs.statistics import seed_noise
from spectrain.runs.view import Terminal
from spectrain.tasks.lm.options import LanguageModelOptions
from spectrain.tasks.lm.task import LanguageModelling
from spectrain.tasks.score import LOSS

HERE = Path(__file__).parent
SMALL = {"num_hidden_layers": "2", "hidden_size": "64", "intermediate_size": "176"}
WIDE = {"num_hidden_layers": "2", "hidden_size": "128", "intermediate_size": "352"}


@dataclass(frozen=True)
class Study:
    """Arms that differ in one choice; the first is what the others are compared with."""

    about: str
    arms: dict[str, Method]
    steps: int
    lr: float
    model: dict[str, str]
    batch_size: int = 4
    seeds: int = 3


def forms(rank: int, resample_every: int = 200, rounds: int = 4) -> dict[str, Method]:
    published = SST(rank, resample_every=resample_every, iterations_per_round=rounds)
    residual = replace(published, residual=True, iterations_per_round=None)
    return {
        "published": published,
        "frozen-s-4": replace(published, frozen_s_every=4),
        "residual": residual,
        "residual-randomized": replace(residual, decomposition="randomized"),
    }


PUBLISHED = GaLore(4, projector="svd", moments="keep")
REFRESHES: dict[str, Method] = {
    "published": PUBLISHED,
    "rotate": replace(PUBLISHED, moments="rotate"),
    "subspace": replace(PUBLISHED, projector="subspace"),
    "subspace-rotate": replace(PUBLISHED, projector="subspace", moments="rotate"),
    "randomized": replace(PUBLISHED, projector="randomized"),
}

STUDIES = {
    "sst-r4-750": Study("SST, d = 64, r = 4", forms(4), 750, 8e-3, SMALL),
    "sst-r16-1500": Study("SST, d = 64, r = 16", forms(16), 1500, 8e-3, SMALL),
    "sst-r4-3000": Study("SST, d = 64, r = 4", forms(4), 3000, 8e-3, SMALL),
    "sst-d128-1500": Study("SST, d = 128, r = 16", forms(16), 1500, 8e-3, WIDE),
    "galore": Study("GaLore, d = 64, r = 4", REFRESHES, 3000, 1.6e-2, SMALL),
}


def run(name: str, study: Study, out: Path, console: Console) -> None:
    options = LanguageModelOptions(
        model="llama-9m",
        vocab_size=1024,
        sequence_length=128,
        batch_size=study.batch_size,
        eval_tokens=16384,
        final_tokens=131072,
    )
    task = LanguageModelling.load(options, study.model)
    settings = RunOptions(steps=study.steps, lr=study.lr, eval_every=0, checkpoint_every=0, keep=1)
    with Terminal(console, task.unit) as view:
        compare(
            task,
            study.arms,
            dict.fromkeys(study.arms, (study.lr,)),
            settings,
            ordinary_rates=(4e-3,),
            report_seeds=tuple(range(1, study.seeds)),  # seed 0 chooses nothing, so it counts too
            max_extensions=0,
            out=out / name,
            view=view,
        )


def table(name: str, study: Study, directory: Path) -> list[str]:
    """The study's rows, of the arms that have finished all seeds."""
    if not (directory / "config.json").is_file():
        return []
    found: dict[str, dict[int, float]] = {}
    for trial, result in load_comparison(directory).results.items():
        found.setdefault(trial.arm, {})[trial.seed] = cost_of(result, "test", LOSS)
    losses = {
        arm: [of[seed] for seed in sorted(of)]
        for arm in study.arms
        if len(of := found.get(arm, {})) == study.seeds
    }
    if len(losses) < 2:
        return []
    noise = seed_noise(list(losses.values()))
    floor = noise.floor(study.seeds, study.seeds) if noise else float("nan")
    base = mean(next(iter(losses.values())))
    lines = [
        f"\n## {name}: {study.about}, {study.steps:,} steps of {128 * study.batch_size:,} tokens\n",
        f"{study.seeds} seeds, rate {study.lr:g}; noise floor of a difference {floor:.4f} nats.\n",
        "| arm | test loss | against the first | more than noise |",
        "|---|---|---|---|",
    ]
    for arm, values in losses.items():
        difference = mean(values) - base
        verdict = "yes" if abs(difference) > floor else "no"
        shown = ("–", "–") if arm == next(iter(losses)) else (f"{difference:+.4f}", verdict)
        lines.append(f"| {arm} | {mean(values):.4f} | {shown[0]} | {shown[1]} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=", ".join(STUDIES))
    parser.add_argument("--out", type=Path, default=HERE / "runs" / "choices")
    parser.add_argument("--collect", action="store_true", help="only write the table")
    given = parser.parse_args()
    if unknown := set(given.studies) - set(STUDIES):
        parser.error(f"no study called {', '.join(unknown)}; there are {', '.join(STUDIES)}")
    console = Console()
    for name in given.studies or STUDIES:
        if not given.collect:
            try:
                run(name, STUDIES[name], given.out, console)
            except SpectrainError as error:
                sys.exit(f"Error: {error}")
    lines = [
        "# What the cheap variants cost in loss\n",
        "Made by `python benchmarks/choices.py`: standard-library source, LLaMA, test loss in nats per "
        "token.",
    ]
    for name, study in STUDIES.items():
        lines += table(name, study, given.out / name)
    (HERE / "results" / "choices.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
