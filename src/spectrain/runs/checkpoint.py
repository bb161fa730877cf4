"""Checkpoints on disk: their format, and which of them can be trusted.

checkpoints/step-00000200/
    model.safetensors        parameters and buffers, the methods' state included
    optimizer.safetensors    moments, keyed "parameter/state"; random-number state, keyed "rng/device"
    probe.safetensors        a fixed input and the model's output for it
    state.json               where the loop was: step, phase, sums of the current interval
    metrics.jsonl            the rows up to here,
    timing.jsonl             how long they took,
    dynamics.jsonl           and what the instruments saw
    manifest.json            format, run, step, and size and SHA-256 of each file

Nothing of it is trusted before its sum agrees; nothing is followed out of its folder or unpickled.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectrain.errors import RunError, UsageError
from spectrain.runs.files import TEMPORARY, read_json
from spectrain.runs.records import TEXT, WHOLE, Each, check_record, read_record

FORMAT = 3
ROWS = ("metrics.jsonl", "timing.jsonl", "dynamics.jsonl")
FILES = (
    *("model.safetensors", "optimizer.safetensors", "probe.safetensors", "state.json"),
    *ROWS,
)
LATER = ("dynamics.jsonl",)  # what checkpoints of earlier versions do not have
_NAME = re.compile(r"step-(\d{8,})")
_MANIFEST = {"run": TEXT, "step": WHOLE, "files": Each({"bytes": WHOLE, "sha256": TEXT})}


@dataclass(frozen=True)
class Checkpoint:
    """One intact checkpoint on disk."""

    path: Path
    step: int

    def state(self) -> dict[str, Any]:
        """The content of state.json. Raises RunError if it is no JSON object."""
        return read_record(self.path / "state.json", {}) or {}

    def rows(self) -> dict[str, bytes]:
        """The files of rows as they were, by name. Raises RunError if they are gone."""
        names = [name for name in ROWS if name not in LATER or (self.path / name).exists()]
        try:
            return {name: (self.path / name).read_bytes() for name in names}
        except OSError as error:
            raise RunError(f"could not read {self.path}: {error.strerror or error}") from None


@dataclass(frozen=True)
class Search:
    """The newest intact checkpoint, if there is one, and why later ones were passed over."""

    found: Checkpoint | None
    passed_over: list[str]  # sentences
    foreign: bool  # some are whole, but of another run or another version


def newest(folder: Path, run: str) -> Search:
    """Look in `folder` for the newest intact checkpoint of the run with the identity `run`."""
    passed_over: list[str] = []
    foreign = False
    for step, path in sorted(on_disk(folder).items(), reverse=True):
        try:
            _examine(path, step, run)
        except _ForeignError as reason:
            foreign = True
            passed_over.append(f"{path.name} {reason} and is passed over")
        except RunError as reason:
            passed_over.append(f"{path.name} is damaged ({reason}) and is passed over")
        else:
            return Search(Checkpoint(path, step), passed_over, foreign)
    return Search(None, passed_over, foreign)


def at(folder: Path, step: int, run: str) -> Checkpoint:
    """The checkpoint of `step`. Raises UsageError if there is none, RunError if it is not intact."""
    steps = on_disk(folder)
    if step not in steps:
        there = ", ".join(map(str, sorted(steps))) or "none"
        raise UsageError(f"{folder.parent} has no checkpoint of step {step} (there: {there})")
    try:
        _examine(steps[step], step, run)
    except _ForeignError as reason:
        raise RunError(f"{steps[step]} {reason}") from None
    except RunError as reason:
        raise RunError(f"{steps[step]} is damaged ({reason})") from None
    return Checkpoint(steps[step], step)


def on_disk(folder: Path) -> dict[int, Path]:
    """What is called a checkpoint in `folder`, by step. Raises RunError if it cannot be read."""
    try:
        names = [(path, _NAME.fullmatch(path.name)) for path in folder.iterdir()]
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RunError(f"could not read {folder}: {error.strerror or error}") from None
    return {int(name[1]): path for path, name in names if name}


def step_of(path: Path) -> int | None:
    """The step of the checkpoint that is called so; None if `path` is not called as one."""
    name = _NAME.fullmatch(path.name)
    return int(name[1]) if name and path.parent.name == "checkpoints" else None


def discard(path: Path) -> None:
    """Delete a checkpoint; a process killed meanwhile leaves no half of it under its name."""
    left_over = path.with_name(f".{path.name}{TEMPORARY}")
    remove(left_over)
    try:
        os.replace(path, left_over)
    except OSError:
        return
    remove(left_over)


def remove(path: Path) -> None:
    """Delete a folder, or a file or link in its place, as far as it can be deleted."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class _ForeignError(RunError):
    """It may be whole, but it does not belong here."""


def _examine(path: Path, step: int, run: str) -> None:
    """Raise RunError with the reason why the checkpoint at `path` cannot be used."""
    if not stat.S_ISDIR(_kind(path)):
        raise RunError("it is no plain folder")
    manifest = _manifest(path)
    if manifest["run"] != run:
        raise _ForeignError("belongs to another run")
    if manifest["step"] != step:
        raise RunError(f"its manifest says step {manifest['step']}")
    files = manifest["files"]
    for name in FILES:
        if name not in files and name not in LATER:
            raise RunError(f"its manifest lacks {name}")
    if unknown := sorted(files.keys() - set(FILES)):
        raise RunError(f"its manifest names {unknown[0]!r}, which is no file of a checkpoint")
    for name in files:
        file = path / name
        _require_plain(file)
        try:
            if file.stat().st_size != files[name]["bytes"]:
                raise RunError(f"{name} has the wrong size")
            if sha256(file) != files[name]["sha256"]:
                raise RunError(f"{name} has changed")
        except OSError as error:
            raise RunError(f"{name} cannot be read: {error.strerror or error}") from None


def _manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    _require_plain(file, "its manifest")
    try:
        content = read_json(file)
        found = content.get("format") if isinstance(content, dict) else None
        if isinstance(content, dict) and type(found) is int and found != FORMAT:
            raise _ForeignError(f"has format {found}, where this version reads {FORMAT},")
        check_record(file, content, _MANIFEST)
    except _ForeignError:
        raise
    except RunError as error:
        reason = (
            str(error).removeprefix(f"{file} is damaged ").removesuffix(": delete or restore it")
        )
        raise RunError(f"its manifest cannot be read {reason}") from None
    manifest: dict[str, Any] = content
    return manifest


def _require_plain(file: Path, name: str | None = None) -> None:
    kind = _kind(file)
    if not kind:
        raise RunError(f"{name or file.name} is missing")
    if not stat.S_ISREG(kind):
        raise RunError(f"{name or file.name} is no plain file")


def _kind(path: Path) -> int:
    """The mode of what is at `path` itself, no link followed; 0 if there is nothing."""
    try:
        return path.lstat().st_mode
    except OSError:
        return 0


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
