"""Layer-wise stepping: each layer is stepped in the backward pass, once its gradient is complete."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from spectrain.checks import in_gradient_scaler
from spectrain.distributed import Processes
from spectrain.errors import UsageError
from spectrain.moments import Moments
from spectrain.parametrizations.base import Parametrization
from spectrain.settings import check, option
from spectrain.sharding import is_sharded


@dataclass(frozen=True)
class LayerWise:
    """Step each exchanged layer inside the backward pass and free its gradient at once.

    So the gradients of the large matrices never exist all together. `optimizer.step()` stays where it
    is in the loop: it steps what is left (embeddings, norms, biases), moves the clock and runs events.

    With `accumulate`, gradients of the factors add up over that many backward passes, and the last one
    steps: in the projected space, since factors are what has gradients. `clip` bounds the gradient's
    norm layer by layer, each at clip / √(number of layers), so that all layers' together never exceeds
    it; unlike a global clip it does not know whether the others are small. (`clip_grad_norm_` before
    `optimizer.step()` still sees the ordinary parameters.)

    Under DistributedDataParallel attach before wrapping: the layers' gradients are averaged one by one,
    and left out of its buckets. All processes have to use the same layers in the same order. Refused: a
    gradient scaler, which learns of an overflow too late; `fully_shard`, which reduces gradients after
    these steps; and what a method says against it.
    """

    accumulate: int = option(1, help="backward passes in an optimizer step", minimum=1)
    clip: float = option(0.0, help="bound of the gradient's norm; 0: none", minimum=0.0)

    def __post_init__(self) -> None:
        check(self, "LayerWise")


class BackwardSteps:
    """Calls `step(layer, optimizer)` in the backward pass that completes the gradients of a layer.

    Within the call `stepping` is True, the optimizer's groups hold nothing but the layer's factors, and
    their gradients are averaged over processes and clipped.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: dict[str, Parametrization],
        moments: Moments,
        settings: LayerWise,
        step: Callable[[Parametrization, Optimizer], None],
    ) -> None:
        self.model, self.layers, self.settings, self._step = model, layers, settings, step
        self.stepping = False
        self._processes: Processes | None = None
        self._most = settings.clip / math.sqrt(len(layers))
        self._passes: dict[int, int] = {}  # of each factor, in this optimizer step
        self._handles = []
        steps = {name: self._optimizer(name, layer, moments) for name, layer in layers.items()}
        for name, layer in layers.items():  # from here on nothing is refused any more
            factors = list(layer.factors().values())
            hook = self._hook(name, layer, factors, steps[name])
            layer.accumulated = hook
            self._handles += [
                p.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
                for p in factors
            ]
        # Their gradients are averaged here; DistributedDataParallel is told to leave them alone.
        names = {id(p): n for n, p in model.named_parameters()}
        self._names = [names[id(p)] for m in layers.values() for p in m.factors().values()]
        self._ignored = list(getattr(model, _IGNORED, ()))
        _ignore(model, [*self._ignored, *self._names])

    def _optimizer(self, name: str, layer: Parametrization, moments: Moments) -> Optimizer:
        """The one that steps a layer. Raises UsageError where the layer cannot be stepped by itself."""
        if reason := layer.method.against_layerwise(self.settings.accumulate):
            raise UsageError(f"attach: {layer.method.title} with LayerWise: {reason}")
        optimizers = {id(o): o for o in map(moments.optimizer, layer.factors().values())}
        if len(optimizers) > 1:
            raise UsageError(
                f"attach: the factors of {name} are in several optimizers, and LayerWise steps a layer "
                "by one; give them to one optimizer"
            )
        return next(iter(optimizers.values()))

    def _hook(
        self,
        name: str,
        layer: Parametrization,
        factors: list[nn.Parameter],
        optimizer: Optimizer,
    ) -> Callable[[Tensor], None]:
        needed = self.settings.accumulate
        own = {id(p) for p in factors}
        only = [[p for p in g["params"] if id(p) in own] for g in optimizer.param_groups]

        def accumulated(p: Tensor) -> None:
            self._passes[id(p)] = self._passes.get(id(p), 0) + 1
            if self._passes[id(p)] > needed:
                raise UsageError(
                    f"{name} had more than {needed} backward passes since the last optimizer.step(): "
                    "say how many there are, LayerWise(accumulate=…)"
                )
            if all(self._passes.get(id(q)) == needed for q in layer.leaves()):
                self._complete(layer, factors, optimizer, only)

        return accumulated

    def _complete(
        self,
        layer: Parametrization,
        factors: Sequence[nn.Parameter],
        optimizer: Optimizer,
        only: Sequence[list[nn.Parameter]],  # the layer's factors in each of the optimizer's groups
    ) -> None:
        whole = [group["params"] for group in optimizer.param_groups]
        self.stepping = True
        try:
            for group, params in zip(optimizer.param_groups, only, strict=True):
                group["params"] = params
            self._step(layer, optimizer)
        finally:
            self.stepping = False
            for group, params in zip(optimizer.param_groups, whole, strict=True):
                group["params"] = params
        for p in factors:
            p.grad = None

    @torch.no_grad()
    def prepare(self, layer: Parametrization) -> None:
        """Average the layer's gradients over the processes and clip them to its share of the bound."""
        gradients = [p.grad for p in layer.factors().values() if p.grad is not None]
        if self._processes is not None:
            together = torch.cat([g.flatten() for g in gradients])
            self._processes.mean(together)
            parts = torch.split(together, [g.numel() for g in gradients])
            torch._foreach_copy_(
                gradients, [a.view_as(b) for a, b in zip(parts, gradients, strict=True)]
            )
        if self._most:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            torch._foreach_mul_(gradients, (self._most / (norm + 1e-6)).clamp(max=1.0))

    def join(self, processes: Processes) -> None:
        """Average over `processes` from here on. Raises UsageError where something else does, too."""
        if any(is_sharded(p) for p in self.model.parameters()):
            raise UsageError(
                "LayerWise cannot be used with fully_shard: it reduces gradients only after these "
                "steps; leave one of them out"
            )
        own = [p for layer in self.layers.values() for p in layer.parameters(recurse=False)]
        processes.require_equal(
            torch.stack([p.detach().sum(dtype=torch.float64) for p in own]),
            "the processes' factors differ, and with LayerWise DistributedDataParallel does not send the "
            "first one's to all: call torch.manual_seed with one seed everywhere before the model is "
            "built, or load the same checkpoint",
        )
        wrapper = processes.wrapper
        if wrapper is not None and wrapper.find_unused_parameters:
            raise UsageError(
                "LayerWise cannot be used with find_unused_parameters=True: layers are averaged in the "
                "order of the backward pass, which must be the same on all processes"
            )
        if wrapper is not None and not set(self._names) <= set(wrapper.parameters_to_ignore):
            raise UsageError(
                "attach with LayerWise before DistributedDataParallel(model), and on that very model, "
                "so that its buckets leave the layers' gradients alone"
            )
        self._processes = processes

    def saw(self, p: Tensor) -> bool:
        """True if `p` had a gradient in this optimizer step."""
        return id(p) in self._passes

    def finish(self) -> None:
        """At the end of an optimizer step: refuse a layer that waits for passes that did not come."""
        needed = self.settings.accumulate
        passes, self._passes = self._passes, {}
        for name, layer in self.layers.items():
            seen = {passes.get(id(p), 0) for p in layer.factors().values()}
            if seen not in ({0}, {needed}):  # a layer may go unused
                raise UsageError(
                    f"{name} had {max(seen)} backward passes in this optimizer step, and "
                    f"LayerWise(accumulate={needed}) waits for {needed}: give the number there is"
                )

    def refuse_scaler(self, optimizer: Optimizer) -> None:
        """Raise UsageError in a step that a gradient scaler takes."""
        if getattr(optimizer, "found_inf", None) is not None or in_gradient_scaler():
            raise UsageError(
                "LayerWise cannot be used with a gradient scaler: the layers were stepped before it "
                "could see an overflow; train in bfloat16, which needs none, or without LayerWise"
            )

    def remove(self) -> None:
        """Take the hooks off the factors."""
        for handle in self._handles:
            handle.remove()
        for layer in self.layers.values():
            layer.accumulated = None
        _ignore(self.model, self._ignored)


_IGNORED = "_ddp_params_and_buffers_to_ignore"  # where DistributedDataParallel looks


def _ignore(model: nn.Module, names: Sequence[str]) -> None:
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)  # type: ignore[no-untyped-call]
