"""Comparisons side by side, each a process with one thread; one Ctrl-C reaches all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


class Workers:
    """What runs now. After Ctrl-C the processes end as they do, and none begins any more."""

    def __init__(self, out: Path) -> None:
        """out: where each command has a directory, and a log beside it with what it prints."""
        self.out = out
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def run_all(
        self, names: Sequence[str], command: Callable[[str], Sequence[str]], at_once: int
    ) -> int:
        """Run `spectrain` with each name's arguments; the highest exit code."""
        self.out.mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGINT, self._stop)
        with ThreadPoolExecutor(at_once) as pool:
            codes = pool.map(lambda name: self._run(name, command(name)), names)
        return max(codes, default=0)

    def _stop(self, *_: object) -> None:
        print("stopping; the same command continues", flush=True)
        self.stopped = True
        for process in self.running:
            process.send_signal(signal.SIGINT)

    def _run(self, name: str, arguments: Sequence[str]) -> int:
        if self.stopped:
            return 130
        with (self.out / f"{name}.log").open("a", encoding="utf-8") as log:
            print(f"{name}: begins, see {log.name}", flush=True)
            process = subprocess.Popen(
                [sys.executable, "-m", "spectrain", *arguments],
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
