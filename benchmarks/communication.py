"""What crosses between two processes in a step of data-parallel training, counted.

    python benchmarks/communication.py

Two LLaMA-60M blocks under DistributedDataParallel, two gloo processes on the CPU. Gradients are
counted in a communication hook, what events share where they share it. Writes results/communication.md;
takes about a minute.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from speed_blocks import SHAPES, Stack
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

import spectrain
from spectrain.distributed import Processes
from spectrain.method import Method

RESULTS = Path(__file__).parent / "results" / "communication.md"
RANK, PERIOD = 64, 200
ARMS: dict[str, Method] = {
    "Full rank": spectrain.FullRank(),
    "SST, r = d/8": spectrain.SST(RANK),
    "SST residual, r = d/8": spectrain.SST(RANK, residual=True),
    "LoRA, r = d/8": spectrain.LoRA(RANK),
    "ReLoRA*, r = d/8": spectrain.ReLoRA(RANK),
    "GaLore, r = d/4": spectrain.GaLore(2 * RANK),
}


def shortened(method: Method) -> tuple[Method, int]:
    """The method with its periods divided by 100, and the steps after which all has happened once."""
    names = [n for n in ("resample_every", "merge_every", "refresh_every") if hasattr(method, n)]
    if not names:
        return method, 2
    own = {"iterations_per_round": 8} if hasattr(method, "residual") and not method.residual else {}
    rounds = own.get("iterations_per_round", 1)
    return replace(method, **dict.fromkeys(names, PERIOD // 100), **own), rounds * PERIOD // 100


def count(rank: int, store: str, name: str, answer: Any) -> None:
    """One of the two processes: bytes of gradients a step, and of all else in a round of events."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    method, steps = shortened(ARMS[name])
    torch.manual_seed(0)
    stack: nn.Module = spectrain.apply(Stack(SHAPES["LLaMA 60M"], 2, 32), method, report=None)
    optimizer = torch.optim.SGD(spectrain.param_groups(stack, 1e-4), momentum=0.9)
    spectrain.attach(stack, optimizer)
    model = nn.parallel.DistributedDataParallel(stack)
    sent = {"gradients": 0, "events": 0}

    def hook(state, bucket):  # type: ignore[no-untyped-def]
        sent["gradients"] += bucket.buffer().nbytes
        return default_hooks.allreduce_hook(None, bucket)

    def counted(function: Any) -> Any:
        def call(self: Processes, tensor: torch.Tensor, *rest: Any) -> None:
            sent["events"] += tensor.nbytes
            function(self, tensor, *rest)

        return call

    Processes.mean, Processes.share = counted(Processes.mean), counted(Processes.share)  # type: ignore[method-assign]
    model.register_comm_hook(None, hook)
    x = torch.randn(1, 32, SHAPES["LLaMA 60M"].width)
    for _ in range(steps):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    if rank == 0:
        answer.put((sent["gradients"] / steps, sent["events"], steps))
    dist.barrier()


def measure(name: str) -> tuple[float, float, int]:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "store")
        pair = [context.Process(target=count, args=(r, store, name, answer)) for r in range(2)]
        for process in pair:
            process.start()
        found: tuple[float, float, int] = answer.get(timeout=300)
        for process in pair:
            process.join()
    return found


def main() -> None:
    lines = [
        "# Bytes between processes\n",
        f"Made by `python benchmarks/communication.py` (torch {torch.__version__}): two LLaMA-60M blocks "
        "(d = 512), float32, SGD with momentum, counted in one of two processes. Events at their default "
        f"period of {PERIOD} steps: what they share in a round, divided by its steps.\n",
        "| method | gradients a step, MiB | over full rank | events, MiB a step |",
        "|---|--:|--:|--:|",
    ]
    found = {name: measure(name) for name in ARMS}
    full = found["Full rank"][0]
    for name, (gradients, events, steps) in found.items():
        shared = events / (steps * 100) / 2**20
        lines.append(
            f"| {name} | {gradients / 2**20:.2f} | {gradients / full:.3f} | {shared:.3f} |"
        )
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
