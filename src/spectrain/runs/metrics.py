"""metrics.jsonl and timing.jsonl: what was measured, and how long it took, row by row."""

from __future__ import annotations

import json
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

from spectrain.errors import RunError
from spectrain.runs.files import read_rows, write_atomic


class MetricsLog:
    """Appends rows to a run's two files; a resumed run goes on after the step it resumes from."""

    def __init__(self, directory: Path, start: int) -> None:
        self.metrics = directory / "metrics.jsonl"
        self.timing = directory / "timing.jsonl"
        self.seconds = 0.0
        for path in (self.metrics, self.timing):
            # A run that goes on is not finished: its final row, if any, will be measured again.
            known = (row for row in read_rows(path) if "test_loss" not in row)
            rows = [row for row in known if row.get("step", 0) <= start]
            if start or path.exists():
                write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
            if path is self.timing and rows:
                self.seconds = float(rows[-1]["seconds"])

    def record(self, **row: Any) -> None:
        """Append one row of metrics."""
        self._append(self.metrics, row)

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
        rows: list[dict[str, Any]] = [{"step": 0, "seconds": 0.0}, *read_rows(self.timing)]
        times = [(b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in pairwise(rows)]
        return statistics.median(times) if times else None

    def _append(self, path: Path, row: dict[str, Any]) -> None:
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise RunError(f"could not write {path}: {error.strerror or error}") from None
