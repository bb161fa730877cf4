"""Two processes that stay for the whole session and run functions together, over gloo on the CPU."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import multiprocessing

SIZE = 2
PATIENCE = 60  # seconds that one of them waits for the other


class Pair:
    """`call(function, *arguments)` runs it in both processes; the results come as a list by rank."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._context = multiprocessing.get_context("spawn")
        self._start()

    def _start(self) -> None:
        store = Path(self._folder.name, f"store-{os.urandom(4).hex()}")
        pipes = [self._context.Pipe() for _ in range(SIZE)]
        self._ends = [own for own, _ in pipes]
        self._processes = [
            self._context.Process(target=_serve, args=(rank, str(store), end), daemon=True)
            for rank, (_, end) in enumerate(pipes)
        ]
        for process in self._processes:
            process.start()

    def call(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Raises AssertionError, with the trace of the first process that failed."""
        for end in self._ends:
            end.send((function, arguments))
        answers: list[tuple[str, Any]] = []
        for end in self._ends:
            known = end.poll(2 * PATIENCE)
            answers.append(end.recv() if known else ("failed", "no answer"))
        problems = [text for kind, text in answers if kind == "failed"]
        if problems:  # they may be out of step with each other now
            self.close()
            self._start()
            raise AssertionError(problems[0])
        return [value for _, value in answers]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def _serve(rank: int, store: str, end: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=SIZE,
        timeout=timedelta(seconds=PATIENCE),
    )
    while True:
        function, arguments = end.recv()
        try:
            end.send(("done", function(*arguments)))
        except BaseException:
            end.send(("failed", traceback.format_exc()))
