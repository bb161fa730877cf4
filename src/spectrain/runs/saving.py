"""Saving beside training: one thread writes what training has copied; old checkpoints are dropped."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from spectrain.errors import RunError, SpectrainWarning
from spectrain.runs import checkpoint, snapshot
from spectrain.runs.files import CURE, TEMPORARY
from spectrain.runs.options import RunOptions
from spectrain.runs.snapshot import Snapshot

THREAD = "spectrain checkpoint"  # by this name the command line knows that something is written


@dataclass
class _Write:
    """A checkpoint on its way to the disk."""

    step: int
    best: int | None
    waited: float  # seconds that training waited for the copy
    thread: threading.Thread
    bytes: int = 0
    seconds: float = 0.0
    error: BaseException | None = None


class Saver:
    """Writes a run's checkpoints, one at a time, and keeps those that are asked for.

    Kept are the last `keep` of those that the options ask for, the best one where there is one, and
    the newest. A checkpoint made because the run was stopped goes when the next one is safe, so that
    an interrupted run leaves the same checkpoints as another.
    """

    def __init__(
        self,
        folder: Path,
        run: str,
        options: RunOptions,
        say: Callable[[str], None],
        writes: bool = True,
    ) -> None:
        """writes: False on a process that takes part in the copy and leaves the disk to another."""
        self.folder, self.run, self.options, self.say = folder, run, options, say
        self.writes = writes
        self._saved: int | None = None
        self._write: _Write | None = None

    def begin(self, step: int | None, best: int | None) -> None:
        """Clear what a killed process left; `step` and `best` are those of the checkpoint in use."""
        self._saved = step
        if not self.writes:
            return
        if self.folder.is_dir():
            for left_over in self.folder.glob(f".*{TEMPORARY}"):
                checkpoint.remove(left_over)
        if step is not None:
            self._prune(step, best)

    @property
    def writing(self) -> int | None:
        """The step of the checkpoint that is on its way to the disk."""
        return None if self._write is None else self._write.step

    @property
    def newest(self) -> int | None:
        """The step of the newest checkpoint, be it still on its way to the disk."""
        return self._saved if self._write is None else self._write.step

    def save(self, take: Callable[[], Snapshot], best: int | None) -> None:
        """Copy the state with `take`, once the write before it is over, and begin to write it.

        best: the step of the best checkpoint, possibly this one. Raises RunError as `settle` does.
        """
        self.wait()
        began = time.perf_counter()
        taken = [take()]
        if not self.writes:
            self._saved = taken[0].step
            return
        thread = threading.Thread(target=self._run, args=(taken,), name=THREAD, daemon=True)
        waited = time.perf_counter() - began
        self._write = _Write(taken[0].step, best, waited, thread)
        thread.start()

    def settle(self) -> None:
        """If a write is over, say so. Raises RunError if it failed; what was saved before is intact."""
        write = self._write
        if write is None or write.thread.is_alive():
            return
        self._write = None
        if write.error is not None:
            if not isinstance(write.error, OSError | SafetensorError | RunError):
                raise write.error
            cause = write.error.__cause__ or write.error
            reason = str(getattr(cause, "strerror", None) or cause or type(cause).__name__)
            raise RunError(
                f"could not write the checkpoint of step {write.step} to {self.folder}: "
                f"{reason.splitlines()[0]}; {CURE}"
            )
        self._saved = write.step
        if write.step == write.best and not self._is_asked_for(write.step):
            return  # they may come every few steps
        self.say(
            f"checkpoint at step {write.step}: {write.bytes / 2**20:.1f} MiB, training waited "
            f"{write.waited:.2f} s, written in {write.seconds:.1f} s"
        )

    def wait(self) -> None:
        """Wait for the write in progress, if there is one, and `settle` it."""
        if self._write is not None:
            self._write.thread.join()
        self.settle()

    def finish(self, alert: Callable[[str], None]) -> None:
        """`wait` where something else has failed already, so that what fails here is but a warning."""
        if self.writing is not None:
            alert(f"finishing the checkpoint of step {self.writing}; Ctrl-C leaves at once")
        try:
            self.wait()
        except RunError as error:
            warnings.warn(str(error), SpectrainWarning, stacklevel=2)

    def _run(self, taken: list[Snapshot]) -> None:
        write = self._write
        assert write is not None
        began = time.perf_counter()
        try:
            write.bytes = snapshot.write(self.folder, self.run, taken[0])
            taken.clear()  # its memory is training's again
            self._prune(write.step, write.best, later=True)
        except BaseException as error:  # raised again in the thread that trains
            taken.clear()
            error.__traceback__ = None  # its frames hold the copy
            write.error = error
        write.seconds = time.perf_counter() - began

    def _prune(self, newest: int, best: int | None, later: bool = False) -> None:
        """Drop what is not to be kept; with `later`, also what is damaged behind the newest one."""
        steps = checkpoint.on_disk(self.folder)
        asked = [step for step in sorted(steps) if step <= newest and self._is_asked_for(step)]
        kept = {newest, best, *asked[-self.options.keep :]}
        for step, path in steps.items():
            if step not in kept and (step < newest or later):
                checkpoint.discard(path)

    def _is_asked_for(self, step: int) -> bool:
        o = self.options
        return step == o.steps or bool(o.checkpoint_every and step % o.checkpoint_every == 0)
