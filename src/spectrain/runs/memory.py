"""A run's memory: planned before the first step, measured in one early step, shown side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spectrain.errors import UsageError
from spectrain.memory.clocks import is_ordinary
from spectrain.memory.live import LiveBytes
from spectrain.memory.plan import Plan, in_words, plan
from spectrain.method import Method
from spectrain.optimizers import Stepping
from spectrain.runs.options import RunOptions
from spectrain.surgery import parametrized
from spectrain.tasks.task import Task

_PLANS: dict[str, Plan] = {}  # of this process: the trials of a comparison ask for the same ones


class RunMemory:
    """Plan and measurement for each phase of a run.

    `phases` is what a checkpoint keeps: by the number of the phase its sizes in bytes, "planned" and
    "measured", each with "peak" (of an ordinary step), "weights", "gradients" and "optimizer".
    """

    def __init__(
        self, task: Task, options: RunOptions, device: torch.device, processes: int = 1
    ) -> None:
        self.task, self.options, self.device = task, options, device
        self.processes = processes
        self.phases: dict[str, dict[str, Any]] = {}
        self.device_peak = 0  # of a GPU's allocator, before it was set back for the measured step

    def begin(self, phase: int, method: Method, model: nn.Module) -> None:
        """Plan the phase, from the model as it is before the method is applied to it."""
        self.phase, self.method = str(phase), method
        self.entry = self.phases.setdefault(self.phase, {})
        if self.entry:  # continued
            return
        self.entry["note"] = self._reason_not_to_measure()
        if self.processes > 1:
            return
        try:
            found = self._plan(model)
        except UsageError as error:  # a model of its own kind may train and yet not be planned
            self.entry["note"] = str(error)
            return
        self.entry["planned"] = {
            "peak": found.step.bytes,
            "weights": found.line("weights").bytes + found.line("frozen").bytes,
            "gradients": found.line("gradients").bytes,
            "optimizer": found.line("optimizer").bytes,
            "with_events": found.peak,
        }

    def _plan(self, model: nn.Module) -> Plan:
        o = self.options
        accumulate, batch_size, length = self.task.batch_shape
        shapes = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
        task = getattr(self.task, "options", self.task.name)
        how = o.optimizer, o.dtype, str(self.device), o.targets, o.exclude, o.layerwise
        key = repr((self.method.settings(), self.task.batch_shape, how, task, shapes))
        if key not in _PLANS:
            _PLANS[key] = plan(
                model,
                self.method,
                batch_size=batch_size,
                sequence_length=length,
                accumulate=accumulate,
                dtype=getattr(torch, o.dtype),
                optimizer=o.build_optimizer,
                device=self.device,
                loss=self.task.loss,
                batch=self.task.blank,
                targets=o.targets,
                exclude=o.excluded,
                layerwise=o.layerwise,
            )
        return _PLANS[key]

    def _reason_not_to_measure(self) -> str | None:
        if self.processes > 1:
            return "neither planned nor measured, since several processes train"
        if self.options.compile:
            return "not measured, since torch.compile makes one operation of many"
        if self.device.type not in ("cpu", "cuda"):
            return f"not measured on {self.device.type}"
        return None

    @contextmanager
    def watching(self, model: nn.Module, optimizer: Stepping) -> Iterator[None]:
        """Measure the step within, if it is the phase's first ordinary one; it computes the same."""
        if "measured" in self.entry or self._reason_not_to_measure():
            yield
            return
        layers = [layer for _, layer in parametrized(model)]
        if not is_ordinary(self.method, layers, int(layers[0].clock)):
            yield
            return
        if self.device.type == "cuda":
            self.device_peak = max(self.device_peak, torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()
            yield
            peak = torch.cuda.max_memory_allocated()
        else:
            with LiveBytes(model, optimizer) as live:
                yield
            peak = live.peak
        self.entry["measured"] = {"peak": peak}

    def measure(self, model: nn.Module, optimizer: Stepping, gradients: int) -> dict[str, int]:
        """The sizes in bytes that the phase has, whatever the step; `gradients` is known already."""
        hosted = (t for _, layer in parametrized(model) for t in layer.hosted.values())
        sizes = {
            "weights": size_of([*model.parameters(), *model.buffers(), *hosted]),
            "gradients": gradients,
            "optimizer": size_of(
                value
                for entry in optimizer.state.values()
                for value in entry.values()
                if isinstance(value, Tensor)
            ),
        }
        if "measured" in self.entry:
            self.entry["measured"].update(sizes)
        return sizes

    def highest_on_device(self) -> int:
        """The highest peak of a GPU's allocator in this process."""
        return max(self.device_peak, torch.cuda.max_memory_allocated())

    def result(self) -> dict[str, Any]:
        """For result.json: the phase with the highest peak, and how far the plan was off."""
        entries = list(self.phases.values())

        def peak(entry: Mapping[str, Any]) -> int:
            size: int = (entry.get("measured") or entry.get("planned") or {}).get("peak", 0)
            return size

        entry = max(entries, key=peak, default={})
        planned, measured = entry.get("planned"), entry.get("measured")
        note = entry.get("note")
        if measured is None and note is None:
            note = "not measured, since no step was an ordinary one"
        error = None
        if planned and measured:
            error = 100 * (planned["peak"] / measured["peak"] - 1)
        return {"planned": planned, "measured": measured, "error_percent": error, "note": note}


def size_of(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the numbers in `tensors`."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def beside(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Plan beside measurement as rows of a table: (what, text)."""
    memory = result.get("memory") or {}
    planned, measured = memory.get("planned") or {}, memory.get("measured") or {}
    rows = []
    for part in ("weights", "gradients", "optimizer"):
        if part in planned and part in measured:
            same = planned[part] == measured[part]
            verdict = "exact" if same else f"measured {in_words(measured[part])}"
            rows.append((f"planned {part}", f"{in_words(planned[part])} ({verdict})"))
    if "peak" in planned:
        text = f"{in_words(planned['peak'])} planned"
        if "peak" in measured and (error := memory.get("error_percent")) is not None:
            error = round(error, 1) or 0.0  # no −0.0
            sign = f"{error:+.1f} %".replace("-", "−")
            text += f", {in_words(measured['peak'])} measured (plan {sign})"
        rows.append(("peak of a step", text))
        if planned["with_events"] > planned["peak"]:
            rows.append(("peak with events", f"{in_words(planned['with_events'])} planned"))
    if memory.get("note"):
        rows.append(("memory", memory["note"]))
    return rows
