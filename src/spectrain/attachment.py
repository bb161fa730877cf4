"""attach: run a method's step rule and events from the optimizer's own step hooks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spectrain.errors import SpectrainWarning, UsageError
from spectrain.method import Method
from spectrain.moments import Moments
from spectrain.parametrizations.base import Parametrization
from spectrain.surgery import parametrized

_REFUSED = {
    "LBFGS": "it evaluates the loss several times within a step, so a step has no single gradient",
    "SparseAdam": "it takes sparse gradients only, and factors have dense ones",
}
_ATTACHED: WeakSet[Attachment] = WeakSet()  # kept alive by the hooks on their optimizers


def attach(model: nn.Module, optimizer: Optimizer | Sequence[Optimizer]) -> None:
    """From here on, `optimizer.step()` runs the step rule and events of the model's method.

    Takes one optimizer or several that step different parameters; accelerate's wrapper is looked
    through. Works with gradient accumulation, learning-rate schedulers (a rate scaled for a warm-up
    is restored right after the step) and gradient scalers (a skipped step is no step).

    Raises UsageError if nothing was applied, the model is attached already, a factor is in no or in
    two optimizers, factors share a group with ordinary parameters although their rate must be
    warmed up apart, or the optimizer is LBFGS or SparseAdam. Warns about trainable parameters that
    no optimizer holds.
    """
    if is_attached(model):
        raise UsageError("attach: this model is attached already; call spectrain.detach first")
    many = optimizer if isinstance(optimizer, Sequence) else [optimizer]
    _ATTACHED.add(Attachment(model, [_unwrap(o) for o in many]))


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

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self.layers = dict(parametrized(model))
        if not self.layers:
            raise UsageError(
                "attach: no exchanged layers in this model; call spectrain.apply first"
            )
        for optimizer in optimizers:
            kind = type(optimizer).__name__
            if kind in _REFUSED:
                raise UsageError(f"attach: {kind} cannot be used, since {_REFUSED[kind]}")
        self.moments = Moments(optimizers)
        self._check_membership(model, optimizers)
        self.by_method: dict[Method, list[Parametrization]] = {}
        for layer in self.layers.values():
            self.by_method.setdefault(layer.method, []).append(layer)
        for layers in self.by_method.values():
            for index, layer in enumerate(layers):
                layer.index, layer.peers = index, len(layers)
        self.drivers = _unique(
            self.moments.optimizer(p) for m in self.layers.values() for p in m.factors().values()
        )
        self.trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._waiting = {id(o) for o in self.drivers}
        self._begun: set[int] = set()
        self._scaled: list[tuple[dict[str, Any], Any]] = []
        self._checked = False
        self._check_groups()
        self._resume()
        self._handles = [o.register_step_pre_hook(self._before) for o in self.drivers]
        self._handles += [o.register_step_post_hook(self._after) for o in self.drivers]
        for layer in self.layers.values():
            layer.attached = True

    # --- hooks ---------------------------------------------------------------------------------

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is not None:
            # The step rule needs this step's gradients now; the optimizer gets the loss alone.
            with torch.enable_grad():
                loss = closure()
            args, kwargs = (optimizer, lambda: loss), {}
        self._begun.add(id(optimizer))
        for layer in self.layers.values():
            layer.release()
        self._restore_rates()  # of a step that raised between the hooks
        if any(layer.loaded for layer in self.layers.values()):
            self._take_clock()
        if _is_skipped(optimizer):
            return args, kwargs
        _unscale(optimizer)
        first = len(self._waiting) == len(self.drivers)
        if first and not self._checked:
            self._check_gradients()
        for method, layers in self.by_method.items():
            if first:
                with self._full_precision():
                    method.before_update(layers, self.moments, self.clock)
            factor = method.warmup_factor(self.clock)
            if factor != 1.0:
                self._scale_rates(optimizer, method, factor)
        return args, kwargs

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # An optimizer whose step calls its parent class's runs the hooks of both: one step all the same.
        if _is_skipped(optimizer) or id(optimizer) not in self._begun:
            return
        self._begun.discard(id(optimizer))
        self._waiting.discard(id(optimizer))
        if self._waiting:
            self._restore_rates()
            return
        self._waiting = {id(o) for o in self.drivers}
        if not self._checked:
            self._check_states()
        with self._full_precision():
            for method, layers in self.by_method.items():
                method.after_update(layers, self.moments, self.clock)
            self._restore_rates()
            self.clock += 1
            torch._foreach_add_([layer.clock for layer in self.layers.values()], 1)
            for method, layers in self.by_method.items():
                for event in method.events():
                    due = [layer for layer in layers if event.is_due(layer, self.clock)]
                    if due:
                        event.action(due, self.moments, self.clock)
                method.begin_step(layers, self.clock)
        self._checked = True

    def _full_precision(self) -> AbstractContextManager[object]:
        """Folds, merges and decompositions are not rounded, though the step be taken under autocast."""
        kind = next(iter(self.layers.values())).clock.device.type
        return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)

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

    def remove(self) -> None:
        """Undo what attaching did."""
        self._restore_rates()
        for handle in self._handles:
            handle.remove()
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

    def _scale_rates(self, optimizer: Optimizer, method: Method, factor: float) -> None:
        # Looked up anew each time: loading an optimizer's state dict replaces its group objects.
        for group in self._groups(method):
            if any(group is own for own in optimizer.param_groups):
                self._scaled.append((group, group["lr"]))
                group["lr"] = group["lr"] * factor

    def _restore_rates(self) -> None:
        for group, rate in self._scaled:
            group["lr"] = rate
        self._scaled.clear()

    def _groups(self, method: Method) -> list[dict[str, Any]]:
        """The parameter groups that the method's factors are in."""
        layers = self.by_method[method]
        return _unique(self.moments.group(p) for m in layers for p in m.factors().values())

    def _check_groups(self) -> None:
        """A group shared with other parameters cannot be warmed up for the factors alone."""
        for method, layers in self.by_method.items():
            own = {id(p) for layer in layers for p in layer.factors().values()}
            mixed = any(id(p) not in own for g in self._groups(method) for p in g["params"])
            if mixed and any(method.warmup_factor(t) != 1.0 for t in _one_cycle(method, layers)):
                raise UsageError(
                    f"attach: {method.title} warms up the rate of its factors after events, but "
                    "they share a parameter group with other parameters; build the optimizer from "
                    "spectrain.param_groups(model, lr=…)"
                )

    # --- checks --------------------------------------------------------------------------------

    def _check_membership(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        seen: dict[int, int] = {}
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    seen[id(p)] = seen.get(id(p), 0) + 1
        for name, layer in self.layers.items():
            for factor, p in layer.factors().items():
                if seen.get(id(p), 0) != 1:
                    where = "no optimizer" if id(p) not in seen else "more than one optimizer"
                    raise UsageError(
                        f"attach: factor {factor} of {name} is in {where}; build the optimizer "
                        "after spectrain.apply, from spectrain.param_groups(model, lr=…)"
                    )
        left = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in seen]
        if left:
            warnings.warn(
                f"{len(left)} trainable parameters are in no optimizer and will not move: "
                f"{_some(left)}",
                SpectrainWarning,
                stacklevel=4,
            )

    def _check_gradients(self) -> None:
        """After the first backward pass: every trainable parameter must have had a gradient."""
        resting = {id(p) for layer in self.layers.values() for p in layer.resting()}
        expected = {n: p for n, p in self.trainable.items() if id(p) not in resting}
        without = [n for n, p in expected.items() if p.grad is None and p in self.moments]
        factors = {id(p) for layer in self.layers.values() for p in layer.factors().values()}
        if factors and not any(
            p.grad is not None for p in self.trainable.values() if id(p) in factors
        ):
            raise UsageError(
                "no factor received a gradient in the first backward pass. With activation "
                "checkpointing over frozen layers, call model.enable_input_require_grads() or use "
                "use_reentrant=False"
            )
        if without:
            warnings.warn(
                f"{len(without)} trainable parameters had no gradient in the first backward pass: "
                f"{_some(without)}",
                SpectrainWarning,
                stacklevel=4,
            )

    def _check_states(self) -> None:
        """After the first step: refuse now, not at the first event, state that no event can edit."""
        for method, layers in self.by_method.items():
            if method.has_schedule:
                for p in layers[0].factors().values():
                    self.moments.require_editable(p)


