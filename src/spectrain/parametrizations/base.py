"""What every parametrization has in common: it stands where a linear layer stood, and can go back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spectrain.linalg import working

if TYPE_CHECKING:
    from spectrain.method import Method


_HOOKS = (
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks"),
    *("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_backward_pre_hooks", "_backward_hooks"),
)


def is_transposed(linear: nn.Module) -> bool:
    """True for layers that store W as (in, out): transformers' Conv1D."""
    return type(linear).__name__ == "Conv1D"


def linear_shape(linear: nn.Module) -> tuple[int, int]:
    """(out_features, in_features) of a linear-like layer."""
    weight = linear.weight
    rows, columns = weight.shape  # type: ignore[misc]
    return (columns, rows) if is_transposed(linear) else (rows, columns)


def linear_weight(linear: nn.Module) -> Tensor:
    """W (m, n) of a linear-like layer: a view of its weight without a gradient."""
    weight: Tensor = linear.weight.detach()  # type: ignore[operator]
    return weight.mT if is_transposed(linear) else weight


class Parametrization(nn.Module):
    """One weight matrix W (m, n), kept in another form, with the bias of the layer it replaces.

    The replaced module is kept, without its weight, as a shell: `restore` puts the explicit W back
    into it, so that merging returns the very module that was there, hooks and attributes included.

    Buffers: `clock`, optimizer steps since `apply`; `seed`, from which all later draws follow. `hosted`
    has tensors that stay in host memory wherever the layer is: part of the state dict, but no buffers,
    which wrappers move, and send to other processes in every step.
    """

    _passing: tuple[str, ...] = ("accumulated",)  # what a copy, or a pickle, does not take along
    resident: tuple[str, ...] = ()  # plain attributes that hold tensors in every step
    clock: Tensor
    seed: Tensor
    bias: nn.Parameter | None

    def __init__(self, linear: nn.Module, method: Method) -> None:
        super().__init__()
        weight = linear.weight
        if not isinstance(weight, Tensor):
            raise TypeError(f"{type(linear).__name__} has no weight matrix")
        self.method = method
        self.transposed = is_transposed(linear)
        self.out_features, self.in_features = linear_shape(linear)
        self.weight_dtype = weight.dtype
        self.weight_requires_grad = weight.requires_grad
        self.attached = False  # set by spectrain.attach
        # Set by layer-wise stepping: called when a leaf that is no factor has its gradient.
        self.accumulated: Callable[[Tensor], None] | None = None
        self.index, self.peers = 0, 1  # place among so many of its method's layers; set by attach
        self.loaded = False  # set when a state dict is loaded, until the attachment has seen it
        self.hosted: dict[str, Tensor] = {}
        self.shell = (linear,)  # in a tuple, so that it is not registered as a submodule
        self.bias = linear.bias  # type: ignore[assignment]
        for hooks in _HOOKS:  # the same dictionaries: they go on, here and after merge
            setattr(self, hooks, getattr(linear, hooks))
        self.train(linear.training)
        # The layer's own seed comes from torch's global generator: torch.manual_seed rules it all.
        self.initial_seed = int(torch.randint(2**62, (), device="cpu"))
        device = weight.device
        self.register_buffer("clock", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("seed", torch.full((), self.initial_seed, device=device))
        self.register_load_state_dict_post_hook(_state_loaded)  # type: ignore[no-untyped-call]

    def take_weight(self) -> Tensor:
        """The layer's W (m, n), in at least float32, taken out of the shell."""
        linear = self.shell[0]
        weight = linear_weight(linear)
        linear._parameters["weight"] = None
        return working(weight.contiguous() if self.transposed else weight)

    def initial_generator(self) -> torch.Generator:
        """Random numbers for the factors' start."""
        return torch.Generator().manual_seed(self.initial_seed)

    @property
    def size(self) -> int:
        """k = min(m, n), the largest possible rank."""
        return min(self.out_features, self.in_features)

    def factors(self) -> dict[str, nn.Parameter]:
        """Trainable parameters that stand for W, by name (the bias is not one of them)."""
        return {
            name: p
            for name, p in self._parameters.items()
            if p is not None and p.requires_grad and name != "bias"
        }

    def leaves(self) -> tuple[Tensor, ...]:
        """All that a backward pass gives a gradient to, for W's sake."""
        return tuple(self.factors().values())

    def resting(self) -> tuple[nn.Parameter, ...]:
        """Factors that get no gradient in this step, by intention."""
        return ()

    def drift(self) -> Tensor | None:
        """How far vectors that should be orthonormal are from it: the largest |U Uᵀ − I| of those that
        train with all; None for a form that has none."""
        return None

    def sampled(self) -> Tensor | None:
        """Which of W's singular triples train, counted from the largest; None where that has no meaning."""
        return None

    def note_versions(self) -> None:
        """Remember the factors as they are, for `factors_changed`."""
        self.noted = [p._version for p in self.factors().values()]

    def factors_changed(self) -> bool:
        """True if a factor was written to since `note_versions`."""
        return self.noted != [p._version for p in self.factors().values()]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | dict.fromkeys(self._passing)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy of an attached layer is not attached, and its factors count as unchanged."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.attached = False
        self.forget()
        self.note_versions()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """`model.to(dtype)` converts the layer that `restore` gives back, too."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.release()
        self.weight_dtype = fn(self.clock.new_empty(0, dtype=self.weight_dtype)).dtype
        place = torch.device("meta" if self.clock.is_meta else "cpu")
        for name, tensor in self.hosted.items():
            if tensor.device != place:  # to_empty, or to("meta")
                self.hosted[name] = torch.empty_like(tensor, device=place)
        return self

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        """What is in the state dict is found by its name: torch.distributed.checkpoint looks for it."""
        hosted = self.__dict__.get("hosted", {})
        return hosted[name] if name in hosted else super().__getattr__(name)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: tensor for name, tensor in self.hosted.items()})

    def _load_from_state_dict(self, *args: Any) -> None:
        self._buffers.update(self.hosted)  # for the call, so that torch checks and copies them
        try:
            super()._load_from_state_dict(*args)
        finally:
            for name, tensor in self.hosted.items():
                self.hosted[name] = self._buffers.pop(name).to(tensor.device)  # type: ignore[union-attr]

    def alike(self) -> list[Tensor]:
        """Whole numbers () that are the same on all processes which train one model."""
        # DistributedDataParallel sends parameters and buffers; of the rest it knows nothing.
        sums = [
            t.reshape(-1).view(torch.uint8).sum().to(self.seed.device) for t in self.hosted.values()
        ]
        return [self.seed, self.clock, *sums]

    def dense(self) -> Tensor:
        """W (m, n) built explicitly, in at least float32; there is none where `Method.against_merge`."""
        raise NotImplementedError

    def reduce(self, mean: Callable[[Tensor], None]) -> None:
        """Average over processes, by `mean` in place, what was collected outside of `.grad`."""

    def release(self) -> None:
        """Drop what is kept only while gradients are computed; called before the optimizer's update."""

    def forget(self) -> None:
        """Drop what is kept only from one optimizer step to the next; called when state is loaded."""

    def restore(self) -> nn.Module:
        """The original module again, with W as its weight in the original dtype."""
        linear = self.shell[0]
        with torch.no_grad(), full_precision(self.clock):
            weight = self.dense().to(self.weight_dtype)
        if self.transposed:
            weight = weight.mT
        # contiguous() returns W itself where W already is: clone, so that no factor stays shared.
        linear.weight = nn.Parameter(
            weight.clone(memory_format=torch.contiguous_format), self.weight_requires_grad
        )
        linear.bias = self.bias  # type: ignore[assignment]
        return linear.train(self.training)

    def parameter(self, value: Tensor, *, trainable: bool) -> nn.Parameter:
        """`value` as a parameter of this layer in the dtype that training uses for it."""
        dtype = self.weight_dtype if not trainable else working(value).dtype
        return nn.Parameter(value.detach().to(dtype).contiguous(), requires_grad=trainable)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class Factored(Parametrization):
    """A parametrization that holds W only in parts."""

    @property
    def weight(self) -> Tensor:
        """A detached copy of W, for code that looks at a layer's weight; writing to it does nothing."""
        with full_precision(self.clock):
            return self.dense().detach().to(self.weight_dtype)


def event_generator(layer: Parametrization, clock: int) -> torch.Generator:
    """The random numbers of `layer`'s event at `clock`: a function of its seed and the clock alone.

    Nothing else needs saving for an exact resume, and every process draws the same.
    """
    return seeded_generator(int(layer.seed), clock)


def seeded_generator(seed: int, clock: int) -> torch.Generator:
    """`event_generator` of a layer whose seed is known: reading it off a device has to wait for that."""
    mixed = (seed ^ (clock * 0x9E3779B97F4A7C15)) & 0x7FFF_FFFF_FFFF_FFFF
    return torch.Generator().manual_seed(mixed)


VERY_THIN = 8  # columns up to which a product is formed as it is written
P = TypeVar("P", bound=Parametrization)


def of_equal_shape(layers: Sequence[P], most_bytes: int = 2**26) -> list[list[P]]:
    """`layers` in groups whose matrices can be stacked, on one device, for one batched operation.

    A group's matrices have at most `most_bytes` together (or are one), which bounds what an event
    needs on top. On the CPU every layer is a group of its own: a batch is a loop there, and the copies
    are lost (benchmarks/decompositions.py).
    """
    groups: list[list[P]] = []
    open_: dict[tuple[object, ...], list[P]] = {}
    for layer in layers:
        device = layer.clock.device
        key = layer.out_features, layer.in_features, layer.weight_dtype, device
        size = 4 * layer.out_features * layer.in_features
        group = open_.get(key)
        if group is None or device.type == "cpu" or (len(group) + 1) * size > most_bytes:
            group = open_[key] = []
            groups.append(group)
        group.append(layer)
    return groups


def thin_product(
    a: Tensor,  # (B, r), r small
    b: Tensor,  # (B, n)
) -> Tensor:  # (r, n), contiguous
    """aᵀ b, formed as (bᵀ a)ᵀ, which is faster on a CPU, but three times slower where r is 2 to 8.

    Both is measured by benchmarks/thin_products.py.
    """
    if 1 < a.shape[1] <= VERY_THIN:
        return a.mT @ b
    return (b.mT @ a).mT.contiguous()


def _state_loaded(layer: Parametrization, incompatible_keys: Any) -> None:
    """What the layer kept for the step it was in belongs to another state; loading is no training."""
    layer.loaded = True
    layer.forget()
    layer.note_versions()
    if layer.attached:
        layer.method.begin_step([layer], int(layer.clock))


def is_autocast(x: Tensor) -> bool:
    """True where autocast is on for the device of `x`."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype matrix products run in: autocast's where it is on (but for float64), else the input's."""
    lowered = is_autocast(x) and x.dtype != torch.float64
    return torch.get_autocast_dtype(x.device.type) if lowered else x.dtype


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """A block without autocast on the device of `x`."""
    return torch.autocast(x.device.type, enabled=False) if is_autocast(x) else nullcontext()


Gradients = tuple[Tensor | None, ...]


def own_backward(
    backward: Callable[[Any, Tensor], Gradients],
) -> Callable[[Any, Tensor], Gradients]:
    """For the backward pass of an autograd.Function that says its dtypes itself.

    Autocast is off in it, though `loss.backward()` be called inside; a second derivative is refused.
    """

    def guarded(ctx: Any, gy: Tensor) -> Gradients:
        with full_precision(gy):
            return backward(ctx, gy)

    once: Callable[[Any, Tensor], Gradients] = once_differentiable(guarded)
    return once
