"""What is watched in training: gradients, updates, drift, spectra, sampling, events, saddle points.

A look costs one pass over the factors and their gradients, in one step of a hundred, and copies nothing as
large as a weight; no other step waits for the device. docs/diagnostics.md describes the rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectrain.diagnostics.dynamics import SaddleAlarm
from spectrain.distributed import gathered
from spectrain.moments import Moments
from spectrain.parametrizations.base import Parametrization
from spectrain.runs.options import RunOptions
from spectrain.runs.spectra import singular_values, some_layers
from spectrain.surgery import parametrized

LAYERS = 8  # whose spectra and samples are written down
VALUES = 48  # of a spectrum
SPECTRA = 16  # in a run
LEAST_BETWEEN_SPECTRA = 50  # steps
EVENTS = 1000  # rows of one kind in a run, at most
SAMPLES = 200  # rows of which vectors were drawn, at most
OFFSET = 382  # of a thousand parts of a period, after which a look comes
ROWS = 64  # of a whole matrix, from which its change is estimated

Record = Callable[..., None]  # takes a row's fields


class Instruments:
    """Around each optimizer step of a phase: `before_update` and `after_update`.

    Looks need gradients that are whole and still there, so there are none with `--shard` or
    `--layerwise`; spectra, samples and events are written down in any case. All that a row says follows
    from the run's state and its earlier rows, so an interrupted run writes the same ones.
    """

    def __init__(
        self,
        model: nn.Module,
        options: RunOptions,
        step: int,  # steps made
        record: Record,
        said: Iterable[Mapping[str, Any]],  # the rows so far
        alert: Callable[[str], None],
        writes: bool,
    ) -> None:
        self.options, self.record, self.alert = options, record, alert
        self.layers = dict(parametrized(model))
        self.shown = some_layers(model, LAYERS)
        self.looking = writes and not options.shard and not options.layerwise
        self.spectra_every = max(LEAST_BETWEEN_SPECTRA, math.ceil(options.steps / SPECTRA))
        clock = int(next(iter(self.layers.values())).clock)
        self.begun = step - clock  # steps before this phase
        self.events = Counter(
            (event.name, event.period(layer), event.offset(layer))
            for layer in self.layers.values()
            for event in layer.method.events()
        )
        self.alarm, self.rang = SaddleAlarm(), False
        for row in said:
            if isinstance(row.get("layers"), dict):
                self.rang |= bool(self.alarm.hear(row["layers"]))
        self._before: _Before | None = None
        if step == 0 and options.look_period:
            self._write_spectra(0)
            self._write_samples(0)

    def before_update(self, step: int) -> None:
        """Gradients are complete, in step number `step` (from 0)."""
        period = self.options.look_period
        # Not at a multiple of the period: restarts and resamplings often come at multiples of it, and right
        # after them gradients are not what they are at other times.
        if not self.looking or not period or step == 0 or (step - OFFSET * period // 1000) % period:
            return
        trained = [
            (name, factor, p)
            for name, layer in self.layers.items()
            for factor, p in layer.factors().items()
            if p.grad is not None
        ]
        folded = [
            (name, factor, p)
            for name, layer in self.layers.items()
            for factor, p in layer.named_parameters(recurse=False)
            if not p.requires_grad and _is_whole(layer, p)
        ]
        with torch.no_grad():
            parts = [_part(self.layers[name], p) for name, _, p in (*trained, *folded)]
            self._before = _Before(
                names=[(name, factor) for name, factor, _ in (*trained, *folded)],
                gradients=torch._foreach_norm(
                    [p.grad for _, _, p in trained if p.grad is not None]
                ),
                norms=torch._foreach_norm([p.detach() for _, _, p in trained]),
                parts=parts,
                were=[part.clone() for part in parts],
            )

    def after_update(self, step: int) -> None:
        """The update is made, and `step` steps are, their events with them."""
        if not self.options.look_period:
            return
        if self._before is not None:
            self._look(step, self._before)
            self._before = None
        happened = self._write_events(step)
        if step % self.spectra_every == 0:
            self._write_spectra(step)
        if happened and self._is_first_in_its_part(step, happened):
            self._write_samples(step)

    @torch.no_grad()
    def _look(self, step: int, before: _Before) -> None:
        of_parts = torch._foreach_norm(before.were)
        torch._foreach_sub_(before.were, before.parts)
        changes = torch._foreach_norm(before.were)
        drifts = {
            name: d for name, layer in self.layers.items() if (d := layer.drift()) is not None
        }
        kinds = [before.gradients, before.norms, of_parts, changes, [*drifts.values()]]
        together = torch.stack([number.float() for kind in kinds for number in kind]).cpu()
        # Above is the one wait for the device.
        split = (part.tolist() for part in torch.split(together, [len(kind) for kind in kinds]))
        gradients, norms, old, moved, errors = split
        layers: dict[str, dict[str, Any]] = {name: {} for name in self.layers}
        for (name, factor), gradient, norm in zip(before.names, gradients, norms, strict=False):
            _put(layers[name], "gradient", factor, gradient)
            _put(layers[name], "norm", factor, norm)
        for (name, factor), norm, change in zip(before.names, old, moved, strict=True):
            # A factor that was zero, or is folded into a matrix at once, has no ratio; a matrix that did
            # not move, none either.
            if norm and change:
                _put(layers[name], "update", factor, change / norm)
        for name, drift in zip(drifts, errors, strict=True):
            if math.isfinite(drift):
                layers[name]["drift"] = _short(drift)
        ringing = self.alarm.hear(layers)
        for name in ringing:
            layers[name]["saddle"] = True
        self.record(step=step, layers={name: values for name, values in layers.items() if values})
        if ringing and not self.rang:
            self.rang = True
            self.alert(
                f"saddle point: at step {step} the factors of {len(ringing)} of {len(self.layers)} layers "
                f"({ringing[0]} first) have had next to no gradient since they were restarted; a higher "
                "--lr, or fewer restarts, is the usual cure"
            )

    def _write_events(self, step: int) -> list[int]:
        """A row for each kind of event that came with this step; the periods of those that did."""
        clock = step - self.begun
        due = [key for key in self.events if (clock - key[2]) % key[1] == 0]
        counts: dict[str, int] = {}
        for name, period, offset in due:
            if period * EVENTS >= self.options.steps:
                counts[name] = counts.get(name, 0) + self.events[name, period, offset]
        for name, count in counts.items():
            self.record(step=step, event=name, layers=count)
        return sorted(period for _, period, _ in due)

    def _is_first_in_its_part(self, step: int, periods: list[int]) -> bool:
        """So that of many draws about as many as SAMPLES are written, whatever run they are in."""
        part = max(1, self.options.steps // SAMPLES)
        return step // part != (step - periods[0]) // part

    def _write_samples(self, step: int) -> None:
        masks, of = {}, {}
        for name, layer in self.shown:
            with gathered(layer, Moments([])):
                places = layer.sampled()
            if places is not None:
                masks[name] = f"{sum(1 << i for i in places.tolist()):x}"
                of[name] = layer.size
        if masks:
            self.record(step=step, sampled=masks, of=of)

    @torch.no_grad()
    def _write_spectra(self, step: int) -> None:
        found = {}
        for name, layer in self.shown:
            found[name] = _picked(singular_values(layer))
        if found:
            self.record(step=step, spectra=found, of={name: of.size for name, of in self.shown})


@dataclass(frozen=True)
class _Before:
    """What a look keeps of the time before the update. What trains comes first."""

    names: list[tuple[str, str]]  # layer and factor
    gradients: tuple[Tensor, ...]  # norms, of what trains
    norms: tuple[Tensor, ...]
    parts: list[Tensor]  # views
    were: list[Tensor]  # copies of them


def _is_whole(layer: Parametrization, p: Tensor) -> bool:
    return p.shape == (layer.out_features, layer.in_features)


def _part(layer: Parametrization, p: Tensor) -> Tensor:
    """A factor; of a matrix as large as W about ROWS rows, evenly spaced."""
    return p.detach()[:: max(1, p.shape[0] // ROWS)] if _is_whole(layer, p) else p.detach()


def _picked(values: list[float]) -> list[float]:
    """At most VALUES of them, evenly spaced, the first and the last among them."""
    count = min(VALUES, len(values))
    places = [round(i * (len(values) - 1) / max(1, count - 1)) for i in range(count)]
    return [_short(values[i]) for i in places]


def _put(values: dict[str, Any], kind: str, factor: str, number: float) -> None:
    if math.isfinite(number):
        values.setdefault(kind, {})[factor] = _short(number)


def _short(number: float) -> float:
    return float(f"{number:.4g}")
