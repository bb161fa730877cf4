"""What a person sees while a run goes on."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Protocol

import psutil
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


class View(Protocol):
    """Where a run tells how it goes."""

    def say(self, sentence: str) -> None: ...
    def alert(self, sentence: str) -> None: ...  # what a person waits for
    def begin(self, title: str, done: int, steps: int) -> None: ...
    def advance(self, step: int, loss: float, lr: float, units_per_second: float) -> None: ...
    def end(self) -> None: ...


class Silent:
    """Tells nothing."""

    def say(self, sentence: str) -> None: ...
    def alert(self, sentence: str) -> None: ...
    def begin(self, title: str, done: int, steps: int) -> None: ...
    def advance(self, step: int, loss: float, lr: float, units_per_second: float) -> None: ...
    def end(self) -> None: ...


class Terminal:
    """A progress bar with loss, rate, tokens/s, memory and time left; sentences above it.

    Where output is no terminal (a file, CI) the bar is left out and a line comes now and then.
    """

    def __init__(self, console: Console, unit: str) -> None:
        self.console = console
        self.unit = unit
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            refresh_per_second=4,
        )
        self.task = None if not console.is_terminal else self.progress.add_task("", visible=False)

    def __enter__(self) -> Terminal:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def say(self, sentence: str) -> None:
        self.console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    def alert(self, sentence: str) -> None:
        self.say(sentence)

    def begin(self, title: str, done: int, steps: int) -> None:
        self._next_line = 0.0
        self._steps = steps
        if self.task is not None:
            self.progress.reset(
                self.task, description=title, completed=done, total=steps, visible=True, figures=""
            )

    def advance(self, step: int, loss: float, lr: float, units_per_second: float) -> None:
        figures = (
            f"loss {loss:.3f}  lr {lr:.1e}  {units_per_second:,.0f} {self.unit}/s  {memory_text()}"
        )
        if self.task is not None:
            self.progress.update(self.task, completed=step, figures=figures)
        elif step / self._steps >= self._next_line:
            self.console.print(f"step {step}/{self._steps}  {figures}", highlight=False)
            self._next_line = step / self._steps + 0.25

    def end(self) -> None:
        if self.task is not None:
            self.progress.update(self.task, visible=False)


def memory_text() -> str:
    """Memory in use: the GPU's where one is in use, else this process's."""
    if torch.cuda.is_available():
        used = torch.cuda.memory_allocated()
    else:
        used = psutil.Process(os.getpid()).memory_info().rss
    return f"{used / 2**30:.2f} GiB"
