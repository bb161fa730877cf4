"""The training loop, one for all tasks and methods."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spectrain.attachment import attach, detach
from spectrain.errors import NonFiniteError, RunError, UsageError
from spectrain.groups import param_groups
from spectrain.layerwise import LayerWise
from spectrain.method import Method
from spectrain.optimizers import Stepping
from spectrain.runs import checkpoint, randomness
from spectrain.runs.allocator import keep_freed_memory
from spectrain.runs.files import write_atomic, write_json
from spectrain.runs.health import is_lost, not_finite, warn_of_silent_events
from spectrain.runs.instruments import Instruments
from spectrain.runs.interrupt import Interrupted, StopRequest, stop_on_signal
from spectrain.runs.memory import RunMemory, size_of
from spectrain.runs.metrics import MetricsLog
from spectrain.runs.options import RunOptions
from spectrain.runs.outcome import add_last_spectra, result_of
from spectrain.runs.position import Best, Interval, Position
from spectrain.runs.processes import LossOf, Team
from spectrain.runs.restore import restore
from spectrain.runs.saving import Saver
from spectrain.runs.snapshot import Snapshot, take
from spectrain.runs.spectra import spectra
from spectrain.runs.start import Start, find_start_together, write_beginning
from spectrain.runs.tensorboard import TensorBoard
from spectrain.runs.view import View
from spectrain.surgery import apply, merge
from spectrain.tasks.batch import Batch
from spectrain.tasks.task import StartsFactors, Task


class DivergedError(RunError):
    """The loss became NaN, infinite or far larger than at the start."""

    on_all = True


class Training:
    """One run in its directory, which `open_directory` has made: build, resume, train, measure, save.

    `train()` returns the content of result.json. Raises DivergedError where the loss is lost,
    Interrupted after a signal, RunError if the disk fails or a checkpoint does not fit. Whatever is
    raised, a checkpoint that is being written then gets finished, but for a second signal.
    """

    def __init__(
        self,
        task: Task,
        method: Method,
        options: RunOptions,
        directory: Path,
        view: View,
        team: Team | None = None,
    ) -> None:
        self.task, self.method, self.options, self.view = task, method, options, view
        self.directory = directory
        self.team = team or Team()
        self.device = self.team.device(options.find_device())
        self.dtype = getattr(torch, options.dtype)
        self.phases = method.phases(options.steps)
        self.ends = [sum(n for _, n in self.phases[: i + 1]) for i in range(len(self.phases))]
        self.now = Position()
        self.team.require_possible(task, options.shard, len(self.phases))
        if options.patience and len(self.phases) > 1:
            raise UsageError(
                "--patience goes back to the best checkpoint, and this method changes its layers between "
                "phases; leave --patience or the warm start out"
            )
        self.memory = RunMemory(task, options, self.device, self.team.size)
        if self.device.type == "cpu":
            keep_freed_memory()

    def train(self) -> dict[str, Any]:
        """Train to the end, from the newest intact checkpoint where there is one."""
        asked = stop_on_signal(self.view.alert, self.team.size > 1)
        with asked as stop, ExitStack() as self.at_the_end:
            start = find_start_together(self.directory, self.view.say, self.team)
            folder = self.directory / "checkpoints"
            self.saver = Saver(folder, start.run, self.options, self.view.say, self.team.first)
            try:
                return self._train(start, stop)
            except BaseException:
                if not stop.again:
                    self.saver.finish(self.view.alert)
                raise

    def _train(self, start: Start, stop: StopRequest) -> dict[str, Any]:
        self._begin(start)
        self.view.begin(self.phases[self.now.phase][0].title, self.now.step, self.options.steps)
        try:
            stopped = False  # as agreed: a signal may have reached some of the processes only
            with stop.between_steps():
                while not self._is_over and not stopped:
                    self._one_interval(stop)
                    self.saver.settle()
                    stopped = self.team.any(stop.asked)
                self._save()
                stopped = self.team.any(stopped or stop.asked)
        finally:
            self.view.end()
        if stopped:
            self.saver.wait()
            raise Interrupted(
                f"stopped at step {self.now.step} and saved; the same command continues"
            )
        return self._finish()

    def _begin(self, start: Start) -> None:
        """Build model and optimizer and put them where `start` is."""
        self.now, self.memory.phases = start.position, start.memory
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # of an earlier trial in this process
        seed = self.options.seed
        torch.manual_seed(seed)
        self.model = self.task.build_model().to(self.device)
        self._enter_phase()
        randomness.part(self.team, seed)
        if start.found is not None:
            random = restore(start.found, self.model, self.optimizer, self.options.build_optimizer)
            randomness.give_back(random, self.team, seed, self.now.step)
        elif isinstance(self.task, StartsFactors):
            self.task.start_factors(self.model)
        if not start.is_continued:
            first = {} if start.fork else spectra(self.model, "initial", {})
            self.team.decide(
                lambda: write_beginning(start, self.task, self.model, self.directory, first)
            )
        self.saver.begin(self.now.step if start.is_continued else None, self.now.best_step)
        if start.fork is not None:
            self._save(start.rows)
            self.saver.wait()  # from here on the run it was forked from is not needed any more
        writes = self.team.first
        board = (
            TensorBoard(self.directory, self.now.step)
            if self.options.tensorboard and writes
            else None
        )
        self.log = MetricsLog(self.directory, start.rows, writes, board)
        self.at_the_end.callback(self.log.close)
        self._watch()

    # --- phases --------------------------------------------------------------------------------

    def _enter_phase(self) -> None:
        method, steps = self.phases[self.now.phase]
        o = self.options
        self.memory.begin(self.now.phase, method, self.model)
        with self.team.same_draws():
            apply(self.model, method, o.targets, o.excluded, report=self.view.say)
        self.model.to(self.device)
        model: Any = torch.compile(self.model) if o.compile else self.model
        loss = LossOf(self.task, model)
        if o.shard:
            self.loss: LossOf | DistributedDataParallel = self.team.wrap(loss, sharded=True)
        self.optimizer = self._build_optimizer()
        layerwise = LayerWise(self.task.batch_shape[0], o.clip) if o.layerwise else None
        group = None if self.team.together is None else dist.group.WORLD
        attach(loss, self.optimizer, layerwise=layerwise, process_group=group)
        if not o.shard:
            self.loss = self.team.wrap(loss, sharded=False)
        warn_of_silent_events(method, steps, self.model)

    def _watch(self) -> None:
        log, writes = self.log, self.team.first
        how = log.record_dynamics, log.seen() if writes else [], self.view.alert, writes
        self.instruments = Instruments(self.model, self.options, self.now.step, *how)

    def _build_optimizer(self) -> Stepping:
        o = self.options
        ordinary = o.lr if o.lr_ordinary is None else o.lr_ordinary
        groups = param_groups(self.model, ordinary, weight_decay=o.weight_decay, factor_lr=o.lr)
        optimizer = o.build_optimizer(groups)
        self.rates = [group["lr"] for group in optimizer.param_groups]
        return optimizer

    @property
    def _is_over(self) -> bool:
        """Whether all steps are made, or validation has not become better for too long."""
        o, best = self.options, self.now.best
        impatient = bool(o.patience and best and self.now.step - best.step >= o.patience)
        return self.now.step >= o.steps or impatient

    # --- steps ---------------------------------------------------------------------------------

    def _one_interval(self, stop: StopRequest) -> None:
        """Steps up to the next point where something is logged, measured, saved or changed.

        A stop that is asked for ends it after the current step; what has been summed up until
        then goes into the checkpoint, so that the rows come out as without the stop.
        """
        if self.now.step == self.ends[self.now.phase]:
            self._measure()
            merge(self.model)
            self.now = replace(self.now, phase=self.now.phase + 1, gradient_bytes=0)
            self._enter_phase()
            self._watch()
            title = self.phases[self.now.phase][0].title
            self.view.begin(title, self.now.step, self.options.steps)
        before = self.now.interval
        began = time.perf_counter()
        own = before.own(self.team.rank, self.team.size)
        total = torch.full((), own, device=self.device)
        steps = before.steps
        while True:
            total += self._one_step()
            self.now = replace(self.now, step=self.now.step + 1)
            self.instruments.after_update(self.now.step)
            steps += 1
            complete = self._is_due() or self.now.step == self.ends[self.now.phase]
            if complete or self.team.any(stop.asked):
                break
        seconds = before.seconds + time.perf_counter() - began
        sums = tuple(self.team.numbers(total.item()))
        sum_of_losses = sum(sums) / len(sums)
        if complete:
            self.now = replace(self.now, interval=Interval())
            self._complete_interval(sum_of_losses / steps, steps, seconds)
        elif math.isfinite(sum_of_losses):
            self.now = replace(self.now, interval=Interval(steps, sums, seconds))
        else:
            self._give_up(f"loss {sum_of_losses:.4g}")

    def _complete_interval(self, loss: float, steps: int, seconds: float) -> None:
        """Check, log, measure and save what is due after an interval of `steps` steps."""
        o, step = self.options, self.now.step
        if is_lost(loss, self.now.first_loss):
            self._give_up(f"loss {loss:.4g}")
        if self.now.first_loss is None:
            self.now = replace(self.now, first_loss=loss)
        units = steps * self.task.units_per_step
        rate = o.rate(step - 1)
        ordinary = (o.lr if o.lr_ordinary is None else o.lr_ordinary) * rate
        self.log.record(step=step, loss=loss, lr=o.lr * rate, lr_ordinary=ordinary)
        self.log.record_timing(step, seconds, units, self.task.unit)
        self.view.advance(step, loss, o.lr * rate, units / seconds)
        due = bool(o.checkpoint_every and step % o.checkpoint_every == 0)
        if o.eval_every and step % o.eval_every == 0 and (step < o.steps or o.patience):
            scores = self._evaluate("validation", False)
            self.log.record(step=step, **_named("validation", scores))
            score = next(score for score in self.task.scores if score.key in scores)
            cost = score.cost(scores[score.key])
            best = math.inf if self.now.best is None else self.now.best.cost
            if o.keeps_best and cost < best:
                self.now = replace(self.now, best=Best(step, cost))
                due = True
        if due and step < o.steps:
            self._save()

    def _is_due(self) -> bool:
        o = self.options
        periods = o.log_every, o.eval_every, o.checkpoint_every
        return any(period and self.now.step % period == 0 for period in periods)

    def _one_step(self) -> torch.Tensor:
        factor = self.options.rate(self.now.step)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.model.train()
        batches = [
            self.team.part(batch)
            for batch in self.task.micro_batches(self.now.step, self.options.seed)
        ]
        with self.memory.watching(self.model, self.optimizer):
            return self._train_on(batches)

    def _train_on(self, batches: Sequence[Batch]) -> torch.Tensor:
        """One optimizer step; returns its mean loss."""
        total = torch.zeros((), device=self.device)
        low = self.dtype != torch.float32
        for i, batch in enumerate(batches):
            with self.team.averaging(self.loss, i == len(batches) - 1):
                with torch.autocast(self.device.type, dtype=self.dtype, enabled=low):
                    loss = self.loss(batch.to(self.device)) / len(batches)
                loss.backward()
            total += loss.detach()
        self.instruments.before_update(self.now.step)
        if self.options.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip)
        if not self.now.gradient_bytes:
            size = size_of(p.grad for p in self.model.parameters())
            self.now = replace(self.now, gradient_bytes=size)
        try:
            self.optimizer.step()
        except NonFiniteError:  # an event came before the next look at the loss
            self._give_up("NaN or infinite weights")
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def _give_up(self, what: str) -> NoReturn:
        """Record how the run was lost, and raise DivergedError."""
        self.saver.finish(self.view.alert)
        bad = not_finite(self.model, self.optimizer)
        where = f"; first non-finite parameter: {bad}" if bad else ""
        found = checkpoint.newest(self.saver.folder, self.saver.run).found
        kept = f"; last good checkpoint: step {found.step}" if found else ""
        failure = f"{what} at step {self.now.step}{where}"
        self.team.decide(
            lambda: write_json(self.directory / "result.json", self._result({"failed": failure}))
        )
        raise DivergedError(f"training diverged: {failure}{kept}. A lower --lr is the usual cure")

    # --- measuring and saving ------------------------------------------------------------------

    def _evaluate(self, split: str, thorough: bool) -> dict[str, float]:
        how = {"thorough": thorough, "dtype": self.dtype, "processes": self.team.together}
        return self.team.inside(self.loss, lambda: self.task.evaluate(self.model, split, **how))

    def _save(self, rows: Mapping[str, bytes] | None = None) -> None:
        """Copy the state and begin to write it, unless that step is saved or its numbers are lost.

        rows: the files of rows by name; as they are on the disk if not given.
        """
        if self.saver.newest == self.now.step:
            return
        if self.team.any(not_finite(self.model, self.optimizer) is not None):
            self._give_up("NaN or infinite weights")
        self.saver.save(lambda: self._snapshot(rows), self.now.best_step)

    def _snapshot(self, rows: Mapping[str, bytes] | None) -> Snapshot:
        probe = self.team.inside(self.loss, lambda: self.task.probe(self.model))
        return take(
            self.now.step,
            self.model,
            self.optimizer,
            probe,
            self.now.record(self.phases, self.memory.phases),
            self.log.contents() if rows is None else rows,
            self.team,
        )

    def _finish(self) -> dict[str, Any]:
        self.saver.wait()  # so that a run with a result has its last checkpoint
        if self.options.patience:
            self._return_to_best()
        scores = _named("validation", self._evaluate("validation", True))
        scores |= _named("test", self._evaluate("test", True))
        last = spectra(self.model, "final", {})
        # By all processes, though one writes: a sharded model answers only if all of them ask.
        shown = self.team.inside(self.loss, lambda: self.task.exhibits(self.model))
        result: dict[str, Any] = self.team.decide(lambda: self._conclude(scores, last, shown))
        detach(self.model)
        return result

    def _return_to_best(self) -> None:
        """Load the checkpoint that was the best on validation data, to be measured and shown."""
        best = self.now.best_step
        if best is None or best == self.now.step:
            return
        found = checkpoint.at(self.saver.folder, best, self.saver.run)
        restore(found, self.model, self.optimizer, self.options.build_optimizer)

    def _conclude(
        self, scores: dict[str, float], last: dict[str, Any], shown: dict[str, bytes]
    ) -> dict[str, Any]:
        """Write the last row, the spectra, what there is to see, and the result."""
        measured = self.now.best_step if self.options.patience else self.now.step
        self.log.record(step=measured, **scores)
        add_last_spectra(self.directory, last)
        for name, content in shown.items():
            write_atomic(self.directory / name, content)
        result = self._result({**scores, "failed": None})
        write_json(self.directory / "result.json", result)
        return result

    def _result(self, outcome: dict[str, Any]) -> dict[str, Any]:
        self._measure()
        how = self.task, self.method, self.options, self.model, self.memory, self.log
        return result_of(outcome, self.now, *how)

    def _measure(self) -> None:
        """Keep the sizes of the phase whose weights, gradients and optimizer state are the largest."""
        sizes = self.memory.measure(self.model, self.optimizer, self.now.gradient_bytes)
        if sum(sizes.values()) > sum(self.now.bytes.values()):
            self.now = replace(self.now, bytes=sizes)


def _named(split: str, scores: Mapping[str, float]) -> dict[str, float]:
    """Scores as rows and results name them: validation_loss."""
    return {f"{split}_{key}": value for key, value in scores.items()}
