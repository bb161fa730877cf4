"""What a run comes to: result.json, and the spectra of its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from spectrain.method import Method
from spectrain.runs.files import write_json
from spectrain.runs.memory import RunMemory
from spectrain.runs.metrics import MetricsLog
from spectrain.runs.options import RunOptions
from spectrain.runs.position import Position
from spectrain.runs.records import SPECTRA, read_record
from spectrain.tasks.task import Task


def result_of(
    outcome: Mapping[str, Any],  # scores, and how the run failed if it did
    now: Position,
    task: Task,
    method: Method,
    options: RunOptions,
    model: nn.Module,
    memory: RunMemory,
    log: MetricsLog,
) -> dict[str, Any]:
    """The content of result.json."""
    parameters = list(model.parameters())
    best = {"best_step": now.best_step, "stopped_early": now.step < options.steps}
    on_gpu = parameters[0].device.type == "cuda"
    return {
        "steps": now.step,
        task.unit: now.step * task.units_per_step,
        **outcome,
        **(best if options.patience else {}),
        "seconds": round(log.seconds, 3),
        "seconds_per_step": log.seconds_per_step(),
        "bytes": {**now.bytes, "device_peak": memory.highest_on_device() if on_gpu else None},
        "memory": memory.result(),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "frozen_parameters": sum(p.numel() for p in parameters if not p.requires_grad),
        "method": method.settings(),
        "lr": options.lr,
        "lr_ordinary": options.lr_ordinary,
        "seed": options.seed,
        "corpus_fingerprint": task.summary()["fingerprint"],
        "options": asdict(options),
    }


def add_last_spectra(directory: Path, last: Mapping[str, Any]) -> None:
    """Write the spectra of the end beside those of the beginning. Raises RunError if that fails."""
    path = directory / "spectra.json"
    first = read_record(path, SPECTRA) or {}
    names = dict.fromkeys((*first, *last))
    write_json(path, {name: {**first.get(name, {}), **last.get(name, {})} for name in names})
