"""The SST paper's table of hyperbolic graph networks, as far as the graphs at hand carry it.

    python benchmarks/hyperbolic.py --data FOLDER             all tasks, two at a time, under two hours
    python benchmarks/hyperbolic.py --data FOLDER --only cora-links
    python benchmarks/hyperbolic.py --data FOLDER --steps 60 --seeds 1   some minutes, to see that it runs
    python benchmarks/hyperbolic.py --collect                 only write the tables of what there is

FOLDER holds airport.npz, cora.npz, disease_lp.npz and disease_nc.npz. Each task is a `spectrain compare
graph` in a process of its own with one thread: interrupt it and run it again, finished trials are kept.
Results go to benchmarks/results/hyperbolic/.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hyperbolic_report import collect
from workers import Workers

HERE = Path(__file__).parent
# In this order two workers end at about the same time, and never have both of the large graphs, which would
# wait for the same memory. The grids are factors of two around rates that suit full rank, the same for all
# methods.
TASKS = {
    "cora-links": ("cora.npz", "links", "5e-3,1e-2,2e-2"),
    "airport-nodes": ("airport.npz", "nodes", "1e-2,2e-2,4e-2"),
    "cora-nodes": ("cora.npz", "nodes", "2.5e-3,5e-3,1e-2"),
    "airport-links": ("airport.npz", "links", "5e-3,1e-2,2e-2"),
    "disease-links": ("disease_lp.npz", "links", "5e-3,1e-2,2e-2"),
    # The features of Disease's node classification are lost: its nodes are known by their numbers alone.
    "disease-nodes": ("disease_nc.npz", "nodes", "2.5e-3,5e-3,1e-2"),
}
OPTIONS = (
    *("--model", "hybonet", "--dim", "16", "--rank", "1,2"),
    *("--methods", "full,sst,relora,lora,galore", "--extend", "0"),
    # The paper's periods for these graphs: 100 steps, all of them warm-up; d/r = k/r iterations a round.
    # What it does not say of ReLoRA* and GaLore is taken alike; GaLore's scale is the paper's.
    *("--sst.resample-every", "100", "--sst.warmup", "100"),
    *("--relora.merge-every", "100", "--galore.refresh-every", "100", "--galore.scale", "1.0"),
    *("--checkpoint-every", "1000"),
)


def command(name: str, given: argparse.Namespace) -> list[str]:
    """The comparison of one task, as it is typed behind `spectrain`."""
    file, predict, rates = TASKS[name]
    return [
        *("compare", "graph", *OPTIONS),
        *("--data", str(given.data / file), "--predict", predict, "--sweep-lr", rates),
        *("--steps", str(given.steps), "--seeds", str(given.seeds)),
        *("--out", str(given.out / name)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the graphs")
    parser.add_argument("--only", choices=TASKS, nargs="+", default=list(TASKS))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "runs" / "hyperbolic")
    parser.add_argument("--collect", action="store_true", help="only write the tables")
    given = parser.parse_args()
    code = 0
    if not given.collect:
        if given.data is None or not given.data.is_dir():
            parser.error(
                "the graphs are not part of this repository: give their folder with --data"
            )
        workers = Workers(given.out)
        code = workers.run_all(given.only, lambda name: command(name, given), given.workers)
    collect(given.out, list(TASKS))
    sys.exit(code)


if __name__ == "__main__":
    main()
