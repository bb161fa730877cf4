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
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hyperbolic_report import collect

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
    """The comparison of one task, as it is typed."""
    file, predict, rates = TASKS[name]
    return [
        *(sys.executable, "-m", "spectrain", "compare", "graph", *OPTIONS),
        *("--data", str(given.data / file), "--predict", predict, "--sweep-lr", rates),
        *("--steps", str(given.steps), "--seeds", str(given.seeds)),
        *("--out", str(given.out / name)),
    ]


class Workers:
    """The comparisons that run now; one Ctrl-C is passed on to each of them, and none begins any more."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def stop(self, *_: object) -> None:
        print("stopping; the same command continues", flush=True)
        self.stopped = True
        for process in self.running:
            process.send_signal(signal.SIGINT)

    def run(self, name: str, given: argparse.Namespace) -> int:
        """One task to its end; its exit code. What it prints goes to a file beside its directory."""
        if self.stopped:
            return 130
        given.out.mkdir(parents=True, exist_ok=True)
        with (given.out / f"{name}.log").open("a", encoding="utf-8") as log:
            print(f"{name}: begins, see {log.name}", flush=True)
            process = subprocess.Popen(
                command(name, given),
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self.running.add(process)
            code = process.wait()
            self.running.discard(process)
        print(f"{name}: {'done' if code == 0 else f'ended with {code}'}", flush=True)
        return code


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
    codes = []
    if not given.collect:
        if given.data is None or not given.data.is_dir():
            parser.error(
                "the graphs are not part of this repository: give their folder with --data"
            )
        workers = Workers()
        signal.signal(signal.SIGINT, workers.stop)
        with ThreadPoolExecutor(given.workers) as pool:
            codes = list(pool.map(lambda name: workers.run(name, given), given.only))
    collect(given.out, list(TASKS))
    sys.exit(max(codes, default=0))


if __name__ == "__main__":
    main()
