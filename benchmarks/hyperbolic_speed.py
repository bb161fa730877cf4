"""An epoch of HyboNet with every method, over one of the same network with plain linear layers.

    python benchmarks/hyperbolic_speed.py --data FOLDER      some five minutes on a core

FOLDER holds airport.npz, cora.npz and disease_lp.npz. All arms live in one process and take turns in random
order, one epoch each, so that a drift of the machine's speed hits all alike; what happens every so many
epochs is in the sums. Beside them: a Euclidean GCN of the same size. Writes results/hyperbolic_speed.md.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from speed_report import machine

import spectrain
from spectrain import SST, GaLore, LoRA, ReLoRA
from spectrain.hyperbolic.linear import on_hyperboloid
from spectrain.hyperbolic.lorentz import centroid, from_tangent
from spectrain.runs.allocator import keep_freed_memory
from spectrain.runs.options import RunOptions
from spectrain.tasks.graph.files import load_graph
from spectrain.tasks.graph.inputs import NodeInputs
from spectrain.tasks.graph.options import GraphOptions
from spectrain.tasks.graph.recipes import recipe_for
from spectrain.tasks.graph.task import GraphLearning

RESULTS = Path(__file__).parent / "results" / "hyperbolic_speed.md"
TASKS = (
    *(("airport.npz", "nodes"), ("cora.npz", "nodes")),
    *(("airport.npz", "links"), ("cora.npz", "links"), ("disease_lp.npz", "links")),
)
METHODS = {
    "SST, r = 1": SST(1, resample_every=100, warmup=100),
    "SST, r = 2": SST(2, resample_every=100, warmup=100),
    "LoRA, r = 1": LoRA(1),
    "ReLoRA\\*, r = 1": ReLoRA(1, merge_every=100),
    "GaLore, r = 1": GaLore(1, refresh_every=100),
}


def made(file: Path, predict: str, model: str) -> tuple[GraphLearning, RunOptions]:
    """The task by its recipe, and how it is trained."""
    graph = load_graph(str(file))
    recipe = recipe_for("auto", graph.name, predict, "hybonet")
    assert recipe is not None
    own = {k: v for k, v in recipe.values.items() if k in GraphOptions.__dataclass_fields__}
    run = {k: v for k, v in recipe.values.items() if k in RunOptions.__dataclass_fields__}
    task = GraphLearning.on(graph, GraphOptions(predict=predict, model=model, **own))
    return task, RunOptions(optimizer="Adam", exclude="head", **run)


def arm(
    task: GraphLearning, options: RunOptions, method: spectrain.method.Method | None
) -> Callable[[], None]:
    """One epoch; without a method the network is torch's and nothing of the library is in its steps."""
    torch.manual_seed(0)
    model = task.build_model()
    if method is None:
        decayed = [p for p in model.parameters() if p.ndim > 1]
        rest = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": rest}]
        groups = [{"lr": options.lr, "weight_decay": 0.0} | group for group in groups]
    else:
        spectrain.apply(model, method, options.targets, options.excluded, report=None)
        groups = spectrain.param_groups(model, options.lr, weight_decay=options.weight_decay)
    optimizer = options.build_optimizer(groups)
    if method is not None:
        spectrain.attach(model, optimizer)
    epoch = 0

    def step() -> None:
        nonlocal epoch
        (batch,) = task.micro_batches(epoch, 0)
        task.loss(model, batch).backward()
        if options.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        optimizer.step()
        optimizer.zero_grad()
        epoch += 1

    return step


def measured(steps: dict[str, Callable[[], None]], epochs: int) -> dict[str, float]:
    """Seconds of all epochs of each arm, the first ten left out."""
    sums = dict.fromkeys(steps, 0.0)
    for epoch in range(epochs + 10):
        for name in random.sample(list(steps), len(steps)):
            began = time.perf_counter()
            steps[name]()
            sums[name] += (time.perf_counter() - began) if epoch >= 10 else 0.0
    return sums


