"""Where training begins: at a checkpoint of the run, at one of the run it is forked from, or anew."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from spectrain.errors import RunError, SpectrainWarning
from spectrain.runs import checkpoint, fork, position
from spectrain.runs.checkpoint import Checkpoint
from spectrain.runs.directory import identity
from spectrain.runs.files import CURE, read_json, write_json
from spectrain.runs.position import Position
from spectrain.runs.processes import Team
from spectrain.tasks.task import Task


@dataclass(frozen=True)
class Start:
    """What a run goes on from; the defaults are the beginning of an ordinary run."""

    run: str  # its identity
    found: Checkpoint | None = None
    position: Position = field(default_factory=Position)
    memory: dict[str, Any] = field(default_factory=dict)  # as `RunMemory.phases`
    fork: Mapping[str, Any] | None = None  # where `found` comes from, if it is of another run

    @property
    def is_continued(self) -> bool:
        """Whether the run has a checkpoint of its own already."""
        return self.found is not None and self.fork is None

    @property
    def rows(self) -> Mapping[str, bytes]:
        """metrics.jsonl and timing.jsonl until here, by name."""
        return {} if self.found is None else self.found.rows()


def find_start(directory: Path, say: Callable[[str], None]) -> Start:
    """Look in a run's directory, which `open_directory` has made, and say what is found.

    Raises RunError if there are checkpoints that belong to another run or version, and none that can
    be used: nothing is to be overwritten then.
    """
    config = read_json(directory / "config.json")
    run, record = identity(config), config.get("fork")
    folder = directory / "checkpoints"
    search = checkpoint.newest(folder, run)
    if search.found is None and search.foreign:
        raise RunError(
            f"{folder} has no checkpoint of this run ({'; '.join(search.passed_over)}): move away "
            "what is there to begin from step 0"
        )
    for sentence in search.passed_over:
        warnings.warn(sentence, SpectrainWarning, stacklevel=2)
    if search.found is not None:
        there, memory = position.read(search.found)
        say(f"continuing {directory} from step {there.step}")
        return Start(run, search.found, there, memory)
    if record is not None:
        found = fork.find_origin(record)
        say(f"beginning {directory} from step {found.step} of {record['run']}")
        return Start(run, found, position.read(found)[0].forked(), fork=record)
    if search.passed_over:
        say(f"no intact checkpoint in {directory}: starting again from step 0")
    return Start(run)


def find_start_together(directory: Path, say: Callable[[str], None], team: Team) -> Start:
    """`find_start` by the first process, for all of them; they read the same files."""
    own: list[Start] = []

    def look() -> dict[str, Any]:
        own.append(find_start(directory, say))
        found = own[0].found
        where = {} if found is None else {"path": str(found.path), "step": found.step}
        return {"run": own[0].run, "fork": own[0].fork, "found": where}

    told = team.decide(look)
    if own:
        return own[0]
    if not told["found"]:
        return Start(told["run"])
    found = Checkpoint(Path(told["found"]["path"]), told["found"]["step"])
    there, memory = position.read(found)
    if told["fork"] is not None:
        return Start(told["run"], found, there.forked(), fork=told["fork"])
    return Start(told["run"], found, there, memory)


def write_beginning(
    start: Start, task: Task, model: nn.Module, directory: Path, values: dict[str, Any]
) -> None:
    """Write what a run keeps of its beginning: tokenizer, configuration, first spectra (`values`).

    Raises RunError if the disk fails.
    """
    try:
        task.save_assets(model, directory)
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, OSError):
            raise  # tokenizers raises a bare Exception where the disk fails
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(
            f"could not write tokenizer and configuration to {directory}: {reason}; {CURE}"
        ) from None
    first = fork.first_spectra(start.fork) if start.fork else {}
    write_json(directory / "spectra.json", first or values)
