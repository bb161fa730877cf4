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
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from studies import Study, run, table

from spectrain import SST, GaLore
from spectrain.method import Method
from spectrain.tasks.lm.options import LanguageModelOptions
from spectrain.tasks.lm.task import LanguageModelling
from spectrain.tasks.score import LOSS

HERE = Path(__file__).parent
SMALL = {"num_hidden_layers": "2", "hidden_size": "64", "intermediate_size": "176"}
WIDE = {"num_hidden_layers": "2", "hidden_size": "128", "intermediate_size": "352"}


@dataclass(frozen=True, kw_only=True)
class LanguageStudy(Study):
    """On standard-library source."""

    model: dict[str, str]


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
    name: LanguageStudy(about, arms, steps, lr, model=model)
    for name, about, arms, steps, lr, model in (
        ("sst-r4-750", "SST, d = 64, r = 4", forms(4), 750, 8e-3, SMALL),
        ("sst-r16-1500", "SST, d = 64, r = 16", forms(16), 1500, 8e-3, SMALL),
        ("sst-r4-3000", "SST, d = 64, r = 4", forms(4), 3000, 8e-3, SMALL),
        ("sst-d128-1500", "SST, d = 128, r = 16", forms(16), 1500, 8e-3, WIDE),
        ("galore", "GaLore, d = 64, r = 4", REFRESHES, 3000, 1.6e-2, SMALL),
    )
}
OPTIONS = LanguageModelOptions(
    model="llama-9m",
    vocab_size=1024,
    sequence_length=128,
    batch_size=4,
    eval_tokens=16384,
    final_tokens=131072,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=", ".join(STUDIES))
    parser.add_argument("--out", type=Path, default=HERE / "runs" / "choices")
    parser.add_argument("--collect", action="store_true", help="only write the table")
    given = parser.parse_args()
    if unknown := set(given.studies) - set(STUDIES):
        parser.error(f"no study called {', '.join(unknown)}; there are {', '.join(STUDIES)}")
    console = Console()
    for name in (given.studies or STUDIES) if not given.collect else ():
        task = LanguageModelling.load(OPTIONS, STUDIES[name].model)
        run(STUDIES[name], given.out / name, task, console, (4e-3,))
    lines = [
        "# What the cheap variants cost in loss\n",
        "Made by `python benchmarks/choices.py`: standard-library source, LLaMA, test loss in nats per "
        "token.",
    ]
    for name, study in STUDIES.items():
        if rows := table(study, given.out / name, {LOSS: "{:.4f}".format}):
            tokens = OPTIONS.batch_size * OPTIONS.sequence_length
            lines.append(
                f"\n## {name}: {study.about}, {study.steps:,} steps of {tokens:,} tokens\n"
            )
            lines += rows
    (HERE / "results" / "choices.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
