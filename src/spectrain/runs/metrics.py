"""A run's files of rows: what was measured, how long it took, what the instruments saw."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from spectrain.errors import RunError
from spectrain.runs.checkpoint import ROWS
from spectrain.runs.files import CURE, read_rows, write_atomic
from spectrain.runs.records import FINITE, WHOLE
from spectrain.runs.tensorboard import TensorBoard


class MetricsLog:
    """Appends rows to metrics.jsonl, timing.jsonl and dynamics.jsonl.

    rows: these files as the checkpoint has them that the run goes on from, by name; what they hold
    beyond that (of steps that will be made again, or half a row) is dropped. Raises RunError if the
    disk fails. writes: False on a process that leaves the files to another. board: is told the rows, too.
    """

    def __init__(
        self,
        directory: Path,
        rows: Mapping[str, bytes],
        writes: bool = True,
        board: TensorBoard | None = None,
    ) -> None:
        self.metrics, self.timing, self.dynamics = self.paths = [directory / n for n in ROWS]
        self.writes, self.board = writes, board
        for path in self.paths:
            content = rows.get(path.name, b"")
            if writes and (content or path.exists()):
                write_atomic(path, content)
        times = self._times()
        self.seconds = times[-1][1] if times else 0.0

    def contents(self) -> dict[str, bytes]:
        """The files as they are now, by name, for a checkpoint. Raises RunError if one cannot be read."""
        found = {}
        for path in self.paths:
            try:
                found[path.name] = path.read_bytes()
            except FileNotFoundError:
                found[path.name] = b""
            except OSError as error:
                raise RunError(f"could not read {path}: {error.strerror or error}") from None
        return found

    def record(self, **row: Any) -> None:
        """Append one row of metrics."""
        self._append(self.metrics, row)
        if self.board is not None:
            self.board.write(row)

    def record_dynamics(self, **row: Any) -> None:
        """Append one row of what the instruments saw."""
        self._append(self.dynamics, row)
        if self.board is not None:
            self.board.write_look(row)

    def close(self) -> None:
        """Close what TensorBoard's writer has open; the files of rows are closed after each row."""
        if self.board is not None:
            self.board.close()

    def seen(self) -> list[dict[str, Any]]:
        """What the instruments saw until now."""
        return read_rows(self.dynamics)

    def record_timing(self, step: int, seconds: float, units: int, unit: str) -> None:
        """Append the time that the latest `units` of work took; `seconds` of the run accumulate."""
        self.seconds += seconds
        rate = units / seconds if seconds else 0.0
        row = {
            "step": step,
            "seconds": round(self.seconds, 6),
            f"{unit}_per_second": round(rate, 1),
        }
        self._append(self.timing, row)

    def seconds_per_step(self) -> float | None:
        """Median over all rows of the time that a step took; None before the first row."""
        rows = [(0, 0.0), *self._times()]
        times = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(rows) if b[0] > a[0]]
        return statistics.median(times) if times else None

    def _times(self) -> list[tuple[int, float]]:
        """(step, seconds of training until then) of every row."""
        rows = (row for row in read_rows(self.timing) if "step" in row and "seconds" in row)
        found = ((row["step"], row["seconds"]) for row in rows)
        return [(step, float(s)) for step, s in found if WHOLE.holds(step) and FINITE.holds(s)]

    def _append(self, path: Path, row: dict[str, Any]) -> None:
        if not self.writes:
            return
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise RunError(f"could not write {path}: {error.strerror or error}; {CURE}") from None
