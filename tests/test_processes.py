"""Two processes train as one: DistributedDataParallel, fully_shard, layer-wise stepping."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import CASES, KINDS, some_of
from torch import distributed as dist
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from toys import batch, make_net, same

import spectrain
from spectrain import LayerWise, linalg
from spectrain.errors import NonFiniteError
from spectrain.method import Method
from spectrain.methods import galore, relora, sst

STEPS = 8
WHOLE = StateDictOptions(full_state_dict=True)
# Each process draws a mask of its own, so no single process has the same dropout.
METHODS = {
    name: method
    for name, method in CASES.items()
    if name != "lora-dropout" and not method.against_processes()
}
every_method = some_of(METHODS, KINDS)


def states(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Model and moments by name, whole and unwrapped, on every process."""
    found = get_model_state_dict(model, options=WHOLE)
    moments = get_optimizer_state_dict(
        model,
        optimizer,
        options=StateDictOptions(full_state_dict=True, flatten_optimizer_state_dict=True),
    )
    found |= {n: v for n, v in moments.items() if isinstance(v, torch.Tensor)}
    return {n: v.detach().clone() for n, v in found.items()}


def train(
    method: Method,
    how: str,
    steps: int = STEPS,
    passes: int = 1,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Any]:
    """Steps on four rows each; with several processes each takes its rows, as does each pass."""
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    net = make_net(0, dtype)
    spectrain.apply(net, method, report=None)
    if how == "fsdp":
        for layer in (net.tall, net.conv, net.square, net.wide):
            fully_shard(layer)
        fully_shard(net)
    optimizer = torch.optim.AdamW(spectrain.param_groups(net, 0.01, weight_decay=0.1))
    layerwise = LayerWise(accumulate=passes) if how == "layerwise" else None
    spectrain.attach(net, optimizer, layerwise=layerwise)
    model: Any = net
    if how in ("ddp", "layerwise") and size > 1:
        model = DistributedDataParallel(net)
    parts = passes if how != "alone" else 2 * passes
    for step in range(steps):
        x, y = (t.chunk(size)[rank] for t in batch(step, dtype))
        for xs, ys in zip(x.chunk(parts), y.chunk(parts), strict=True):
            (F.mse_loss(model(xs), ys) / parts).backward()
        optimizer.step()
        optimizer.zero_grad()
    return states(net, optimizer)


def close(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


@every_method
def test_two_processes_equal_one(pair, method):
    """Replicated, sharded and layer-wise; the replicas are equal bit for bit, all else to rounding."""
    alone = train(method, "alone")
    ddp = pair.call(train, method, "ddp")
    assert same(ddp[0], ddp[1])
    close(ddp[0], alone)
    close(pair.call(train, method, "fsdp")[0], alone)
    layerwise = pair.call(train, method, "layerwise")
    assert same(layerwise[0], layerwise[1])
    close(layerwise[0], alone)


@pytest.mark.parametrize("name", ["lora", "sst", "galore-stagger"])
@pytest.mark.parametrize("how", ["ddp", "fsdp", "layerwise"])
def test_accumulation_over_passes_equals_one_process(pair, name, how):
    close(pair.call(train, CASES[name], how, STEPS, 2)[0], train(CASES[name], "alone"))


def draw_differently(method: Method, how: str) -> dict[str, Any]:
    """Train where decompositions and random numbers differ from process to process."""
    rank = dist.get_rank()
    original = linalg.fix_signs
    turned = (lambda U, s, V: (-U, s, -V)) if rank else original
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linalg, "fix_signs", turned)
        for module in (sst, relora, galore):
            patch.setattr(
                module, "event_generator", lambda layer, clock: torch.Generator().manual_seed(rank)
            )
        return train(method, how)


@pytest.mark.parametrize(
    "name", ["sst-rounds", "relora", "relora-prune-random", "galore-randomized"]
)
def test_what_is_drawn_or_decomposed_is_decided_once(pair, name):
    """Each process would decide otherwise; both end with the same weights and moments."""
    first, second = pair.call(draw_differently, CASES[name], "ddp")
    assert same(first, second)