def _unwrap(optimizer: Any) -> Optimizer:
    inner = optimizer
    while not isinstance(inner, Optimizer) or type(inner).__name__ == "AcceleratedOptimizer":
        if not hasattr(inner, "optimizer"):
            raise UsageError(
                f"attach: {type(optimizer).__name__} is no torch.optim optimizer; pass the one "
                "whose step() you call, or a sequence of them"
            )
        inner = inner.optimizer
    return inner


def _is_skipped(optimizer: Optimizer) -> bool:
    """True in a fused step that a gradient scaler has marked as overflowed."""
    found: Tensor | None = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found.any())


def _unscale(optimizer: Optimizer) -> None:
    """Divide the gradients by a gradient scaler's factor, where it left that to a fused step.

    A step rule that looks at gradients must see the true ones.
    """
    scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    if scale is not None:
        gradients = [
            p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None
        ]
        torch._foreach_div_(gradients, scale.to(gradients[0].device))
        optimizer.grad_scale = None  # type: ignore[attr-defined]


def _one_cycle(method: Method, layers: Sequence[Parametrization]) -> range:
    periods = [event.period(layers[0]) for event in method.events()]
    return range(2 * max(periods, default=1))


def _unique(items: Any) -> list[Any]:
    return list({id(item): item for item in items}.values())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
