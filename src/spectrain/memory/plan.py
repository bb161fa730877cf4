"""plan: what a run will need in memory, before it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from spectrain.errors import UsageError
from spectrain.memory.advice import next_to_switch_on
from spectrain.memory.live import ACTIVATIONS, CACHED, FROZEN, GRADIENTS, OPTIMIZER, WEIGHTS
from spectrain.memory.rehearsal import LOGITS, STEP, Loss, Rehearsal, Setting, rehearse
from spectrain.memory.segments import WORKSPACE
from spectrain.method import Method
from spectrain.optimizers import MakeOptimizer
from spectrain.surgery import Targets

NAMES = {
    WEIGHTS: "weights that train",
    FROZEN: "frozen weights and buffers",
    GRADIENTS: "gradients",
    OPTIMIZER: "optimizer state",
    CACHED: "kept by the layers for a step",
    ACTIVATIONS: "activations",
    LOGITS: "logits and their gradient",
    WORKSPACE: "workspace of decompositions",
}
EXACT = (WEIGHTS, FROZEN, GRADIENTS, OPTIMIZER)  # the rest is called an estimate
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Line:
    """One kind of memory."""

    part: str  # key of NAMES
    bytes: int  # when it is complete; what has no such size: at the peak
    at_peak: int  # of an ordinary step
    exact: bool  # `bytes` is exact, to the byte

    @property
    def name(self) -> str:
        return NAMES[self.part]


@dataclass(frozen=True)
class Peak:
    """The largest memory of one kind of step."""

    name: str  # "step", or what happens in it: "re-SVD", "refresh"
    moment: str  # "forward pass", "loss", "backward pass", "update"
    bytes: int
    parts: Mapping[str, int]  # what there is at that moment, by keys of NAMES
    update: int  # the peak of its update alone: of the event itself, where there is one


@dataclass(frozen=True)
class Plan:
    """The memory that training needs; all sizes in bytes."""

    method: Mapping[str, Any]  # name and settings
    title: str
    setting: Mapping[str, Any]
    lines: tuple[Line, ...]
    step: Peak  # an ordinary step
    events: tuple[Peak, ...]  # the steps that end in events, or in which something special is done
    dominant: str  # the part that is the largest at the overall peak, in words
    advice: str  # the next thing to switch on
    largest_rank: int  # that every layer can have

    @property
    def peak(self) -> int:
        """What has to be free: the largest of all steps."""
        return max(peak.bytes for peak in (self.step, *self.events))

    def line(self, part: str) -> Line:
        """The line of `part`, "weights" … "logits"; zero where there is none of it."""
        found = (line for line in self.lines if line.part == part)
        return next(found, Line(part, 0, 0, part in EXACT))

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "method": dict(self.method),
            "title": self.title,
            "setting": dict(self.setting),
            "parts": {
                line.part: {"bytes": line.bytes, "at_peak": line.at_peak, "exact": line.exact}
                for line in self.lines
            },
            "step": _peak_json(self.step),
            "events": [_peak_json(peak) for peak in self.events],
            "peak": self.peak,
            "dominant": self.dominant,
            "next": self.advice,
        }

    def __str__(self) -> str:
        rows = [
            (line.name, in_words(line.bytes), in_words(line.at_peak), mark(line.exact))
            for line in self.lines
        ]
        rows.append((f"peak of a step ({self.step.moment})", "", in_words(self.step.bytes), "≈"))
        for peak in self.events:
            rows.append((f"with {peak.name} ({peak.moment})", "", in_words(peak.bytes), "≈"))
            if peak.moment != "update":
                rows.append(("  in its update alone", "", in_words(peak.update), "≈"))
        width = max(len(row[0]) for row in rows)
        table = [f"{a:<{width}}  {b:>11}  {c:>11}  {d}" for a, b, c, d in rows]
        head = f"{self.title}\n{'':<{width}}  {'complete':>11}  {'at the peak':>11}"
        return "\n".join([head, *table, f"mostly {self.dominant}; next: {self.advice}"])


def plan(
    model: nn.Module | Callable[[], nn.Module],
    method: Method,
    *,
    batch_size: int,
    sequence_length: int,
    dtype: torch.dtype = torch.float32,
    optimizer: str | type[Optimizer] | MakeOptimizer = torch.optim.AdamW,
    device: str | torch.device = "cpu",
    accumulate: int = 1,
    gradient_checkpointing: bool = False,
    layerwise: bool = False,
    loss: Loss | None = None,
    batch: Callable[[], Any] | None = None,
    targets: Targets = "all-linear",
    exclude: Sequence[str] = ("lm_head",),
) -> Plan:
    """The memory of training `model` with `method`, from a step rehearsed without any data.

    model: a module that nothing was applied to (it stays as it is), or a function that builds one;
        the function runs on tensors without data, so that no weight is allocated.
    batch_size, sequence_length: of one backward pass; `accumulate` passes make an optimizer step.
    dtype: of autocast; weights stay as they are. float32 means no autocast.
    optimizer: a class (fused where it can be), the name of one in torch.optim, or a function that
        makes one from parameter groups.
    device: "cpu" or a GPU, where activations are less sure.
    layerwise: layers are stepped in the backward pass, as by `spectrain.LayerWise`.
    loss: function of model and batch, in place of the cross-entropy of the next token by
        `model(input_ids=…).logits`.
    batch: makes what one backward pass is given, without numbers that matter; in place of ids
        (batch_size, sequence_length + 1), int64.
    targets, exclude: as in `spectrain.apply`.

    A method that trains in phases is planned for the largest. Raises UsageError as `apply` and
    `attach` do, and for an optimizer or a model whose step cannot be taken without data.
    """
    sizes = {"batch_size": batch_size, "sequence_length": sequence_length, "accumulate": accumulate}
    for name, value in sizes.items():
        if value < 1:
            raise UsageError(f"plan: {name} is {value}; it must be at least 1")
    if dtype not in DTYPES:
        raise UsageError(f"plan: dtype is {dtype}; allowed are {', '.join(map(str, DTYPES))}")
    setting = Setting(
        **sizes,
        dtype=dtype,
        gradient_checkpointing=gradient_checkpointing,
        layerwise=layerwise,
        loss=loss,
        batch=batch,
        targets=targets,
        exclude=exclude,
    )
    words = {
        **sizes,
        "dtype": str(dtype).removeprefix("torch."),
        "optimizer": getattr(optimizer, "__name__", str(optimizer)),
        "device": str(device),
        "gradient_checkpointing": gradient_checkpointing,
        "layerwise": layerwise,
    }
    plans = [
        _made(phase, method, rehearse(model, phase, setting, optimizer), words)
        for phase, _ in method.phases(_LONG)
    ]
    return max(plans, key=lambda made: made.peak)


_LONG = 10**9  # steps of a run that goes through all its phases
_MUCH = 1.01  # an event whose peak is so many times a step's is worth something against it


def _made(phase: Method, method: Method, found: Rehearsal, words: Mapping[str, Any]) -> Plan:
    kinds: dict[str, Peak] = {}
    for segment, parts in found.profile.items():
        kind, _, place = segment.partition("/")
        update = sum(found.profile[f"{kind}/update"].values())
        peak = Peak(kind, _moment(place), sum(parts.values()), parts, update)
        if kind not in kinds or kinds[kind].bytes < peak.bytes:
            kinds[kind] = peak
    step = kinds.pop(STEP)
    lines = [
        Line(part, found.sizes.get(part, step.parts.get(part, 0)), step.parts.get(part, 0), exact)
        for part in NAMES
        if (exact := part in EXACT) or step.parts.get(part, 0)
    ]
    most = max((step, *kinds.values()), key=lambda peak: peak.bytes)
    most = most if most.bytes > _MUCH * step.bytes else step
    ranking = sorted(most.parts, key=lambda part: -most.parts[part])
    during = "" if most is step else most.name
    return Plan(
        method=method.settings(),
        title=method.title,
        setting=words,
        lines=tuple(lines),
        step=step,
        events=tuple(kinds.values()),
        dominant=NAMES[ranking[0]],
        advice=next_to_switch_on(ranking, phase, words, during),
        largest_rank=found.largest_rank,
    )


def _moment(place: str) -> str:
    kind = place.split()[0]
    return {
        "input": "forward pass",
        "forward": "forward pass",
        "backward": "backward pass",
    }.get(kind, kind)


def _peak_json(peak: Peak) -> dict[str, Any]:
    parts = {part: size for part, size in peak.parts.items() if size}
    words = {"name": peak.name, "moment": peak.moment, "bytes": peak.bytes}
    return {**words, "parts": parts, "update": peak.update}


def mark(exact: bool) -> str:
    """The sign that a table puts beside a figure."""
    return "exact" if exact else "≈"


def in_words(size: float) -> str:
    """Bytes for people: "3.42 GiB", "17.0 MiB", "512 B"."""
    for unit, digits in (("GiB", 2), ("MiB", 1), ("KiB", 1)):
        factor = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}[unit]
        if abs(size) >= factor:
            return f"{size / factor:,.{digits}f} {unit}"
    return f"{size:.0f} B"
