"""Run directories: made once, recognised again, refused when they hold something else."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from spectrain import __version__
from spectrain.errors import RunError, SpectrainWarning, UsageError
from spectrain.method import Method
from spectrain.runs import checkpoint
from spectrain.runs.files import read_json, write_json
from spectrain.runs.records import OBJECT, TEXT, check_record, read_result
from spectrain.runs.scores import LANGUAGE, scores_to_json
from spectrain.tasks.task import Task

FORMAT = 1
LOCK = ".lock"
# Options of how processes share the work and of what is watched: a run may be continued with others.
HOW = ("shard", "look_every", "tensorboard")
_COMPARED = {
    "task": TEXT,
    "options": OBJECT,
    "method": {"name": TEXT},
    "corpus": {"fingerprint": TEXT},
}


def run_config(
    task: Task,
    options: dict[str, Any],
    method: Method,
    command: str,
    fork: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of a run's config.json. fork: what `fork.origin` returns."""
    config = {
        "format": FORMAT,
        "spectrain": __version__,
        "command": command,
        "task": task.name,
        "options": options,
        "method": method.settings(),
        "corpus": task.summary(),
        "environment": environment(),
    }
    if task.scores != LANGUAGE:
        config["scores"] = scores_to_json(task.scores)
    return config if fork is None else {**config, "fork": fork}


def identity(config: dict[str, Any]) -> str:
    """Which run it is, by the content of its config.json: a hash of all that makes it that run.

    Checkpoints carry it. Equal settings on equal data, begun from the same place, are the same run.
    """
    fork, corpus = _object(config.get("fork")), _object(config.get("corpus"))
    parts = (
        *(config.get(part) for part in ("task", "method")),
        what(config.get("options")),
        corpus.get("fingerprint"),
        *(fork.get(part) for part in ("identity", "step")),
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def what(options: Any) -> Any:
    """The options that make a run what it is, without those of `HOW`."""
    if not isinstance(options, dict):
        return options
    return {name: value for name, value in options.items() if name not in HOW}


def environment() -> dict[str, Any]:
    """Versions and machine, as far as results may depend on them."""
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
    }


def has_begun(directory: Path) -> bool:
    """Whether the run there has made steps that count: rows, a checkpoint or a result."""
    named = ("metrics.jsonl", "result.json")
    return any((directory / name).exists() for name in named) or bool(
        checkpoint.on_disk(directory / "checkpoints")
    )


def open_directory(directory: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """Make `directory` the home of the run that `config` describes; its result if it is finished.

    Raises UsageError if the folder holds another run (naming the setting that differs) or something
    else; RunError if it cannot be written or its config.json is damaged.
    """
    make_folder(directory)
    path = directory / "config.json"
    existing = read_json(path)
    if existing is None and not path.exists():
        refuse_foreign(directory)
        write_json(path, config)
        return None
    found = existing.get("format") if isinstance(existing, dict) else None
    if found != FORMAT:
        raise RunError(
            f"{path} has format {found}, and this version reads {FORMAT}: use the "
            "version of spectrain that made it, or another --out"
        )
    if "method" not in existing:
        raise UsageError(f"--out {directory} holds a comparison, not a run; choose another --out")
    if not has_begun(directory):
        write_json(path, config)  # it never made a step: a mistake, corrected
        return None
    check_record(path, existing, _COMPARED)
    for name, before, now in differences(existing, config):
        raise UsageError(
            f"--out {directory} holds a run with {name} = {before!r}, and this one has {now!r}; "
            "give the same settings to continue that run, choose another --out, or begin a new run "
            f"where that one is: --fork {directory} and another --out"
        )
    _warn_of_changes(existing.get("environment"))
    return read_result(directory)


def _warn_of_changes(before: Any) -> None:
    """Say what of the machine differs from the run's first start, as bits may differ with it."""
    now = environment()
    before = _object(before)
    names = [n for n in ("torch", "platform", "threads", "gpu") if before.get(n, now[n]) != now[n]]
    if names:
        changes = ", ".join(f"{name} was {before[name]} and is {now[name]}" for name in names)
        warnings.warn(
            f"{changes}: the run goes on, but the same bits as without an interruption are not promised",
            SpectrainWarning,
            stacklevel=3,
        )


def make_folder(directory: Path) -> None:
    """Make `directory` if it is missing.

    Raises UsageError if a file stands in its way, RunError if the file system refuses.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next(p for p in (directory, *directory.parents) if p.exists())
        raise UsageError(f"--out {directory} cannot be made: {file} is no folder") from None
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"--out {directory} cannot be made: {reason}") from None


def refuse_foreign(directory: Path) -> None:
    """Raise UsageError if `directory`, which has no config.json, holds anything but its lock."""
    own = (LOCK, ".config.json.")  # the second: what a process that was killed left half-written
    try:
        names = [path.name for path in directory.iterdir()]
    except OSError as error:
        raise RunError(f"could not read {directory}: {error.strerror or error}") from None
    if any(not name.startswith(own) for name in names):
        raise UsageError(
            f"--out {directory} is not empty and has no config.json of spectrain; choose a new "
            "folder, or remove it first"
        )


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Settings in which two configurations differ, as (name, value in a, value in b)."""
    found: list[tuple[str, Any, Any]] = []
    for part in ("task", "method", "options"):
        x, y = _flat(what(a.get(part))), _flat(what(b.get(part)))
        if part == "method" and x["name"] != y["name"]:  # then its settings say nothing
            found.append((part, x["name"], y["name"]))
        elif isinstance(x, dict) and isinstance(y, dict):
            names = sorted({*x, *y})
            found += [(n, x.get(n), y.get(n)) for n in names if x.get(n) != y.get(n)]
        elif x != y:
            found.append((part, x, y))
    prints = [c.get("corpus", {}).get("fingerprint") for c in (a, b)]
    if prints[0] != prints[1]:
        found.append(("corpus fingerprint", prints[0], prints[1]))
    return found


def _flat(settings: Any) -> Any:
    """Settings without nesting: {"model_config": {"x": 1}} becomes {"model_config.x": 1}."""
    if not isinstance(settings, dict):
        return settings
    nested = {name: value for name, value in settings.items() if isinstance(value, dict)}
    inner = {f"{name}.{key}": v for name, value in nested.items() for key, v in value.items()}
    return {name: value for name, value in settings.items() if name not in nested} | inner


def command_line() -> str:
    """The command that was typed, as far as it can be told."""
    program = Path(sys.argv[0]).name
    if program in ("spectrain", "__main__.py"):
        return shlex.join(["spectrain", *sys.argv[1:]])
    return shlex.join(["python", program, *sys.argv[1:]])
