"""Every method under a random killer, damaged files and a full disk: does each run end as if alone?

    python benchmarks/soak.py                     all methods, about 20 minutes on two cores
    python benchmarks/soak.py --only sst galore   these; the results keep the others

Each run is `python -m spectrain train lm …`, started again by the same command after every fault
until it is finished, and then compared with one that nothing happened to: metrics.jsonl byte by
byte, every tensor of every checkpoint bit by bit, and which checkpoints there are. The seed fixes
which faults come, in which order and from which step on; the moment is the machine's.
"""

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import soak_faults as faults
import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from soak_arms import ARMS, COMMON, STEPS, Arm, prose
from soak_compare import compare
from soak_report import insert, markdown, parts

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DATA = "prose.txt"
MEGABYTES = 14  # of the small disk: room for a run, and little more


class Soak:
    """Runs arms under faults in a folder of its own, two at a time."""

    def __init__(self, folder: Path, seed: int, can_mount: bool, progress: Progress) -> None:
        self.folder, self.seed, self.can_mount, self.progress = folder, seed, can_mount, progress
        self.data = folder / DATA
        self.data.write_text(prose(), encoding="utf-8")
        other = self._whole("foreign", ARMS["full"], "--steps", "8")
        self.foreign = other / "checkpoints" / "step-00000008"

    def arm(self, name: str) -> dict[str, Any]:
        """All faults for one arm: what happened, and whether the run ended as the one left alone."""
        arm, began = ARMS[name], time.monotonic()
        draw = random.Random(f"{self.seed} {name}")
        struck = [*faults.KILLS[:-1], *draw.sample(faults.STOPS, 3)]
        draw.shuffle(struck)
        struck.append(faults.KILLS[-1])
        disks = faults.DISKS if self.can_mount else ()
        task = self.progress.add_task(name, total=len(struck) + len(disks) + 3)
        whole = self._whole(name, arm)
        self.progress.advance(task)
        run = Victim(self, name, self.folder / name / "run", draw, task)
        run.suffer(struck, draw.sample(faults.DAMAGES, len(faults.DAMAGES)))
        found = {"run": run.result(whole)}
        self.progress.advance(task)
        if self.can_mount:
            small = self.folder / name / "disk"
            faults.mount(small, MEGABYTES)
            run = Victim(self, name, small / "run", draw, task)
            run.suffer(disks, ())
            found["disk"] = run.result(whole)
        self.progress.update(task, completed=len(struck) + len(disks) + 3)
        return {**found, "seconds": round(time.monotonic() - began)}

    def command(self, arm: Arm, out: Path, *more: str) -> list[str]:
        """The command that a user types."""
        spectrain = [sys.executable, "-m", "spectrain", "train", "lm"]
        return [
            *spectrain,
            *COMMON,
            *arm.options(),
            "--data",
            str(self.data),
            "--out",
            str(out),
            *more,
        ]

    def _whole(self, name: str, arm: Arm, *more: str) -> Path:
        """A run that nothing happens to."""
        out = self.folder / name / "whole"
        out.parent.mkdir()
        start = faults.Start(self.command(arm, out, *more), out, out.with_suffix(".txt"))
        code = start.end()
        start.kill()
        if code != 0:
            raise SystemExit(f"{name} fails by itself: {start.said.read_text()[-2000:]}")
        return out