def reduced_numbers(method: Method) -> tuple[int, int, int]:
    """Numbers that DistributedDataParallel sends a step; trainable ones; all of the layers' matrices."""
    net = make_net()
    matrices = sum(m.weight.numel() for m in (net.tall, net.conv, net.square, net.wide))
    spectrain.apply(net, method, report=None)
    optimizer = torch.optim.AdamW(spectrain.param_groups(net, 0.01))
    spectrain.attach(net, optimizer)
    model = DistributedDataParallel(net)
    sent = 0

    def count(state, bucket):
        nonlocal sent
        sent += bucket.buffer().numel()
        return default_hooks.allreduce_hook(None, bucket)

    model.register_comm_hook(None, count)
    for step in range(3):
        sent = 0
        x, y = batch(step)
        F.mse_loss(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return sent, sum(p.numel() for p in net.parameters() if p.requires_grad), matrices


@every_method
def test_only_gradients_of_trainable_numbers_cross_between_processes(pair, method):
    sent, trainable, matrices = pair.call(reduced_numbers, method)[0]
    assert sent == trainable
    if getattr(method, "rank", None) and type(method).__name__ == "GaLore":
        assert sent < matrices


def use_seeds_of_their_own() -> str:
    torch.manual_seed(dist.get_rank())
    net = make_net(dist.get_rank())
    spectrain.apply(net, CASES["sst"], report=None)
    for layer in (net.tall, net.conv, net.square, net.wide):
        fully_shard(layer)
    optimizer = torch.optim.AdamW(spectrain.param_groups(net, 0.01))
    spectrain.attach(net, optimizer)
    x, y = batch(0)
    F.mse_loss(net(x), y).backward()
    with pytest.raises(spectrain.UsageError, match="have different seeds or clocks") as caught:
        optimizer.step()
    return str(caught.value)


def test_processes_with_other_seeds_are_refused_on_all_of_them(pair):
    assert len(set(pair.call(use_seeds_of_their_own))) == 1


def wrap_in_the_wrong_order() -> None:
    net = make_net()
    model = DistributedDataParallel(copy.deepcopy(net))
    with pytest.raises(spectrain.UsageError, match="wrapped in DistributedDataParallel already"):
        spectrain.apply(model, CASES["sst"], report=None)
    fully_shard(net)
    with pytest.raises(spectrain.UsageError, match="is sharded already"):
        spectrain.apply(net, CASES["sst"], report=None)
    net = spectrain.apply(make_net(), CASES["lora"], report=None)
    optimizer = torch.optim.AdamW(spectrain.param_groups(net, 0.01))
    model = DistributedDataParallel(net)
    spectrain.attach(net, optimizer, layerwise=LayerWise())
    x, y = batch(0)
    with pytest.raises(spectrain.UsageError, match="before DistributedDataParallel"):
        F.mse_loss(model(x), y).backward()
    spectrain.detach(net)
    fully_shard(net)
    with pytest.raises(spectrain.UsageError, match="merge: this model is sharded"):
        spectrain.merge(net)
    optimizer = torch.optim.AdamW(spectrain.param_groups(net, 0.01))
    spectrain.attach(net, optimizer, layerwise=LayerWise())
    with pytest.raises(spectrain.UsageError, match="cannot be used with fully_shard"):
        F.mse_loss(net(x), y).backward()


def test_wrong_orders_are_refused_with_the_reason(pair):
    pair.call(wrap_in_the_wrong_order)


def fail_on_one(error: Exception) -> tuple[str, str]:
    def fail(layers: object) -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank():
            patch.setattr(sst, "redecompose", fail)
        with pytest.raises(RuntimeError) as caught:
            train(CASES["sst-rounds"], "ddp")
    return type(caught.value).__name__, str(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("no convergence"), NonFiniteError("has NaN")])
def test_an_event_that_fails_on_one_process_ends_all_of_them(pair, error):
    """All of them with a divergence if it is one, so that all go on in the same way."""
    (kind, said), own = pair.call(fail_on_one, error)
    assert kind == ("NonFiniteError" if isinstance(error, NonFiniteError) else "RunError")
    assert said == "an event failed on another process, which says why"
    assert own == (type(error).__name__, str(error))


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    x, y = batch(0)
    F.mse_loss(model(x), y).backward()
    optimizer.step()


def join_what_cannot_be_joined() -> None:
    """Columns of a later layer; other starts under LayerWise; a basis that each decides for itself."""
    net = spectrain.apply(make_net(), CASES["lora"], report=None)
    fully_shard(net.tall)
    fully_shard(net.wide, shard_placement_fn=lambda p: Shard(1) if p.ndim > 1 else Shard(0))
    x, y = batch(0)
    optimizer = torch.optim.AdamW(spectrain.param_groups(net, 0.01))
    spectrain.attach(net, optimizer)
    F.mse_loss(net(x), y).backward()
    with pytest.raises(spectrain.UsageError, match="is sharded by columns"):
        optimizer.step()
    for method, how, said in (
        (CASES["lora"], LayerWise(), "the processes' factors differ"),
        (CASES["galore-same-step"], None, "same_step' is decided by each for itself"),
    ):
        net = spectrain.apply(make_net(), method, report=None)
        if dist.get_rank() and how is not None:
            net.wide.A.data.neg_()
        optimizer = torch.optim.AdamW(spectrain.param_groups(net, 0.01))
        spectrain.attach(net, optimizer, layerwise=how)
        model = DistributedDataParallel(net)
        with pytest.raises(
            spectrain.UsageError, match=said
        ):  # in the first, LayerWise: in backward
            one_step(model, optimizer)


def test_what_cannot_be_joined_is_refused(pair):
    pair.call(join_what_cannot_be_joined)


