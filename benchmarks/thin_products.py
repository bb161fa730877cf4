"""The small choices behind the layers' products, on the CPU.

    python benchmarks/thin_products.py

Rates of thin products in both orientations beside wide ones. Medians of interleaved calls; writes
results/thin_products.md.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from speed_report import machine
from torch import Tensor

RESULTS = Path(__file__).parent / "results" / "thin_products.md"
TOKENS, RANK = 4096, 64
VERY_THIN = (2708, 1434)
SHAPES = ((512, 512), (1376, 512), (512, 1376))


def interleaved(calls: dict[str, Callable[[], object]], rounds: int = 11) -> dict[str, float]:
    """Median seconds of each, in random order, the first round dropped."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name in random.sample(list(calls), len(calls)):
            start = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - start)
    return {name: median(values[1:]) for name, values in times.items()}


def products() -> list[str]:
    lines = ["| W | gy W, wide | aᵀ b | (bᵀ a)ᵀ | x Aᵀ |", "|---|--:|--:|--:|--:|"]
    for m, n in SHAPES:
        x, gy, W = torch.randn(TOKENS, n), torch.randn(TOKENS, m), torch.randn(m, n)
        a, A = torch.randn(TOKENS, 512)[:, :RANK], torch.randn(RANK, n)
        calls: dict[str, Callable[[], Tensor]] = {
            "wide": lambda gy=gy, W=W: gy @ W,
            "plain": lambda a=a, gy=gy: a.mT @ gy,
            "turned": lambda a=a, gy=gy: (gy.mT @ a).mT.contiguous(),
            "thin": lambda x=x, A=A: x @ A.mT,
        }
        operations = {"wide": n * m, "plain": m * RANK, "turned": m * RANK, "thin": n * RANK}
        rates = {k: 2 * TOKENS * operations[k] / s / 1e9 for k, s in interleaved(calls, 21).items()}
        lines.append(f"| {m} × {n} | " + " | ".join(f"{rates[k]:.0f}" for k in calls) + " |")
    return lines


def very_thin() -> list[str]:
    """Milliseconds of aᵀ b and (bᵀ a)ᵀ where a has few columns; b as the inputs of Cora's first layer."""
    b = torch.randn(*VERY_THIN)
    lines = ["| r | aᵀ b | (bᵀ a)ᵀ |", "|--:|--:|--:|"]
    for r in (1, 2, 4, 8, 12, 16, 32):
        a = torch.randn(len(b), r)
        calls: dict[str, Callable[[], Tensor]] = {
            "plain": lambda a=a: a.mT @ b,
            "turned": lambda a=a: (b.mT @ a).mT.contiguous(),
        }
        times = interleaved(calls, 21)
        lines.append(f"| {r} | " + " | ".join(f"{1000 * times[k]:.1f}" for k in calls) + " |")
    return lines


def main() -> None:
    torch.manual_seed(0)
    about = ", ".join(f"{k}: {v}" for k, v in machine(torch.device("cpu")).items())
    parts = {
        f"GFLOP/s of products, {TOKENS:,} tokens, r = {RANK}": products(),
        f"Milliseconds of very thin products, {VERY_THIN[0]:,} × {VERY_THIN[1]:,}": very_thin(),
    }
    lines = ["# Thin products\n", f"Made by `python benchmarks/thin_products.py` ({about})."]
    for title, table in parts.items():
        lines += [f"\n## {title}\n", *table]
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
