"""What the instruments cost: a look over a step, and a share of training at the default period.

    python benchmarks/instruments.py           about three minutes
    python benchmarks/instruments.py --quick   half a minute

Steps of LLaMA blocks with and without a look take turns, in random order, so that a drift of the machine's
speed hits both; the ratio is that of medians. By default a run has a hundred looks (one at every 20th step
in runs of 2,000 steps or fewer). What events and spectra take is not in it: a row of an event is a
division for each kind, spectra come 16 times in a run. Writes results/instruments.md.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from statistics import median

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
    "LoRA, r = 32": LoRA(32),
    "GaLore, r = 32": GaLore(32),
    "SST, r = 32": SST(32),
}
TOKENS = 2048
PERIOD = 20  # the shortest that is default


def measured(method: Method, rounds: int) -> tuple[float, float]:
    """Median seconds of a step without a look, and of one with it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        vocab_size=1024,
    )
    model = spectrain.apply(LlamaForCausalLM(config), method, exclude=["lm_head"], report=None)
    optimizer = torch.optim.AdamW(spectrain.param_groups(model, 1e-4), fused=True)
    spectrain.attach(model, optimizer)
    options = RunOptions(steps=10**6, look_every=1)
    watch = Instruments(model, options, 1, lambda **row: None, [], lambda said: None, True)
    ids = torch.randint(1024, (TOKENS // 256, 256))
    times: dict[bool, list[float]] = {True: [], False: []}
    order = random.Random(0)
    for i in range(3 + 2 * rounds):
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
    return median(times[False]), median(times[True])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    lines = [
        "# What the instruments cost\n",
        f"Made by `python benchmarks/instruments.py`: LLaMA, 4 blocks, d = 256, {TOKENS:,} tokens a step, "
        f"float32, {torch.get_num_threads()} threads. By default runs of up to 2,000 steps have a look at "
        f"every {PERIOD}th step, longer ones a hundred looks in all.\n",
        "| method | ms a step | with a look | ratio | cost at every 20th step | at every 100th |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, method in ARMS.items():
        plain, look = measured(method, 2 if given.quick else 15)
        extra = look / plain - 1
        lines.append(
            f"| {name} | {1e3 * plain:.0f} | {1e3 * look:.0f} | {look / plain:.3f} | "
            f"{100 * extra / PERIOD:.2f} % | {extra:.2f} % |"
        )
        print(lines[-1], flush=True)
    (HERE / "results" / "instruments.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
