"""What the instruments cost: a look over a step, and a share of training at the default period.

    python benchmarks/instruments.py           about five minutes
    python benchmarks/instruments.py --quick   half a minute

Steps of LLaMA blocks with and without a look take turns, two of them a pair in random order, so that a
drift of the machine's speed hits both; what a look costs is the median difference of a pair over the
median step. By default a run has a hundred looks (one at every 20th step in runs of 2,000 steps or fewer).
What events and spectra take is not in it: a row of an event is a division for each kind, spectra come 16
times in a run. Writes results/instruments.md.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import spectrain
from spectrain import SST, FullRank, GaLore, LoRA
from spectrain.method import Method
from spectrain.runs.instruments import Instruments
from spectrain.runs.options import RunOptions

HERE = Path(__file__).parent
ARMS: dict[str, Method] = {
    "Full rank": FullRank(),
    "LoRA": LoRA(16),
    "GaLore": GaLore(16),
    "SST": SST(16),
}
PERIOD = 20  # the shortest that is default


@dataclass(frozen=True)
class Size:
    """Of a model and its batches."""

    dim: int
    blocks: int
    tokens: int
    pairs: int


SIZES = (Size(64, 2, 512, 200), Size(256, 4, 2048, 40))


def measured(method: Method, size: Size) -> tuple[float, list[float]]:
    """Median seconds of a step without a look, and what looks have added to each of the others."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=size.dim,
        intermediate_size=size.dim * 43 // 16,
        num_hidden_layers=size.blocks,
        num_attention_heads=4,
        vocab_size=1024,
    )
    model = spectrain.apply(LlamaForCausalLM(config), method, exclude=["lm_head"], report=None)
    optimizer = torch.optim.AdamW(spectrain.param_groups(model, 1e-4), fused=True)
    spectrain.attach(model, optimizer)
    options = RunOptions(steps=10**6, look_every=1)
    watch = Instruments(model, options, 1, lambda **row: None, [], lambda said: None, True)
    ids = torch.randint(1024, (size.tokens // 128, 128))
    times: dict[bool, list[float]] = {True: [], False: []}
    order = random.Random(0)
    for i in range(3 + size.pairs):
        pair = [True, False] if i < 3 else order.sample([True, False], 2)
        for look in pair:
            begun = time.perf_counter()
            model(input_ids=ids, labels=ids).loss.backward()
            if look:
                watch.before_update(1)
            optimizer.step()
            if look:
                watch.after_update(2)
            optimizer.zero_grad()
            if i >= 3:
                times[look].append(time.perf_counter() - begun)
    return median(times[False]), [a - b for a, b in zip(times[True], times[False], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    lines = [
        "# What the instruments cost\n",
        "Made by `python benchmarks/instruments.py`: LLaMA blocks, r = 16, float32, "
        f"{torch.get_num_threads()} threads. By default runs of up to 2,000 steps have a look at every "
        f"{PERIOD}th step, longer ones a hundred looks in all. ± is half the distance between the "
        "quartiles of single differences.\n",
        "| d, blocks, tokens | method | ms a step | ms a look | cost at every 20th step | at every 100th |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for size in SIZES:
        for name, method in ARMS.items():
            step, looks = measured(method, replace(size, pairs=3) if given.quick else size)
            low, middle, high = (1e3 * value for value in quantiles(looks))
            share = 0.1 * middle / step  # in per cent
            lines.append(
                f"| {size.dim}, {size.blocks}, {size.tokens:,} | {name} | {1e3 * step:.1f} | "
                f"{middle:.2f} ± {(high - low) / 2:.2f} | {share / PERIOD:.2f} % | {share / 100:.2f} % |"
            )
            print(lines[-1], flush=True)
    (HERE / "results" / "instruments.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
