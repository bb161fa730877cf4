"""Time and memory of the loss by chunks of tokens, against the loss on whole logits.

    python benchmarks/cross_entropy.py             all parts (some minutes on two cores)
    python benchmarks/cross_entropy.py head-2048   one of them; the others' results stay
    python benchmarks/cross_entropy.py --quick     a small part alone; shows that it runs

Parts called head: the output head with the loss, forward and backward, from hidden states that are
there. Parts called model: the whole of LLaMA-60M, with gradient checkpointing too. Times are medians
of interleaved runs in one process after one of each that does not count; bytes are the peak of live
storages, weights and their gradients included (`spectrain.memory.live`). torch's own function is one
operation to that count, which cannot look into it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from speed_report import machine
from torch import nn
from torch.nn import functional as F

from spectrain.memory.live import LiveBytes
from spectrain.tasks.lm.evaluate import token_loss
from spectrain.tasks.lm.loss import chunked_cross_entropy
from spectrain.tasks.lm.models import build_model
from spectrain.tasks.lm.options import LOSS_CHUNK

RESULTS = Path(__file__).parent / "results"
CHUNKS = (256, 512, 1024)
MODEL, SEQUENCE, VOCABULARY = "llama-60m", 256, 32_000

Arms = dict[str, Callable[[], None]]  # each is one forward and backward pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no part {min(unknown)}; there are {', '.join(PARTS)}")
    if given.quick:
        print(render({"quick": measure(head_arms(64, 16, 300))}))
        return
    file = RESULTS / "cross_entropy.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in given.parts or PARTS:
        found[name] = measure(PARTS[name][1]())
        text = render({name: found[name] for name in PARTS if name in found})
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "cross_entropy.md").write_text(text, encoding="utf-8")
        print(render({name: found[name]}), flush=True)


def head_arms(tokens: int, width: int, vocabulary: int) -> Arms:
    torch.manual_seed(0)
    head = nn.Linear(width, vocabulary, bias=False)
    hidden = torch.randn(tokens, width, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,))

    def arm(loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            hidden.grad = head.weight.grad = None
            loss().backward()

        return run

    arms = {"whole logits": arm(lambda: F.cross_entropy(head(hidden), targets))}
    for chunk in CHUNKS:
        own = arm(lambda chunk=chunk: chunked_cross_entropy(hidden, head, targets, chunk))
        arms[f"chunks of {chunk:,}"] = own
    theirs = getattr(F, "linear_cross_entropy", None)  # from torch 2.13 on
    if theirs is not None:
        options = nn.LinearCrossEntropyOptions(batch_chunk_size=LOSS_CHUNK)
        arms[f"torch's, chunks of {LOSS_CHUNK:,}"] = arm(
            lambda: theirs(hidden, head.weight, targets, options=options)
        )
    return arms


def model_arms(tokens: int) -> Arms:
    def arm(chunk: int, gradient_checkpointing: bool) -> Callable[[], None]:
        torch.manual_seed(0)
        model = build_model(
            MODEL,
            vocab_size=VOCABULARY,
            sequence_length=SEQUENCE,
            gradient_checkpointing=gradient_checkpointing,
        )
        ids = torch.randint(VOCABULARY, (tokens // SEQUENCE, SEQUENCE + 1))

        def run() -> None:
            model.zero_grad()
            token_loss(model, ids, chunk=chunk).backward()

        return run

    return {
        "whole logits": arm(0, False),
        f"chunks of {LOSS_CHUNK:,}": arm(LOSS_CHUNK, False),
        f"chunks of {LOSS_CHUNK:,}, gradient checkpointing": arm(LOSS_CHUNK, True),
    }


PARTS: dict[str, tuple[str, Callable[[], Arms]]] = {
    "head-4096-small": (
        "head and loss: 4,096 tokens, width 128, vocabulary 4,096 (the default model)",
        lambda: head_arms(4096, 128, 4096),
    ),
    "head-2048": (
        "head and loss: 2,048 tokens, width 512, vocabulary 32,000 (LLaMA-60M)",
        lambda: head_arms(2048, 512, VOCABULARY),
    ),
    "head-8192": (
        "head and loss: 8,192 tokens, width 512, vocabulary 32,000 (LLaMA-60M)",
        lambda: head_arms(8192, 512, VOCABULARY),
    ),
    "model-2048": ("LLaMA-60M: 2,048 tokens, vocabulary 32,000", lambda: model_arms(2048)),
    "model-8192": ("LLaMA-60M: 8,192 tokens, vocabulary 32,000", lambda: model_arms(8192)),
}


def measure(arms: Arms, repetitions: int = 3, budget: float = 60.0) -> dict[str, dict[str, float]]:
    """Median seconds and peak bytes of each arm; fewer repetitions where they take too long."""
    peaks = {}
    times: dict[str, list[float]] = {name: [] for name in arms}
    for name, run in arms.items():
        with LiveBytes() as live:
            run()
        peaks[name] = live.peak
    began = time.perf_counter()
    while len(times[next(iter(arms))]) < repetitions and time.perf_counter() - began < budget:
        for name, run in arms.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: {"seconds": median(times[name]), "bytes": peaks[name]} for name in arms}


def render(found: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = [
        "# The loss by chunks of tokens\n",
        "Made by `python benchmarks/cross_entropy.py`: float32, forward and backward.\n",
        *(f"- {name}: {text}" for name, text in machine(torch.device("cpu")).items()),
    ]
    for part, arms in found.items():
        base = next(iter(arms.values()))
        title = PARTS[part][0] if part in PARTS else part
        lines.append(f"\n## {title[0].upper()}{title[1:]}\n")
        lines.append("| | seconds | ratio | peak, MiB | ratio |\n|---|--:|--:|--:|--:|")
        for name, own in arms.items():
            peak = f"{own['bytes'] / 2**20:,.0f} | {own['bytes'] / base['bytes']:.2f}"
            peak = "– | –" if name.startswith("torch") else peak
            ratio = own["seconds"] / base["seconds"]
            lines.append(f"| {name} | {own['seconds']:.3f} | {ratio:.2f} | {peak} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
