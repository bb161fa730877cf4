"""LiveBytes: the memory that tensors hold while a piece of code runs, and its peak by category."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from spectrain.optimizers import Stepping, each
from spectrain.surgery import parametrized

WEIGHTS = "weights"  # trainable parameters
FROZEN = "frozen"  # frozen parameters, buffers, and what layers have in host memory
CACHED = "cached"  # what exchanged layers keep within a step or between steps, as W built once
GRADIENTS = "gradients"  # what stands, or will stand, in .grad
OPTIMIZER = "optimizer"  # the optimizer's state: moments and step counters
ACTIVATIONS = "activations"  # all else: saved for the backward pass, inputs, temporaries
CATEGORIES = (WEIGHTS, FROZEN, CACHED, GRADIENTS, OPTIMIZER, ACTIVATIONS)


class _Entry:
    """A live storage: its size, whose it is, and the number of its birth."""

    __slots__ = ("born", "category", "reference", "size")

    def __init__(self, reference: Any, size: int, category: str, born: int) -> None:
        self.reference, self.size, self.category, self.born = reference, size, category, born


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that are alive, after every operation within the context.

        with LiveBytes(model, optimizer) as live:
            loss(model(x)).backward()
        live.peak, live.peak_by_category

    Works on real tensors of any device, on meta and on fake tensors; views count once, with the
    storage they look at. A storage is known from the operation that first makes or uses it; what the
    model and the optimizer hold is known from the start. What a kernel allocates and frees within
    one operation is not seen, and of several devices the sum is counted. Not for use around
    `torch.compile`d code, whose operations are not dispatched one by one.

    The category of a storage is decided by who owns it. A gradient belongs to nobody while it is
    being formed, and an optimizer's moments while they are being filled; such a storage is moved to
    its category as soon as it is owned, in the breakdown of the peak too if it was part of the peak.

    model, optimizer: given here or to `watch`, as soon as they exist. classify: names a category of
    its own for a storage that nobody owns, from the tensor that it was first seen as; None leaves it
    with the activations.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        optimizer: Stepping | None = None,
        *,
        classify: Callable[[Tensor], str | None] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = 0
        self.peak = 0
        self.by_category: dict[str, int] = dict.fromkeys(CATEGORIES, 0)
        self.peak_by_category: dict[str, int] = dict(self.by_category)
        self._classify = classify
        self._entries: dict[int, _Entry] = {}  # by the address of the storage
        self._births = 0
        self._births_at_peak = 0
        self._models: list[nn.Module] = []
        self._optimizers: list[Optimizer] = []
        self._handles: list[Any] = []
        self._active = False
        self.watch(model, optimizer)
        self.reset_peak()

    def watch(self, model: nn.Module | None = None, optimizer: Stepping | None = None) -> None:
        """Count what `model` and `optimizer` hold, and know it for theirs from here on."""
        if model is not None:
            self._models.append(model)
            if self._active:
                self._hook_model(model)
        for own in () if optimizer is None else each(optimizer):
            self._optimizers.append(own)
            if self._active:
                self._hook_optimizer(own)
        self.resolve()

    def reset_peak(self) -> None:
        """Let the peak be what is alive now."""
        self.peak = self.current
        self.peak_by_category = dict(self.by_category)
        self._births_at_peak = self._births

    def resolve(self) -> None:
        """Decide anew whose every storage of the watched models and optimizers is."""
        for model in self._models:
            for parameter in model.parameters():
                self._own(parameter, WEIGHTS if parameter.requires_grad else FROZEN)
                if parameter.grad is not None:
                    self._own(parameter.grad, GRADIENTS)
            for buffer in model.buffers():
                self._own(buffer, FROZEN)
            for _, layer in parametrized(model):
                self._own_all(layer.hosted, FROZEN)
                self._own_cached(layer)
        for optimizer in self._optimizers:
            for entry in optimizer.state.values():
                for value in entry.values():
                    self._own_all(value, OPTIMIZER)

    # --- the context ---------------------------------------------------------------------------

    def __enter__(self) -> LiveBytes:
        self._active = True
        for model in self._models:
            self._hook_model(model)
        for optimizer in self._optimizers:
            self._hook_optimizer(optimizer)
        self.resolve()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self.resolve()
        self._active = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.prim.device.default:  # fake tensors are asked for it all the time
            return args[0].fake_device if hasattr(args[0], "fake_device") else func(*args)
        result = func(*args, **(kwargs or {}))
        before = self._births
        self._see_all(args)
        if isinstance(result, Tensor):
            self._see(result)
        elif isinstance(result, tuple | list):
            self._see_all(result)
        if self._births != before and self.current > self.peak:
            self.reset_peak()
        return result

    # --- storages ------------------------------------------------------------------------------

    def _see_all(self, values: Iterable[Any]) -> None:
        for value in values:
            if isinstance(value, Tensor):
                self._see(value)
            elif isinstance(value, tuple | list):
                self._see_all(value)

    def _see(self, tensor: Tensor) -> _Entry | None:
        """The entry of a tensor's storage, made if it is new; None where there is no storage."""
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # sparse tensors, and those of functorch
            return None
        key = storage._cdata
        entry = self._entries.get(key)
        if entry is None:
            category = self._classify(tensor) if self._classify is not None else None
            reference = weakref.ref(storage, partial(self._died, key))
            self._births += 1
            entry = _Entry(reference, storage.nbytes(), category or ACTIVATIONS, self._births)
            self._entries[key] = entry
            self._add(entry.category, entry.size)
        return entry

    def _died(self, key: int, reference: Any) -> None:
        entry = self._entries.pop(key)
        self._add(entry.category, -entry.size)

    def _add(self, category: str, size: int) -> None:
        self.current += size
        self.by_category[category] = self.by_category.get(category, 0) + size

    def _own(self, tensor: Tensor, category: str) -> None:
        entry = self._see(tensor)
        if entry is None or entry.category == category:
            return
        for sizes, counted in (
            (self.by_category, True),
            (self.peak_by_category, entry.born <= self._births_at_peak),
        ):
            if counted:
                sizes[entry.category] -= entry.size
                sizes[category] = sizes.get(category, 0) + entry.size
        entry.category = category

    def _own_all(self, value: Any, category: str) -> None:
        if isinstance(value, Tensor):
            self._own(value, category)
        elif isinstance(value, dict):
            for item in value.values():
                self._own_all(item, category)
        elif isinstance(value, tuple | list):
            for item in value:
                self._own_all(item, category)

    # --- owners --------------------------------------------------------------------------------

    def _own_cached(self, layer: nn.Module) -> None:
        """Tensors that a layer holds as plain attributes, neither parameters nor buffers; with the
        gradients that autograd gathers for them."""
        for value in vars(layer).values():
            if isinstance(value, Tensor) and value.is_leaf and value.requires_grad:
                if value.grad is not None:
                    self._own(value.grad, CACHED)
                elif self._active and (entry := self._see(value)) and entry.category != CACHED:
                    self._hook_leaf(value, self._gathered)
            if not isinstance(value, dict):  # modules keep their own parts in dictionaries
                self._own_all(value, CACHED)

    def _hook_model(self, model: nn.Module) -> None:
        for parameter in model.parameters():
            if parameter.requires_grad:
                self._hook_leaf(parameter, self._accumulated)
        for _, layer in parametrized(model):
            self._handles.append(layer.register_forward_hook(self._computed))

    def _hook_leaf(self, leaf: Tensor, hook: Callable[[Tensor], None]) -> None:
        self._handles.append(leaf.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]

    def _hook_optimizer(self, optimizer: Optimizer) -> None:
        self._handles.append(optimizer.register_step_post_hook(self._stepped))

    def _accumulated(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._own(parameter.grad, GRADIENTS)

    def _gathered(self, kept: Tensor) -> None:
        if kept.grad is not None:
            self._own(kept.grad, CACHED)

    def _computed(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        self._own_cached(layer)

    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.resolve()
