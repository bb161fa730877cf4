"""The processes of a run, as torchrun or accelerate start them; most runs have one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from spectrain.distributed import Processes
from spectrain.errors import RunError, SpectrainError, UsageError
from spectrain.memory.rehearsal import repeated_blocks
from spectrain.tasks.batch import Batch
from spectrain.tasks.task import Task

T = TypeVar("T")
B = TypeVar("B", bound=Batch)
PATIENCE = timedelta(minutes=30)  # a process waits so long for the others, as for a slow evaluation


class Team:
    """This process and the others of its run. The first one writes, speaks and decides for all."""

    def __init__(self) -> None:
        """Joins the others where the environment names them (RANK, WORLD_SIZE, MASTER_ADDR).

        Raises RunError if they cannot be reached.
        """
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.size > 1 else 0
        self.together: Processes | None = None
        if self.size > 1:
            self._join()

    def _join(self) -> None:
        if not dist.is_initialized():
            # What is decided (a stop, a loss) crosses as CPU tensors, without waiting for a GPU.
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            try:
                dist.init_process_group(backend, timeout=PATIENCE)
            except (RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise RunError(f"the {self.size} processes cannot be joined: {reason}") from None
        self.together = Processes()

    @property
    def first(self) -> bool:
        """True on the process that writes and speaks."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """A GPU of its own for each process of a machine."""
        if str(device) == "cuda" and self.size > 1:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        return device

    def require_possible(self, task: Task, sharded: bool, phases: int) -> None:
        """Raise UsageError for a batch that cannot be divided, or weights that cannot be sharded."""
        batch_size = task.batch_shape[1]
        if self.size > 1 and not task.is_divisible:
            raise UsageError(
                f"a {task.name} is trained as a whole in every step, which cannot be divided over "
                f"{self.size} processes: start one"
            )
        if batch_size % self.size:
            raise UsageError(
                f"--batch-size {batch_size} cannot be divided over {self.size} processes: give a "
                f"multiple of {self.size}"
            )
        if sharded and self.size == 1:
            raise UsageError(
                "--shard divides the weights over processes, and there is one; start several with "
                "torchrun --standalone --nproc-per-node N -m spectrain …"
            )
        if sharded and phases > 1:
            raise UsageError(
                "--shard: this method changes its layers between phases, which sharded weights cannot; "
                "leave --shard or the warm start out"
            )

    def part(self, batch: B) -> B:
        """This process's rows of a batch."""
        return batch.chunk(self.size)[self.rank]

    def wrap(self, model: LossOf, sharded: bool) -> LossOf | DistributedDataParallel:
        """What to call in training so that gradients are averaged; `sharded` divides the weights, too."""
        if self.size == 1:
            return model
        if not sharded:
            return DistributedDataParallel(model)
        for block in repeated_blocks(model):
            fully_shard(block)
        fully_shard(model)
        register_fsdp_forward_method(model, "inside")
        return model

    def averaging(self, wrapped: nn.Module, last: bool) -> AbstractContextManager[object]:
        """A backward pass; only the last of a step needs gradients to be averaged."""
        if last or not isinstance(wrapped, DistributedDataParallel):
            return nullcontext()
        return wrapped.no_sync()

    def inside(self, wrapped: Any, work: Callable[[], T]) -> T:
        """What `work` returns, which calls the model inside of `wrapped` and not `wrapped` itself."""
        if not isinstance(wrapped, FSDPModule):
            return work()
        found: T = wrapped.inside(work)  # type: ignore[attr-defined]
        wrapped.reshard()
        return found

    def any(self, flag: bool) -> bool:
        """True on every process if `flag` is on one of them."""
        return flag if self.together is None else self.together.any(flag, "cpu")

    def numbers(self, number: float) -> list[float]:
        """All processes' numbers, in the order of ranks."""
        return [float(found) for found in self.all(torch.tensor(number, dtype=torch.float64))]

    def all(self, tensor: Tensor) -> list[Tensor]:
        """Every process's tensor of one shape, on the CPU, in the order of ranks."""
        if self.together is None:
            return [tensor]
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(found, tensor)
        return found

    def decide(self, decision: Callable[[], Any]) -> Any:
        """What `decision` returns on the first process, as JSON has it; its error on all of them."""
        if self.together is None:
            return decision()
        said: dict[str, Any] = {}
        problem = None
        if self.first:
            try:
                said = {"value": decision()}
            except Exception as error:
                problem, said = error, {"error": str(error)}
        said = json.loads(self._tell(json.dumps(said, default=str).encode()))
        if problem is not None:
            raise problem
        if "error" in said:
            raise OthersError(said["error"])
        return said["value"]

    def first_then_others(self, work: Callable[[], T]) -> T:
        """What `work` returns; the first process does it alone, and leaves the others what it cached."""
        found: list[T] = []
        self.decide(lambda: found.append(work()))
        return found[0] if found else work()

    @contextmanager
    def same_draws(self) -> Iterator[None]:
        """Within the block all processes draw the first one's random numbers, and then their own again."""
        if self.together is None:
            yield
            return
        own = torch.get_rng_state()
        torch.set_rng_state(self.all(own)[0])
        yield
        if not self.first:
            torch.set_rng_state(own)

    def _tell(self, message: bytes) -> bytes:
        """The first process's message, on all of them."""
        length = torch.tensor(len(message))
        dist.broadcast(length, 0)
        content = torch.zeros(int(length), dtype=torch.uint8)
        if self.first:
            content.copy_(torch.frombuffer(bytearray(message), dtype=torch.uint8))
        dist.broadcast(content, 0)
        return bytes(content.tolist())


class LossOf(nn.Module):
    """A task's loss as a module: what is called in training, so that wrappers see every pass begin."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self.task, self.model = task, model

    def forward(self, batch: Tensor) -> Tensor:
        return self.task.loss(self.model, batch)

    def inside(self, work: Callable[[], T]) -> T:
        """Call `work`, which uses the model; as a forward pass it has the sharded weights gathered."""
        return work()


class OthersError(SpectrainError):
    """What went wrong on the first process, which has said it; the others leave without a word."""

    on_all = True


def is_parting(error: RuntimeError) -> bool:
    """Whether `error` is what is left to a process whose companion has ended, killed or in error."""
    said = str(error).lower()
    signs = "gloo", "nccl", "connection closed", "connection reset", "timed out", "broken pipe"
    return dist.is_initialized() and any(sign in said for sign in signs)
