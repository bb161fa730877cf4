"""The small choices behind the layers' products, on the CPU.

    python benchmarks/kernels.py

Rates of thin products in both orientations beside wide ones; the factored route's backward pass with
all tokens at once and in blocks; page faults of a step with and without an allocator that keeps what
was freed. Medians of interleaved calls; writes results/kernels.md.
"""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from speed_report import machine
from torch import Tensor, nn

from spectrain import SST
from spectrain.parametrizations import spectral_products
from spectrain.runs.allocator import keep_freed_memory
from spectrain.surgery import apply

RESULTS = Path(__file__).parent / "results" / "kernels.md"
TOKENS, RANK = 4096, 64
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


def blocks() -> list[str]:
    sizes = (1024, 4096, 10**9)
    lines = [
        "| W | tokens | all at once, ms | blocks of 4,096 | of 1,024 |",
        "|---|--:|--:|--:|--:|",
    ]
    for tokens in (4096, 16384):
        for m, n in SHAPES[1:]:
            layer = apply(nn.Sequential(nn.Linear(n, m, bias=False)), SST(RANK), report=None)
            y = layer(torch.randn(tokens, n, requires_grad=True))
            gy = torch.randn_like(y)

            def backward(block: int, y: Tensor = y, gy: Tensor = gy) -> None:
                spectral_products.BLOCK = block
                y.backward(gy, retain_graph=True)

            found = interleaved({str(size): lambda s=size: backward(s) for size in sizes})
            one = found[str(sizes[-1])]
            rest = " | ".join(f"{found[str(size)] / one:.2f}" for size in sizes[-2::-1])
            lines.append(f"| {m} × {n} | {tokens:,} | {1e3 * one:.0f} | {rest} |")
    return lines


def faults() -> list[str]:
    net = nn.Sequential(*(nn.Sequential(nn.Linear(512, 1376), nn.Linear(1376, 512)),) * 4)
    x = torch.randn(TOKENS, 512)

    def step() -> tuple[int, float]:
        before = resource.getrusage(resource.RUSAGE_SELF)
        net(x).sum().backward()
        net.zero_grad()
        after = resource.getrusage(resource.RUSAGE_SELF)
        return after.ru_minflt - before.ru_minflt, after.ru_stime - before.ru_stime

    rows = []
    for name in ("as it is", "keeping what was freed"):
        if name != "as it is" and not keep_freed_memory():
            break
        step(), step()
        found = [step() for _ in range(9)]
        rows.append(
            f"| {name} | {median(f for f, _ in found):,.0f} | {1e3 * median(s for _, s in found):.0f} |"
        )
    return ["| allocator | page faults a step | system time, ms |", "|---|--:|--:|", *rows]


def main() -> None:
    torch.manual_seed(0)
    about = ", ".join(f"{k}: {v}" for k, v in machine(torch.device("cpu")).items())
    parts = {
        f"GFLOP/s of products, {TOKENS:,} tokens, r = {RANK}": products(),
        "The factored route's backward pass, as a share of all tokens at once": blocks(),
        "Page faults of a step: eight linear layers, 4,096 tokens": faults(),
    }
    lines = ["# Kernels\n", f"Made by `python benchmarks/kernels.py` ({about})."]
    for title, table in parts.items():
        lines += [f"\n## {title}\n", *table]
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