def plain_hyperboloid(a: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The published formula, left to autograd."""
    time_ = torch.sigmoid(a[..., :1]) * scale.exp() + 1.1
    squares = a[..., 1:].square().sum(-1, keepdim=True).clamp(min=1e-8)
    return torch.cat((time_, a[..., 1:] * ((time_.square() - 1) / squares).sqrt()), -1)


def plain_centroid(z: torch.Tensor) -> torch.Tensor:
    """The published formula, left to autograd."""
    squares = z[..., 1:].square().sum(-1, keepdim=True) - z[..., :1].square()
    return z / squares.abs().clamp(min=1e-8).sqrt()


def choices(data: Path) -> list[str]:
    """Milliseconds of what was chosen and of what it was chosen over; forward and backward passes."""
    a = from_tangent(torch.randn(3188, 15)).requires_grad_()
    scale, g = torch.tensor(2.3, requires_grad=True), torch.randn(3188, 16)
    cora, _ = made(data / "cora.npz", "links", "hybonet")
    x = from_tangent(cora.features)
    inputs, weight, first = NodeInputs(x), torch.randn(16, x.shape[1]), torch.randn(len(x), 16)
    few = x.to_sparse_csr()

    def both(calls: Callable[[], torch.Tensor]) -> Callable[[], None]:
        return lambda: calls().backward(g)

    rows = {
        "pointwise part of a layer, 3,188 points": (
            both(lambda: on_hyperboloid(a, scale, 1.0)),
            both(lambda: plain_hyperboloid(a, scale)),
            "autograd through the formula",
        ),
        "centroid, 3,188 points": (
            both(lambda: centroid(a)),
            both(lambda: plain_centroid(a)),
            "autograd through the formula",
        ),
        "dropout of Cora's inputs": (
            lambda: inputs.dropped(0.7),
            lambda: torch.nn.functional.dropout(x, 0.7),
            "a draw for every zero, too",
        ),
        "both products of Cora's first layer": (
            lambda: (x @ weight.mT, first.mT @ x),
            lambda: (few @ weight.mT, few.mT @ first),
            "sparse inputs, which no method's layer takes",
        ),
    }
    lines = ["| what | chosen, ms | instead, ms | instead |", "|---|--:|--:|---|"]
    for name, (chosen, instead, words) in rows.items():
        times = measured({"chosen": chosen, "instead": instead}, 40)
        figures = (f"{1000 * times[k] / 40:.2f}" for k in ("chosen", "instead"))
        lines.append(f"| {name} | {' | '.join(figures)} | {words} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the graphs")
    parser.add_argument("--epochs", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    random.seed(0)
    rows = []
    for file, predict in TASKS:
        task, options = made(given.data / file, predict, "hybonet")
        flat, _ = made(given.data / file, predict, "gcn")
        steps = {"plain": arm(task, options, None), "GCN": arm(flat, options, None)}
        steps |= {name: arm(task, options, method) for name, method in METHODS.items()}
        sums = measured(steps, given.epochs)
        ratios = " | ".join(f"{sums[name] / sums['plain']:.2f}" for name in (*METHODS, "GCN"))
        plain = 1000 * sums["plain"] / given.epochs
        rows.append(f"| {task.graph.name}, {predict} | {plain:.1f} | {ratios} |")
        print(rows[-1], flush=True)
    where = machine(torch.device("cpu"))
    lines = [
        "# An epoch of HyboNet\n",
        f"Made by `python benchmarks/hyperbolic_speed.py --data FOLDER --epochs {given.epochs}` "
        f"({where['processor']}, one thread, torch {where['torch']}), float32, the recipes' settings.\n",
        "Milliseconds with plain linear layers and torch's optimizer, and every method's epoch over that; "
        "what happens every 100 epochs is included. Last: a Euclidean GCN of equal layers, over plain.\n",
        f"| graph | plain, ms | {' | '.join(METHODS)} | GCN |",
        "|---" + "|--:" * (len(METHODS) + 2) + "|",
        *rows,
        "\n## What the small choices rest on\n",
        *choices(given.data),
    ]
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