class Victim:
    """One run that is started again until it is finished."""

    def __init__(
        self, soak: Soak, name: str, directory: Path, draw: random.Random, task: TaskID
    ) -> None:
        self.soak, self.name, self.arm = soak, name, ARMS[name]
        self.directory, self.draw, self.task = directory, draw, task
        self.faults: Counter[str] = Counter()
        self.places: Counter[str] = Counter()
        self.problems: list[str] = []
        self.starts = 0
        self.finished = False

    def suffer(self, struck: Sequence[str], damages: Sequence[str]) -> None:
        """One fault a start, one damage between two of them, then undisturbed to the end."""
        waiting = list(damages)
        for i, fault in enumerate(struck):
            aim = STEPS * (i + self.draw.random()) / len(struck)
            self._strike(fault, self._near_event(round(aim)) if fault == "event" else round(aim))
            kind = waiting.pop() if waiting else None
            if kind and faults.damage(kind, self.directory, self.soak.foreign, self.draw):
                self.faults[kind] += 1
            elif kind:
                waiting.insert(0, kind)
            self.soak.progress.advance(self.task)
        self._strike(None, 0)

    def _near_event(self, step: int) -> int:
        """The step of the next event, or the one before it."""
        period = self.draw.choice(self.arm.periods or (8,))
        return (step // period + 1) * period - self.draw.randrange(2)

    def _strike(self, fault: str | None, step: int) -> None:
        """Start, strike, look how the process ends."""
        small = self.directory.parent
        if fault == faults.DISKS[0]:
            faults.fill(small, room=self.draw.randrange(2**18, 2**22))
        self.starts += 1
        said = self._said(fault or "undisturbed")
        start = faults.Start(self.soak.command(self.arm, self.directory), self.directory, said)
        struck = False
        try:
            if fault is not None:
                struck = fault == faults.DISKS[0] or faults.strike(
                    fault, start, step, STEPS, self.draw
                )
            code = start.end()
        except subprocess.TimeoutExpired:
            self.problems.append(f"{fault}: hung")
            return
        finally:
            start.kill()
            (small / faults.BALLAST).unlink(missing_ok=True)
        text = said.read_text(errors="replace")
        if code == 1 and "move away what is there" in text:
            # Nothing intact is left, and something foreign is: it asks, and we do as it says.
            self.faults["asked to move away"] += 1
            shutil.rmtree(self.directory / "checkpoints")
            self._strike(fault, step)
            return
        if struck:
            self.faults[fault or ""] += 1
        if struck and code == -9:
            self.places[faults.place(start, self.arm.periods, STEPS)] += 1
        self.finished = code == 0
        self._judge(fault if struck else None, code, text)

    def _said(self, fault: str) -> Path:
        folder = self.soak.folder / "said"
        folder.mkdir(exist_ok=True)
        return folder / f"{self.name}-{self.directory.parent.name}-{self.starts:02d}-{fault}.txt"

    def _judge(self, fault: str | None, code: int, text: str) -> None:
        """Whether the process ended as it should after `fault`."""
        expected = {None: {0}, "SIGTERM, then SIGKILL": {-9, 130}}.get(fault, {130})
        if fault in faults.KILLS:
            expected = {-9}
        elif fault in faults.DISKS:
            expected = {1}
            if "No space left on device" not in text:
                self.problems.append(f"{fault}: no word of it")
        if code not in expected:
            last = text.strip().splitlines()[-1:]
            self.problems.append(f"{fault}: exit code {code} ({last})")
        if "Traceback" in text:
            self.problems.append(f"{fault}: traceback")

    def result(self, whole: Path) -> dict[str, Any]:
        """What happened, and how the run differs from `whole`."""
        tensors, equal, different = compare(whole, self.directory) if self.finished else (0, 0, [])
        return {
            "faults": dict(self.faults),
            "places": dict(self.places),
            "starts": self.starts,
            "finished": self.finished,
            "tensors": tensors,
            "equal": equal,
            "problems": [*self.problems, *different],
        }


def _enter_namespace() -> bool:
    """Whether small disks can be mounted: this process starts again where it may, if it may."""
    if os.environ.get("SOAK_NAMESPACE"):
        return True
    alone = ["unshare", "--map-root-user", "--mount"]
    try:
        subprocess.run(
            [*alone, "mount", "-t", "tmpfs", "none", "/mnt"], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        return False
    os.environ["SOAK_NAMESPACE"] = "1"
    return os.execvp(alone[0], [*alone, sys.executable, *sys.argv])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="arms at a time")
    parser.add_argument("--out", type=Path, default=HERE / "runs" / "soak", help="is emptied first")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    can_mount = _enter_namespace()
    os.environ |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    if given.out.exists() and not (given.out / DATA).exists():
        parser.error(f"--out {given.out} is not a soak's folder, and would be emptied")
    shutil.rmtree(given.out, ignore_errors=True)
    given.out.mkdir(parents=True)
    target = given.results / "soak.json"
    kept = json.loads(target.read_text()) if target.exists() and given.only != list(ARMS) else {}
    found = {
        "seed": given.seed,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        "disk": can_mount,
        "arms": kept.get("arms", {}),
    }
    writing = threading.Lock()
    with Progress(console=Console(width=100)) as progress:
        soak = Soak(given.out.resolve(), given.seed, can_mount, progress)

        def one(name: str) -> None:
            result = soak.arm(name)
            with writing:
                arms = found["arms"] | {name: result}
                found["arms"] = {key: arms[key] for key in ARMS if key in arms}
                target.write_text(json.dumps(found, indent=2) + "\n")
                target.with_suffix(".md").write_text(markdown(found), encoding="utf-8")

        pool = ThreadPoolExecutor(given.workers)
        try:
            list(pool.map(one, given.only))
        except KeyboardInterrupt:
            for process in faults.RUNNING:
                process.kill()
            os._exit(130)  # what the arms that are done have shown is written
    print(markdown(found))
    if given.results == RESULTS:
        insert(HERE.parent / "docs" / "reliability.md", found)
    if any(part["problems"] for arm in found["arms"].values() for part in parts(arm)):
        sys.exit(1)


if __name__ == "__main__":
    main()
