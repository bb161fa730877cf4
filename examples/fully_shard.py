"""Sharded training (FSDP2) with checkpoints that any number of processes can load. Seconds on two cores:

python -m torch.distributed.run --standalone --nproc-per-node 2 examples/fully_shard.py

Each process holds a part of every weight, gradient and moment. Checkpoints are safetensors, written and
read by torch.distributed.checkpoint: nothing is unpickled. Try it again with --nproc-per-node 1: it goes on
from the checkpoint that two processes wrote. Where that lies can be given as an argument.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard

import spectrain

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.gettempdir()) / "sharded-checkpoint"
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)  # moments by name, as tensors alone
STEPS, STOP_AT = 60, 30


def build() -> tuple[nn.Module, torch.optim.Optimizer]:
    """The same on every process, since the seed is."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 4)
    )
    spectrain.apply(model, spectrain.SST(rank=4, resample_every=10, warmup=2), report=None)
    for layer in (model[0], model[2], model[4]):
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(spectrain.param_groups(model, lr=5e-3))
    spectrain.attach(model, optimizer)
    return model, optimizer


def tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict]:
    """All tensors by name, and the rest (rates and such), which is plain JSON."""
    weights, state = get_state_dict(model, optimizer, options=FLAT)
    moments = {f"optim.{n}": v for n, v in state.items() if isinstance(v, Tensor)}
    rest = {n: v for n, v in state.items() if not isinstance(v, Tensor)}
    return {f"model.{n}": v for n, v in weights.items()} | moments, rest


def train(model: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
    """Each process takes its rows of a batch that follows from the step."""
    rank, size = dist.get_rank(), dist.get_world_size()
    for step in range(start, stop):
        x = torch.randn(64, 16, generator=torch.Generator().manual_seed(step)).chunk(size)[rank]
        loss = nn.functional.mse_loss(model(x), torch.tanh(x[:, :4] * x[:, 4:8]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    dist.all_reduce(loss)
    if rank == 0:
        print(f"steps {start} to {stop}, {size} processes: last loss {loss.item() / size:.6f}")


def main() -> None:
    """Train to the middle and save, or load what is there; then train to the end."""
    dist.init_process_group("gloo")
    model, optimizer = build()
    if not (FOLDER / "rest.json").exists():
        train(model, optimizer, 0, STOP_AT)
        found, rest = tensors(model, optimizer)
        dcp.save(found, storage_writer=HuggingFaceStorageWriter(str(FOLDER), save_distributed=True))
        if dist.get_rank() == 0:
            (FOLDER / "rest.json").write_text(json.dumps(rest))
            print(f"saved in {FOLDER}: {', '.join(sorted(p.name for p in FOLDER.iterdir()))}")
        dist.barrier()
    model, optimizer = build()  # as a new process would begin
    found, rest = tensors(model, optimizer)
    dcp.load(found, storage_reader=HuggingFaceStorageReader(str(FOLDER)))
    saved = json.loads((FOLDER / "rest.json").read_text())
    set_state_dict(
        model,
        optimizer,
        model_state_dict={n[6:]: v for n, v in found.items() if n.startswith("model.")},
        optim_state_dict=saved | {n[6:]: v for n, v in found.items() if n.startswith("optim.")},
        options=FLAT,
    )
    train(model, optimizer, STOP_AT, STEPS)
    dist.barrier()
    sys.stdout.flush()
    os._exit(
        0
    )  # gloo's threads may let go of tensors while Python ends, and that aborts it (torch 2.13)


if __name__ == "__main__":
    main()
