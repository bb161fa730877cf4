"""Where a run is between two steps: what a checkpoint keeps beside the tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from spectrain.errors import RunError
from spectrain.method import Method
from spectrain.runs.checkpoint import Checkpoint
from spectrain.runs.records import FINITE, NUMBER, OBJECT, TEXT, WHOLE, Each, Maybe, check_record

Phases = Sequence[tuple[Method, int]]  # each with its steps

_SHAPE = {
    "phase": WHOLE,
    "phases": [{"method": {"name": TEXT}, "steps": WHOLE}],
    "first_loss": Maybe(FINITE),
    "interval": {"steps": WHOLE, "losses": [NUMBER], "seconds": NUMBER},
    "gradient_bytes": WHOLE,
    "bytes": dict.fromkeys(("weights", "gradients", "optimizer"), WHOLE),
    "best": Maybe({"step": WHOLE, "cost": FINITE}),
    "memory": Each(OBJECT),
}


@dataclass(frozen=True)
class Interval:
    """What has been summed up since the latest row of metrics."""

    steps: int = 0
    losses: tuple[float, ...] = ()  # their sum on each process
    seconds: float = 0.0

    def own(self, rank: int, size: int) -> float:
        """The sum that process `rank` of `size` goes on from."""
        if len(self.losses) == size:
            return self.losses[rank]
        return sum(self.losses) / len(self.losses) if self.losses else 0.0


@dataclass(frozen=True)
class Best:
    """The best validation so far: its step, and the cost by the task's deciding score."""

    step: int
    cost: float


@dataclass(frozen=True)
class Position:
    """A run after `step` steps. Sizes are in bytes; `bytes` are those of the largest phase."""

    step: int = 0
    phase: int = 0
    first_loss: float | None = None
    interval: Interval = field(default_factory=Interval)
    gradient_bytes: int = 0
    bytes: dict[str, int] = field(
        default_factory=lambda: {"weights": 0, "gradients": 0, "optimizer": 0}
    )
    best: Best | None = None

    @property
    def best_step(self) -> int | None:
        """The step of the best checkpoint, if there is one."""
        return None if self.best is None else self.best.step

    def record(self, phases: Phases, memory: dict[str, Any]) -> dict[str, Any]:
        """The content of state.json. memory: `RunMemory.phases`."""
        listed = [{"method": method.settings(), "steps": steps} for method, steps in phases]
        return {**asdict(self), "phases": listed, "memory": memory}

    def forked(self) -> Position:
        """Where a fork begins: what was measured of the run it comes from is not its own."""
        return replace(Position(), step=self.step, phase=self.phase, first_loss=self.first_loss)


def read(found: Checkpoint) -> tuple[Position, dict[str, Any]]:
    """(position, `RunMemory.phases`) of a checkpoint. Raises RunError if state.json is malformed."""
    state = found.state()
    check_record(found.path / "state.json", state, _SHAPE)
    if not 0 <= state["phase"] < len(state["phases"]):
        raise RunError(f"{found.path / 'state.json'}: there is no phase {state['phase']}")
    interval, best = state["interval"], state.get("best")
    position = Position(
        found.step,
        state["phase"],
        state.get("first_loss"),
        Interval(interval["steps"], tuple(interval["losses"]), interval["seconds"]),
        state["gradient_bytes"],
        state["bytes"],
        Best(best["step"], best["cost"]) if best else None,
    )
    return position, state["memory"]
