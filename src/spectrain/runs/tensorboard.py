"""The rows of a run as scalars for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorBoard:
    """Writes scalars to RUN/tensorboard; what lies there of steps after `step` is not shown any more."""

    def __init__(self, directory: Path, step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self.writer = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

    def write(self, row: Mapping[str, Any]) -> None:
        """A row of metrics: each number under its name."""
        self._add(row["step"], {name: value for name, value in row.items() if name != "step"})

    def write_look(self, row: Mapping[str, Any]) -> None:
        """What a look saw: gradient norms of each kind of factor over all layers, the largest drift."""
        if not isinstance(row.get("layers"), dict):  # an event, a spectrum
            return
        layers = row["layers"].values()
        norms: dict[str, list[float]] = {}
        for values in layers:
            for factor, norm in values.get("gradient", {}).items():
                norms.setdefault(f"gradient/{factor}", []).append(norm)
        found = {name: math.hypot(*of) for name, of in norms.items()}
        drifts = [values["drift"] for values in layers if "drift" in values]
        self._add(row["step"], found | ({"drift": max(drifts)} if drifts else {}))

    def _add(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is still in memory, and end the writer's thread."""
        self.writer.close()
