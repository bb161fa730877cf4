"""How fast the hyperbolic translator learns, what in its start does that, and what its steps cost.

    python benchmarks/translation_hyperbolic.py --data FOLDER       some 20 minutes on a core
    python benchmarks/translation_hyperbolic.py --data FOLDER --steps 20     to see that it runs

FOLDER is Multi30K's. d = 64, three layers, full rank, steps of 1,024 tokens, seed 0. Interrupt it and run
it again: losses that are known are kept. Writes results/translation_hyperbolic.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from speed_report import machine
from torch import nn

import spectrain
from spectrain.hyperbolic import Lorentz, LorentzLinear
from spectrain.hyperbolic.lorentz import from_tangent
from spectrain.runs.files import read_json, write_json
from spectrain.runs.options import RunOptions
from spectrain.tasks.translate.evaluate import mean_loss
from spectrain.tasks.translate.options import TranslateOptions
from spectrain.tasks.translate.task import Translation

HERE = Path(__file__).parent
KEPT = HERE / "runs" / "translation_hyperbolic.json"
RESULTS = HERE / "results" / "translation_hyperbolic.md"
RATES = (2e-3, 4e-3, 8e-3)
DIMS = (64, 128)  # of the steps that are timed
TIMED = 30  # steps of each geometry


@torch.no_grad()
def slow(model: nn.Module) -> None:
    """Steps of Riemannian Adam as published."""
    model.head.points.manifold = Lorentz()


@torch.no_grad()
def far(model: nn.Module) -> None:
    """Points at a distance of about 1 from the origin."""
    count, d = model.head.points.shape
    model.head.points.copy_(from_tangent(d**-0.5 * torch.randn(count, d - 1)))


@torch.no_grad()
def small(model: nn.Module) -> None:
    """Weights within ±0.02."""
    for module in model.modules():
        if isinstance(module, LorentzLinear):
            module.dense.weight.mul_(0.02 * module.dense.out_features**0.5)


Change = Callable[[nn.Module], None]
HYPERBOLIC, PRE, POST = {"geometry": "hyperbolic"}, {"norm": "pre"}, {"norm": "post"}
ARMS: dict[str, tuple[dict[str, str], tuple[Change, ...]]] = {
    "Euclidean, LayerNorm before each part": (PRE, ()),
    "Euclidean, LayerNorm after each part": (POST, ()),
    "hyperbolic": (HYPERBOLIC, ()),
    "– with points at the published pace": (HYPERBOLIC, (slow,)),
    "– with points at a distance of 1": (HYPERBOLIC, (far,)),
    "– with weights within ±0.02": (HYPERBOLIC, (small,)),
    "– with all three": (HYPERBOLIC, (slow, far, small)),
}


class Training:
    """A network and what trains it at full rank, a step at a time, as `spectrain train translate` would."""

    def __init__(self, task: Translation, how: RunOptions, changes: tuple[Change, ...]) -> None:
        torch.manual_seed(0)
        self.task, self.how, self.step = task, how, 0
        self.model = task.build_model()
        for change in changes:
            change(self.model)
        spectrain.apply(self.model, spectrain.FullRank(), exclude=how.excluded, report=None)
        self.optimizer = how.build_optimizer(spectrain.param_groups(self.model, how.lr))
        self.groups = self.optimizer.param_groups
        for group in self.groups:
            group["full_rate"] = group["lr"]

    def __call__(self) -> float:
        """The loss of the next step."""
        for group in self.groups:
            group["lr"] = group["full_rate"] * self.how.rate(self.step)
        (batch,) = self.task.micro_batches(self.step, 0)
        loss = self.task.loss(self.model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.how.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return loss.item()

    def validation(self) -> float:
        pairs = self.task._encoded["validation"]
        return mean_loss(self.model, pairs.source, pairs.target, tokens=1024, dtype=torch.float32)


def learning(task: Translation, steps: int) -> list[str]:
    """Validation loss of every arm at every rate, as rows of a table."""
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    kept = read_json(KEPT) if KEPT.exists() else {}
    rows = []
    for title, (options, changes) in ARMS.items():
        names = [f"{title}, {lr:g}, {steps} steps" for lr in RATES]
        for name, lr in zip(names, RATES, strict=True):
            if name not in kept:
                how = RunOptions(steps=steps, lr=lr, clip=1.0)
                training = Training(variant(task, **options), how, changes)
                first = training()
                for _ in range(steps - 1):
                    training()
                kept[name] = [first, training.validation()]
                write_json(KEPT, kept)
                print(name, kept[name], flush=True)
        first = kept[names[0]][0]
        losses = [kept[name][1] for name in names]
        best = min(losses)
        cells = (f"**{loss:.3f}**" if loss == best else f"{loss:.3f}" for loss in losses)
        rows.append(f"| {title} | {first:.1f} | {' | '.join(cells)} |")
    return rows


def speed(task: Translation) -> list[str]:
    """Processor time of a step, both geometries taking turns, as rows of a table."""
    rows = []
    for dim in DIMS:
        arms = [
            Training(variant(task, dim=dim, **options), RunOptions(clip=1.0), ())
            for options in (PRE, HYPERBOLIC)
        ]
        times: list[list[float]] = [[], []]
        for _ in range(TIMED):
            for arm, found in zip(arms, times, strict=True):
                began = time.process_time()
                arm()
                found.append(1e3 * (time.process_time() - began))
        flat, curved = map(median, times)
        rows.append(f"| {dim} | {flat:.0f} ms | {curved:.0f} ms | {curved / flat:.2f} |")
        print(rows[-1], flush=True)
    return rows


def variant(task: Translation, **options: object) -> Translation:
    """The same texts for another network."""
    return replace(task, options=replace(task.options, **options))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the texts")
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    options = TranslateOptions(
        data=given.data, test_set="test_2016_flickr", dim=64, vocab_size=4000, batch_tokens=1024
    )
    task = Translation.load(options)
    rates = " | ".join(f"{lr:g}" for lr in RATES)
    lines = [
        "# The hyperbolic translator: how fast it learns, and what its steps cost\n",
        "Made by `python benchmarks/translation_hyperbolic.py --data FOLDER`: Multi30K, German to English, "
        f"d = 64, three layers, full rank, {given.steps} steps of 1,024 tokens, one seed "
        f"({machine(torch.device('cpu'))['processor']}, one thread).\n",
        "Validation loss in nats per token by learning rate, the best of a row in bold:\n",
        f"| network | first loss | {rates} |",
        "|---|--:" + "|--:" * len(RATES) + "|",
        *learning(task, given.steps),
        "\nProcessor time of a step, median:\n",
        "| d | Euclidean | hyperbolic | ratio |",
        "|--:|--:|--:|--:|",
        *speed(task),
    ]
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
