"""Several processes that train one model: what they decide once, and what they average."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from spectrain.errors import NonFiniteError, RunError, UsageError
from spectrain.moments import Moments
from spectrain.parametrizations.base import Parametrization
from spectrain.sharding import is_sharded, whole, write_back

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Action = Callable[[Sequence[Parametrization], Moments, int], None]


class Processes:
    """The processes of one group, each of which holds the model or a part of it."""

    def __init__(self, group: ProcessGroup | None = None, wrapper: Any = None) -> None:
        """`group`: torch's process group, None for the default one; `wrapper`: the model's, if any."""
        self.group, self.wrapper = group, wrapper
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)

    def mean(self, tensor: Tensor) -> None:
        """Average `tensor` over the processes, in place."""
        dist.all_reduce(tensor, group=self.group)
        tensor.div_(self.size)

    def any(self, flag: bool, device: torch.device | str) -> bool:
        """True on every process if `flag` is on one of them."""
        count = torch.tensor(float(flag), device=device)
        dist.all_reduce(count, group=self.group)
        return bool(count)

    def share(self, tensor: Tensor, owner: int, device: torch.device) -> None:
        """Overwrite `tensor` by that of the process `owner`; it crosses from and to `device`."""
        sent = tensor.detach().to(device).contiguous()
        source = owner if self.group is None else dist.get_global_rank(self.group, owner)
        dist.broadcast(sent, source, group=self.group)
        if sent.data_ptr() != tensor.data_ptr():
            tensor.copy_(sent)

    def require_equal(self, numbers: Tensor, message: str) -> None:
        """Raise UsageError(message), on every process, if `numbers` are not the same on all."""
        lowest, highest = numbers.clone(), numbers.clone()
        dist.all_reduce(lowest, dist.ReduceOp.MIN, group=self.group)
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=self.group)
        if not torch.equal(lowest, highest):
            raise UsageError(message)

    @torch.no_grad()
    def act(
        self, action: Action, layers: Sequence[Parametrization], moments: Moments, clock: int
    ) -> None:
        """Run `action` on each layer by one of the processes, and give the others what came of it.

        So whatever is drawn or decomposed is decided once, and in 1/size of the time. Of sharded layers
        there are as many as processes whole at a time, on each of them. If `action` raises on one
        process, every process raises.
        """
        sharded = any(is_sharded(p) for layer in layers for p in layer.parameters())
        turn = self.size if sharded else max(1, len(layers))
        for start in range(0, len(layers), turn):
            present = layers[start : start + turn]
            with ExitStack() as stack:
                for layer in present:
                    stack.enter_context(gathered(layer, moments))
                self._act_once(action, present, moments, clock)

    def _act_once(
        self, action: Action, layers: Sequence[Parametrization], moments: Moments, clock: int
    ) -> None:
        device = layers[0].clock.device
        problem: Exception | None = None
        try:
            action([m for m in layers if m.index % self.size == self.rank], moments, clock)
        except Exception as error:
            problem = error
        lost = self.any(isinstance(problem, NonFiniteError), device)
        if self.any(problem is not None, device):
            kind = NonFiniteError if lost else RunError  # the same on all, so that all do the same
            if problem is None or (lost and not isinstance(problem, NonFiniteError)):
                problem = kind("an event failed on another process, which says why")
            raise problem
        for layer in layers:
            owner = layer.index % self.size
            for tensor in _state(layer, moments):
                self.share(tensor, owner, device)
            for factor in layer.factors().values():
                self._share_numbers(moments.state(factor), owner, device)
            if owner != self.rank:
                layer.forget()  # what it knew of its state is another's

    def _share_numbers(self, state: dict[str, Any], owner: int, device: torch.device) -> None:
        """Step counters and such, where an optimizer keeps them as plain numbers."""
        for name, value in state.items():
            if isinstance(value, int | float):
                number = torch.tensor(float(value), dtype=torch.float64)
                self.share(number, owner, device)
                state[name] = type(value)(number.item())


def _state(layer: Parametrization, moments: Moments) -> Iterator[Tensor]:
    """All that an event may edit: parameters, buffers and the like, moments of the factors."""
    yield from (p for name, p in layer.named_parameters(recurse=False) if name != "bias")
    yield from (*layer.buffers(recurse=False), *layer.hosted.values())
    for factor in layer.factors().values():
        yield from (v for v in moments.state(factor).values() if isinstance(v, Tensor))


@contextmanager
def gathered(layer: Parametrization, moments: Moments) -> Iterator[None]:
    """Within the block a sharded layer's parameters, and their moments, are whole tensors.

    At the end each process copies its part back: they must be the same on all processes by then. Every
    process must come here, since gathering takes all of them. An unsharded layer is left alone.
    """
    parts = {n: p for n, p in layer._parameters.items() if p is not None and n != "bias"}
    sharded = {n: p for n, p in parts.items() if is_sharded(p)}
    with ExitStack() as stack:
        for name, p in sharded.items():
            full = nn.Parameter(whole(p.detach()), requires_grad=p.requires_grad)
            layer._parameters[name] = full
            stack.enter_context(moments.gathered(p, full))
        try:
            yield
            for name, p in sharded.items():
                write_back(layer._parameters[name].detach(), p.detach())  # type: ignore[union-attr]
        finally:
            layer._parameters.update(sharded)


def processes_of(model: nn.Module, layers: Iterable[Parametrization]) -> Processes | None:
    """The processes that train `model` together, as its wrappers tell; None where it is alone.

    Recognised are `fully_shard` (by its DTensors) and DistributedDataParallel around the model or
    around one that holds it. That there is a process group does not suffice: each of its processes may
    train a model of its own. (Objects that gc.freeze() hid are not found; name the process group to
    `attach` then.) Raises UsageError for what cannot work: FSDP of version 1, whose flattened
    parameters hold no whole rows; a mesh of only some of the processes; shards of columns.
    """
    if not dist.is_available() or not dist.is_initialized():
        return None
    layers = list(layers)
    sharded = [(n, p) for layer in layers for n, p in layer.named_parameters() if is_sharded(p)]
    for name, p in sharded:
        _require_rows(p, name)
    if sharded:
        return Processes()  # even if it is one: its tensors are sharded ones all the same
    ddp = _wrapper(model, layers)
    if ddp is None or dist.get_world_size(ddp.process_group) == 1:
        return None
    return Processes(ddp.process_group, ddp)


def _require_rows(p: Any, name: str) -> None:
    if p.device_mesh.size() != dist.get_world_size():
        raise UsageError(
            f"attach: {name} is sharded over {p.device_mesh.size()} of {dist.get_world_size()} "
            "processes; only a mesh of all processes is supported"
        )
    if any(place.is_shard() and not place.is_shard(0) for place in p.placements):
        raise UsageError(
            f"attach: {name} is sharded by columns, and step rules need whole rows; use fully_shard "
            "with its default placement, and no tensor parallelism of exchanged layers"
        )


def _wrapper(model: nn.Module, layers: list[Parametrization]) -> Any:
    """The DistributedDataParallel that holds one of `layers`, wherever it is kept."""
    # A module does not know its wrappers, and the caller may have passed what is inside of them.
    for found in (model, *gc.get_objects()):
        name = type(found).__name__
        if name not in ("DistributedDataParallel", "FullyShardedDataParallel"):
            continue
        if any(module is layers[0] for module in found.modules()):
            if name == "FullyShardedDataParallel":
                raise UsageError(
                    "attach: FullyShardedDataParallel flattens parameters, of which no whole rows are "
                    "left; use torch.distributed.fsdp.fully_shard"
                )
            return found
    return None
