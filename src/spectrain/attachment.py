"""attach: run a method's step rule and events from the optimizer's own step hooks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spectrain import checks
from spectrain.distributed import Processes, processes_of
from spectrain.errors import SpectrainWarning, UsageError
from spectrain.layerwise import BackwardSteps, LayerWise
from spectrain.method import Event, Method
from spectrain.moments import Moments
from spectrain.optimizers import is_skipped, unscale, unwrapped
from spectrain.parametrizations.base import Parametrization, full_precision
from spectrain.surgery import parametrized

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_ATTACHED: WeakSet[Attachment] = WeakSet()  # kept alive by the hooks on their optimizers


def attach(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    layerwise: LayerWise | None = None,
    process_group: ProcessGroup | None = None,
) -> None:
    """From here on, `optimizer.step()` runs the step rule and events of the model's method.

    Takes one optimizer or several that step different parameters; accelerate's wrapper is looked
    through. Works with gradient accumulation, learning-rate schedulers (a rate scaled for a warm-up
    is restored right after the step), gradient scalers (a skipped step is no step), and with several
    processes: DistributedDataParallel and `fully_shard` are recognised at the first step; what events
    draw or decompose is decided once, for all. `process_group` names the processes where neither is
    there and gradients are averaged by hand.

    layerwise: step each layer inside the backward pass, see `LayerWise`.

    Raises UsageError if nothing was applied, the model is attached already, a factor is in no or in
    two optimizers, factors share a group with ordinary parameters although their rate must be
    warmed up apart, or the optimizer is LBFGS or SparseAdam. Warns about trainable parameters that
    no optimizer holds.
    """
    if is_attached(model):
        raise UsageError("attach: this model is attached already; call spectrain.detach first")
    many = optimizer if isinstance(optimizer, Sequence) else [optimizer]
    together = None if process_group is None else Processes(process_group)
    _ATTACHED.add(Attachment(model, [unwrapped(o) for o in many], layerwise, together))


def detach(model: nn.Module) -> None:
    """Take the hooks off the optimizers again; factors and clocks stay as they are.

    Warns if the schedule never ticked although factors changed.
    """
    if not is_attached(model):
        raise UsageError("detach: this model is not attached")
    layers = [layer for _, layer in parametrized(model)]
    for attachment in list(_ATTACHED):
        if any(own is layer for own in attachment.layers.values() for layer in layers):
            _ATTACHED.discard(attachment)
            attachment.remove()
    for layer in layers:  # also where the optimizer, and the attachment with it, is gone already
        layer.attached = False


def is_attached(model: nn.Module) -> bool:
    """True between `attach` and `detach` (or `merge`), of the model or of one that wraps it."""
    return any(layer.attached for _, layer in parametrized(model))


class Attachment:
    """Step hooks on the optimizers that hold a model's factors; one tick of the clock per step.

    With several optimizers the clock ticks once all of them have stepped.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        layerwise: LayerWise | None,
        processes: Processes | None,
    ) -> None:
        self.model, self.processes = model, processes
        self.layers = dict(parametrized(model))
        if not self.layers:
            raise UsageError(
                "attach: no exchanged layers in this model; call spectrain.apply first"
            )
        checks.check_optimizers(optimizers)
        self.moments = Moments(optimizers)
        checks.check_membership(model, self.layers, optimizers)
        self.by_method: dict[Method, list[Parametrization]] = {}
        for layer in self.layers.values():
            self.by_method.setdefault(layer.method, []).append(layer)
        for layers in self.by_method.values():
            for index, layer in enumerate(layers):
                layer.index, layer.peers = index, len(layers)
        checks.check_groups(self.by_method, self.moments)
        self.drivers = _unique(
            self.moments.optimizer(p) for m in self.layers.values() for p in m.factors().values()
        )
        self.trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._waiting = {id(o) for o in self.drivers}
        self._begun: set[int] = set()
        self._scaled: list[tuple[dict[str, Any], Any]] = []
        self._joined = self._checked = False
        self._take_clock()
        self._backward = (
            None
            if layerwise is None
            else BackwardSteps(model, self.layers, self.moments, layerwise, self._step_layer)
        )
        self._resume()
        self._handles = [o.register_step_pre_hook(self._before) for o in self.drivers]
        self._handles += [o.register_step_post_hook(self._after) for o in self.drivers]
        for layer in self.layers.values():
            layer.attached = True

    # --- hooks ---------------------------------------------------------------------------------

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        if self._backward is not None and self._backward.stepping:
            return args, kwargs
        if checks.only_makes_state(optimizer) or checks.is_inner_step(optimizer):
            return args, kwargs
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is not None:
            # The step rule needs this step's gradients now; the optimizer gets the loss alone.
            with torch.enable_grad():
                loss = closure()
            args, kwargs = (optimizer, lambda: loss), {}
        for layer in self.layers.values():
            layer.release()
        self._restore_rates()  # of a step that raised between the hooks
        if any(layer.loaded for layer in self.layers.values()):
            self._take_clock()
        if self._backward is not None:
            self._backward.refuse_scaler(optimizer)
        if is_skipped(optimizer):
            return args, kwargs
        unscale(optimizer)
        self._begun.add(id(optimizer))
        if (
            id(optimizer) not in self._waiting
        ):  # another one's step was skipped: this is a new round
            self._waiting = {id(o) for o in self.drivers}
        if len(self._waiting) == len(self.drivers):
            self._begin_update()
        if self._backward is None:
            for method, layers in self.by_method.items():
                self._scale_rates(optimizer, method, layers)
        return args, kwargs

    def _begin_update(self) -> None:
        """What comes once in a step, before the first optimizer's update."""
        self._join()
        if not self._checked:
            checks.check_gradients(self.layers, self.trainable, self.moments, self._has_gradient)
        if self._backward is not None:
            self._backward.finish()
            return
        if self.processes is not None:
            for layer in self.layers.values():
                layer.reduce(self.processes.mean)
        for method, layers in self.by_method.items():
            with full_precision(layers[0].clock):
                method.before_update(layers, self.moments, self.clock)

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._backward is not None and self._backward.stepping:
            return
        # An optimizer whose step calls its parent class's runs the hooks of both: one step all the same.
        if is_skipped(optimizer) or id(optimizer) not in self._begun:
            return
        self._begun.discard(id(optimizer))
        self._waiting.discard(id(optimizer))
        if self._waiting:
            self._restore_rates()
            return
        self._waiting = {id(o) for o in self.drivers}
        if not self._checked:
            checks.check_states(self.by_method, self.moments)
        with full_precision(next(iter(self.layers.values())).clock):
            if self._backward is None:
                for method, layers in self.by_method.items():
                    method.after_update(layers, self.moments, self.clock)
            self._restore_rates()
            self.clock += 1
            torch._foreach_add_([layer.clock for layer in self.layers.values()], 1)
            for method, layers in self.by_method.items():
                for event in method.events():
                    if self._backward is None or not event.of_gradient:
                        self._happen(event, layers, self.clock)
                method.begin_step(layers, self.clock)
        self._checked = True

    def _step_layer(self, layer: Parametrization, optimizer: Optimizer) -> None:
        """The whole optimizer step of one layer, inside the backward pass."""
        if layer.loaded:
            self._take_clock()
        self._join()
        layer.release()
        one = [layer]
        if self.processes is not None:
            layer.reduce(self.processes.mean)
        self._backward.prepare(layer)  # type: ignore[union-attr]
        with full_precision(layer.clock):
            layer.method.before_update(one, self.moments, self.clock)
            self._scale_rates(optimizer, layer.method, one)
            optimizer.step()
            layer.method.after_update(one, self.moments, self.clock)
            self._restore_rates()
            for event in layer.method.events():
                if event.of_gradient:
                    self._happen(event, one, self.clock + 1)

    def _happen(self, event: Event, layers: Sequence[Parametrization], clock: int) -> None:
        due = [layer for layer in layers if event.is_due(layer, clock) or event.waits(layer)]
        if due and self.processes is not None:
            self.processes.act(event.action, due, self.moments, clock)
        elif due:
            event.action(due, self.moments, clock)

    def _resume(self) -> None:
        """Begin the step that the layers' clocks stand at."""
        self._take_clock()
        for method, layers in self.by_method.items():
            for layer in layers:
                layer.forget()
            method.begin_step(layers, self.clock)

    def _take_clock(self) -> None:
        """The clock as the layers have it, after attaching or loading a state dict."""
        clocks = {int(layer.clock) for layer in self.layers.values()}
        if len(clocks) > 1:
            raise UsageError(
                f"the layers' clocks differ ({sorted(clocks)}): their states come from different "
                "steps; load one checkpoint into the whole model"
            )
        self.clock = clocks.pop()
        for layer in self.layers.values():
            layer.loaded = False

    def _join(self) -> None:
        """Find the processes that train this model together; by the first step all wrappers are there."""
        if self._joined:
            return
        self._joined = True
        layers = list(self.layers.values())
        self.processes = self.processes or processes_of(self.model, layers)
        if self.processes is None:
            return
        for method in self.by_method:
            if reason := method.against_processes():
                raise UsageError(f"{method.title} with several processes: {reason}")
        self.processes.require_equal(
            torch.stack([number for layer in layers for number in layer.alike()]),
            "the processes' layers have different seeds or clocks, so they would draw different "
            "vectors: call torch.manual_seed with one seed everywhere before the model is built and "
            "spectrain.apply, or load the same checkpoint",
        )
        if self._backward is not None:
            self._backward.join(self.processes)

    def _has_gradient(self, p: Tensor) -> bool:
        return p.grad is not None or (self._backward is not None and self._backward.saw(p))

    def remove(self) -> None:
        """Undo what attaching did."""
        self._restore_rates()
        for handle in self._handles:
            handle.remove()
        if self._backward is not None:
            self._backward.remove()
        for layer in self.layers.values():
            layer.attached = False
            layer.forget()
        scheduled = any(method.has_schedule for method in self.by_method)
        changed = any(layer.factors_changed() for layer in self.layers.values())
        if scheduled and changed and not self._checked and self.clock == 0:
            warnings.warn(
                "the factors changed but no step of the attached optimizer was seen: the method's "
                "schedule never ticked",
                SpectrainWarning,
                stacklevel=3,
            )

    # --- learning rates ------------------------------------------------------------------------

    def _scale_rates(
        self, optimizer: Optimizer, method: Method, layers: Sequence[Parametrization]
    ) -> None:
        factor = method.warmup_factor(self.clock)
        if factor == 1.0:
            return
        # Looked up anew each time: loading an optimizer's state dict replaces its group objects.
        factors = {id(p) for layer in layers for p in layer.factors().values()}
        for group in optimizer.param_groups:
            if any(id(p) in factors for p in group["params"]):
                self._scaled.append((group, group["lr"]))
                group["lr"] = group["lr"] * factor

    def _restore_rates(self) -> None:
        for group, rate in self._scaled:
            group["lr"] = rate
        self._scaled.clear()


def _unique(items: Any) -> list[Any]:
    return list({id(item): item for item in items}.values())
