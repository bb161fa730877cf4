"""The training loop, one for all tasks and methods."""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from torch.optim import Optimizer

from spectrain.attachment import attach, detach
from spectrain.errors import NonFiniteError, RunError, SpectrainWarning
from spectrain.groups import param_groups
from spectrain.method import Method
from spectrain.runs import checkpoint
from spectrain.runs.allocator import keep_freed_memory
from spectrain.runs.files import read_json, write_json
from spectrain.runs.interrupt import Interrupted, StopRequest, stop_on_signal
from spectrain.runs.memory import RunMemory, size_of
from spectrain.runs.metrics import MetricsLog
from spectrain.runs.options import RunOptions
from spectrain.runs.spectra import spectra
from spectrain.runs.view import View
from spectrain.surgery import apply, merge, parametrized
from spectrain.tasks.task import Task

EXPLODED = 3.0  # a loss so many times the first one is called exploded


class DivergedError(RunError):
    """The loss became NaN, infinite or far larger than at the start."""


@dataclass(frozen=True)
class Interval:
    """What has been summed up since the latest row of metrics."""

    steps: int = 0
    loss: float = 0.0
    seconds: float = 0.0


class Training:
    """One run in its directory: build, resume, train, measure, save.

    `train()` returns the content of result.json. Raises DivergedError where the loss is lost,
    Interrupted after a signal, RunError if the disk fails.
    """

    def __init__(
        self, task: Task, method: Method, options: RunOptions, directory: Path, view: View
    ) -> None:
        self.task, self.method, self.options, self.view = task, method, options, view
        self.directory = directory
        self.device = options.find_device()
        self.dtype = getattr(torch, options.dtype)
        self.phases = method.phases(options.steps)
        self.ends = [sum(n for _, n in self.phases[: i + 1]) for i in range(len(self.phases))]
        self.step = 0
        self.phase = 0
        self.first_loss: float | None = None
        self.interval = Interval()
        self.gradient_bytes = 0
        self.bytes = {"weights": 0, "gradients": 0, "optimizer": 0}
        self.memory = RunMemory(task, options, self.device)
        if self.device.type == "cpu":
            keep_freed_memory()

    def train(self) -> dict[str, Any]:
        """Train to the end, from the newest intact checkpoint where there is one."""
        found, passed_over = checkpoint.newest(self.directory / "checkpoints")
        for sentence in passed_over:
            warnings.warn(sentence, SpectrainWarning, stacklevel=2)
        if found is not None:
            state = found.state()
            self.step, self.phase = found.step, state["phase"]
            self.first_loss, self.interval = state["first_loss"], Interval(**state["interval"])
            self.gradient_bytes, self.bytes = state["gradient_bytes"], state["bytes"]
            self.memory.phases = state.get("memory", {})
            self.view.say(f"continuing {self.directory} from step {self.step}")
        elif passed_over:
            self.view.say(f"no intact checkpoint in {self.directory}: starting again from step 0")
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # of an earlier trial in this process
        torch.manual_seed(self.options.seed)
        self.model = self.task.build_model().to(self.device)
        if found is None:
            self.task.save_assets(self.model, self.directory)
        self._enter_phase()
        if found is not None:
            found.restore(self.model, self.optimizer)
        else:
            write_json(self.directory / "spectra.json", spectra(self.model, "initial", {}))
        self.log = MetricsLog(self.directory, self.step)
        self.view.begin(self.phases[self.phase][0].title, self.step, self.options.steps)
        try:
            with stop_on_signal() as stop:
                while self.step < self.options.steps:
                    self._one_interval(stop)
                    if stop.asked:
                        self._save()
                        raise Interrupted(
                            f"stopped at step {self.step} and saved; the same command continues"
                        )
        finally:
            self.view.end()
        if found is None or found.step < self.step:
            self._save()
        return self._finish()

    # --- phases --------------------------------------------------------------------------------

    def _enter_phase(self) -> None:
        method, _ = self.phases[self.phase]
        o = self.options
        self.memory.begin(self.phase, method, self.model)
        apply(self.model, method, o.targets, o.excluded, report=self.view.say)
        self.model.to(self.device)
        self.optimizer = self._build_optimizer()
        attach(self.model, self.optimizer)
        self._warn_of_silent_events()
        self.run_model: Any = torch.compile(self.model) if self.options.compile else self.model

    def _warn_of_silent_events(self) -> None:
        """Say which events the phase is too short for: a method that never acts is no test of it."""
        method, steps = self.phases[self.phase]
        layers = [layer for _, layer in parametrized(self.model)]
        for event in method.events():
            first = min(event.period(layer) for layer in layers)
            if first >= steps:
                warnings.warn(
                    f"{method.title}: no {event.name} will happen in {steps} steps, since the first "
                    f"comes after {first}",
                    SpectrainWarning,
                    stacklevel=2,
                )

    def _build_optimizer(self) -> Optimizer:
        o = self.options
        ordinary = o.lr if o.lr_ordinary is None else o.lr_ordinary
        groups = param_groups(self.model, ordinary, weight_decay=o.weight_decay, factor_lr=o.lr)
        self.rates = [group["lr"] for group in groups]
        return o.build_optimizer(groups)

    # --- steps ---------------------------------------------------------------------------------

    def _one_interval(self, stop: StopRequest) -> None:
        """Steps up to the next point where something is logged, measured, saved or changed.

        A stop that is asked for ends it after the current step; what has been summed up until
        then goes into the checkpoint, so that the rows come out as without the stop.
        """
        if self.step == self.ends[self.phase]:
            self._measure()
            merge(self.model)
            self.phase += 1
            self._enter_phase()
            self.gradient_bytes = 0
            self.view.begin(self.phases[self.phase][0].title, self.step, self.options.steps)
        o, before = self.options, self.interval
        began = time.perf_counter()
        total = torch.full((), before.loss, device=self.device)
        steps = before.steps
        while True:
            total += self._one_step()
            self.step += 1
            steps += 1
            complete = self._is_due() or self.step == self.ends[self.phase]
            if complete or stop.asked:
                break
        loss = total.item() / steps
        seconds = before.seconds + time.perf_counter() - began
        self._check(loss)
        if not complete:
            self.interval = Interval(steps, total.item(), seconds)
            return
        self.interval = Interval()
        self.first_loss = loss if self.first_loss is None else self.first_loss
        units = steps * self.task.units_per_step
        rate = o.rate(self.step - 1)
        ordinary = (o.lr if o.lr_ordinary is None else o.lr_ordinary) * rate
        self.log.record(step=self.step, loss=loss, lr=o.lr * rate, lr_ordinary=ordinary)
        self.log.record_timing(self.step, seconds, units, self.task.unit)
        self.view.advance(self.step, loss, o.lr * rate, units / seconds)
        if o.eval_every and self.step % o.eval_every == 0 and self.step < o.steps:
            self.log.record(step=self.step, validation_loss=self._evaluate("validation", False))
        if o.checkpoint_every and self.step % o.checkpoint_every == 0 and self.step < o.steps:
            self._save()

    def _is_due(self) -> bool:
        o = self.options
        periods = o.log_every, o.eval_every, o.checkpoint_every
        return any(period and self.step % period == 0 for period in periods)

    def _one_step(self) -> torch.Tensor:
        factor = self.options.rate(self.step)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.model.train()
        batches = self.task.micro_batches(self.step, self.options.seed)
        with self.memory.watching(self.model, self.optimizer):
            return self._train_on(batches)

    def _train_on(self, batches: list[torch.Tensor]) -> torch.Tensor:
        """One optimizer step; returns its mean loss."""
        total = torch.zeros((), device=self.device)
        low = self.dtype != torch.float32
        for batch in batches:
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=low):
                loss = self.task.loss(self.run_model, batch.to(self.device)) / len(batches)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if self.options.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip)
        if not self.gradient_bytes:
            self.gradient_bytes = size_of(p.grad for p in self.model.parameters())
        try:
            self.optimizer.step()
        except NonFiniteError:  # an event came before the next look at the loss
            self._give_up("NaN or infinite weights")
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def _check(self, loss: float) -> None:
        first = loss if self.first_loss is None else self.first_loss
        if not loss <= EXPLODED * max(first, 1.0):  # True for NaN
            self._give_up(f"loss {loss:.4g}")

    def _give_up(self, what: str) -> NoReturn:
        """Record how the run was lost, and raise DivergedError."""
        bad = [n for n, p in self.model.named_parameters() if not torch.isfinite(p).all()]
        where = f"; first non-finite parameter: {bad[0]}" if bad else ""
        found, _ = checkpoint.newest(self.directory / "checkpoints")
        kept = f"; last good checkpoint: step {found.step}" if found else ""
        failure = f"{what} at step {self.step}{where}"
        write_json(self.directory / "result.json", self._result({"failed": failure}))
        raise DivergedError(f"training diverged: {failure}{kept}. A lower --lr is the usual cure")

    # --- measuring and saving ------------------------------------------------------------------

    def _evaluate(self, split: str, thorough: bool) -> float:
        return self.task.evaluate(self.model, split, thorough=thorough, dtype=self.dtype)

    def _save(self) -> None:
        began = time.perf_counter()
        phases = [[method.settings(), steps] for method, steps in self.phases]
        extra = {
            "phase": self.phase,
            "phases": phases,
            "first_loss": self.first_loss,
            "interval": asdict(self.interval),
            "gradient_bytes": self.gradient_bytes,
            "bytes": self.bytes,
            "memory": self.memory.phases,
        }
        saved = checkpoint.save(
            self.directory / "checkpoints",
            self.step,
            self.model,
            self.optimizer,
            self.task.probe(self.model),
            extra,
            self.options.keep,
        )
        size = sum(f.stat().st_size for f in saved.path.iterdir()) / 2**20
        seconds = time.perf_counter() - began
        self.view.say(f"checkpoint at step {self.step}: {size:.1f} MiB in {seconds:.1f} s")

    def _finish(self) -> dict[str, Any]:
        losses = {
            "validation_loss": self._evaluate("validation", True),
            "test_loss": self._evaluate("test", True),
        }
        self.log.record(step=self.step, **losses)
        before = read_json(self.directory / "spectra.json") or {}
        write_json(self.directory / "spectra.json", spectra(self.model, "final", before))
        result = self._result({**losses, "failed": None})
        write_json(self.directory / "result.json", result)
        detach(self.model)
        return result

    def _result(self, outcome: dict[str, Any]) -> dict[str, Any]:
        self._measure()
        parameters = list(self.model.parameters())
        cuda = self.device.type == "cuda"
        return {
            "steps": self.step,
            self.task.unit: self.step * self.task.units_per_step,
            **outcome,
            "seconds": round(self.log.seconds, 3),
            "seconds_per_step": self.log.seconds_per_step(),
            "bytes": {
                **self.bytes,
                "device_peak": self.memory.highest_on_device() if cuda else None,
            },
            "memory": self.memory.result(),
            "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "frozen_parameters": sum(p.numel() for p in parameters if not p.requires_grad),
            "method": self.method.settings(),
            "lr": self.options.lr,
            "lr_ordinary": self.options.lr_ordinary,
            "seed": self.options.seed,
            "corpus_fingerprint": self.task.summary()["fingerprint"],
            "options": asdict(self.options),
        }

    def _measure(self) -> None:
        """Keep the sizes of the phase whose weights, gradients and optimizer state are the largest."""
        sizes = self.memory.measure(self.model, self.optimizer, self.gradient_bytes)
        if sum(sizes.values()) > sum(self.bytes.values()):
            self.bytes = sizes
