"""Forks: a run that begins where another one is, with other settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectrain.errors import RunError, UsageError
from spectrain.groups import param_groups
from spectrain.method import Method
from spectrain.runs import checkpoint, position
from spectrain.runs.checkpoint import Checkpoint
from spectrain.runs.directory import has_begun, identity
from spectrain.runs.options import RunOptions
from spectrain.runs.position import Phases
from spectrain.runs.records import SPECTRA, TEXT, WHOLE, check_record, read_config, read_record
from spectrain.runs.restore import check_fit
from spectrain.surgery import apply
from spectrain.tasks.task import Task

_RECORD = {"fork": {"run": TEXT, "step": WHOLE, "identity": TEXT}}


def origin(
    fork: Path | None, directory: Path, task: Task, method: Method, options: RunOptions
) -> dict[str, Any] | None:
    """Where the run in `directory` begins, for its config.json; None for the ordinary beginning.

    fork: the run that was asked for. Once the run in `directory` has begun it stays with what it began
    from, whether `fork` is given again or not.

    Raises UsageError, before anything is written, if these settings cannot go on from there; RunError
    if `fork` has no intact checkpoint.
    """
    existing = read_config(directory) if has_begun(directory) else None
    if existing is not None:
        record: dict[str, Any] | None = existing.get("fork")
        if record is not None:
            check_record(directory / "config.json", existing, _RECORD)
        if fork is not None and (record is None or record["run"] != str(fork.resolve())):
            raise UsageError(
                f"--out {directory} holds a run that was not forked from {fork}; choose another "
                "--out, or leave --fork out to continue it"
            )
        return record
    if fork is None:
        return None
    if fork.resolve() == directory.resolve():
        raise UsageError(f"--fork {fork} needs another --out: the fork is a new run")
    config = read_config(fork) if fork.is_dir() else None
    if config is None or config.get("method") is None:
        raise UsageError(f"--fork {fork} is no run of spectrain (it has no config.json of one)")
    name = identity(config)
    search = checkpoint.newest(fork / "checkpoints", name)
    if search.found is None:
        reasons = f" ({'; '.join(search.passed_over)})" if search.passed_over else ""
        raise RunError(f"--fork {fork}: that run has no intact checkpoint{reasons}")
    try:
        _require_fit(search.found, task, method, options)
    except (RunError, UsageError) as error:
        raise UsageError(f"--fork {fork} cannot go on with these settings: {error}") from None
    return {"run": str(fork.resolve()), "step": search.found.step, "identity": name}


def find_origin(record: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint that `origin` recorded. Raises RunError if it is not there any more."""
    try:
        folder = Path(record["run"]) / "checkpoints"
        return checkpoint.at(folder, record["step"], record["identity"])
    except UsageError as error:
        raise RunError(f"the run has no intact checkpoint, and {error}") from None


def first_spectra(record: Mapping[str, Any]) -> dict[str, Any]:
    """The spectra at the very start: those of the run that the fork comes from."""
    found = read_record(Path(record["run"]) / "spectra.json", SPECTRA) or {}
    return {name: {"initial": of["initial"]} for name, of in found.items() if "initial" in of}


def _require_fit(found: Checkpoint, task: Task, method: Method, options: RunOptions) -> None:
    """Raise an error if the checkpoint's place or its tensors are not those of the new settings."""
    there, _ = position.read(found)
    if there.step >= options.steps:
        raise UsageError(
            f"it is at step {there.step} already, and --steps is {options.steps}: give more"
        )
    phases = method.phases(options.steps)
    phase = _phase_at(phases, there.step)
    if phase != there.phase:
        raise UsageError(
            f"at step {there.step} it is in phase {there.phase + 1}, and this run would be in phase "
            f"{phase + 1} ({phases[phase][0].title})"
        )
    model = task.skeleton()
    apply(model, phases[phase][0], options.targets, options.excluded, report=None)
    optimizer = options.build_optimizer(param_groups(model, options.lr))
    check_fit(found, model, optimizer, options.build_optimizer)


def _phase_at(phases: Phases, step: int) -> int:
    """The phase that has made step number `step` (from 1); the first one before any step."""
    ends = [sum(steps for _, steps in phases[: i + 1]) for i in range(len(phases))]
    return next(i for i, end in enumerate(ends) if step <= end)