def train_with_numbers() -> dict[str, Any]:
    """An optimizer that keeps its step counter as a plain number."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    net = spectrain.apply(make_net(), CASES["sst"], report=None)
    optimizer = bitsandbytes.optim.AdamW8bit(spectrain.param_groups(net, 0.01), min_8bit_size=0)
    spectrain.attach(net, optimizer)
    model = DistributedDataParallel(net)
    for step in range(STEPS):
        x, y = (t.chunk(2)[dist.get_rank()] for t in batch(step))
        F.mse_loss(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    steps = {n: optimizer.state[p]["step"] for n, p in net.named_parameters() if p.requires_grad}
    return {**net.state_dict(), **steps}


def test_plain_numbers_of_an_optimizer_are_shared_too(pair):
    first, second = pair.call(train_with_numbers)
    assert same(first, second)


def train_apart() -> dict[str, Any]:
    """Each process trains a model of its own, though there is a process group."""
    return train(CASES["sst"], "apart" if dist.get_rank() else "alone", STEPS - dist.get_rank())


def test_a_process_group_alone_joins_nothing(pair):
    first, second = pair.call(train_apart)
    assert int(first["tall.clock"]) == int(second["tall.clock"]) + 1


def average_by_hand() -> dict[str, Any]:
    torch.manual_seed(0)
    net = make_net(0, torch.float64)
    spectrain.apply(net, CASES["galore"], report=None)
    optimizer = torch.optim.AdamW(spectrain.param_groups(net, 0.01, weight_decay=0.1))
    spectrain.attach(net, optimizer, process_group=dist.group.WORLD)
    for step in range(STEPS):
        x, y = (t.chunk(2)[dist.get_rank()] for t in batch(step, torch.float64))
        F.mse_loss(net(x), y).backward()
        for p in net.parameters():
            if p.grad is not None:
                dist.all_reduce(p.grad)
                p.grad /= 2
        optimizer.step()
        optimizer.zero_grad()
    return states(net, optimizer)


def test_gradients_averaged_by_hand_need_the_group_alone(pair):
    close(pair.call(average_by_hand)[0], train(CASES["galore"], "alone"))


# --- checkpoints of torch.distributed.checkpoint, in its safetensors form ---------------------------


def build(method: Method, sharded: bool) -> tuple[Any, torch.optim.Optimizer]:
    net = make_net(0, torch.float64)
    spectrain.apply(net, method, report=None)
    if sharded:
        for layer in (net.tall, net.conv, net.square, net.wide):
            fully_shard(layer)
        fully_shard(net)
    optimizer = torch.optim.AdamW(spectrain.param_groups(net, 0.01, weight_decay=0.1))
    spectrain.attach(net, optimizer)
    return net, optimizer


def tensors_of(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    model, moments = get_state_dict(net, optimizer, options=options)
    found = {f"model.{n}": v for n, v in model.items()}
    return found | {f"optim.{n}": v for n, v in moments.items() if isinstance(v, torch.Tensor)}


def run_in_parts(
    method: Method, folder: str, sharded: bool, start: int, stop: int
) -> dict[str, Any]:
    """Load step `start` if it is not 0, train up to `stop`, save; all tensors at the end."""
    net, optimizer = build(method, sharded)
    if start:
        tensors = tensors_of(net, optimizer)
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(path=f"{folder}/{start}"))
        options = StateDictOptions(flatten_optimizer_state_dict=True)
        _, groups = get_state_dict(net, optimizer, options=options)  # rates: JSON's part
        set_state_dict(
            net,
            optimizer,
            model_state_dict={n[6:]: v for n, v in tensors.items() if n.startswith("model.")},
            optim_state_dict=groups
            | {n[6:]: v for n, v in tensors.items() if n.startswith("optim.")},
            options=options,
        )
    rank, size = (dist.get_rank(), dist.get_world_size()) if sharded else (0, 1)
    for step in range(start, stop):
        x, y = (t.chunk(size)[rank] for t in batch(step, torch.float64))
        F.mse_loss(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    writer = HuggingFaceStorageWriter(path=f"{folder}/{stop}", save_distributed=True)
    dcp.save(tensors_of(net, optimizer), storage_writer=writer)
    return states(net, optimizer)


@pytest.mark.parametrize("name", ["full", "lora", "relora", "sst", "sst-residual", "galore"])
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_distributed_checkpoints_are_loaded_by_more_and_by_fewer_processes(pair, tmp_path, name):
    method, middle = CASES[name], 4
    expected = train(method, "alone")
    close(run_in_parts(method, f"{tmp_path}/one", False, 0, STEPS), expected)
    pair.call(run_in_parts, method, f"{tmp_path}/a", True, 0, middle)
    close(run_in_parts(method, f"{tmp_path}/a", False, middle, STEPS), expected)
    run_in_parts(method, f"{tmp_path}/b", False, 0, middle)
    close(pair.call(run_in_parts, method, f"{tmp_path}/b", True, middle, STEPS)[0], expected)
    files = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert files <= {".safetensors", ".json"}


def test_asking_for_an_optimizers_state_is_no_step():
    net, optimizer = build(CASES["sst"], False)
    before = {n: v.clone() for n, v in net.state_dict().items()}
    get_state_dict(net, optimizer)
    assert same(net.state_dict(), before)
    assert not any(float(state["step"]) > 1 for state in optimizer.state.values())
