"""Which decomposition: the thin SVD of a weight, the leading basis of a gradient, stacks of matrices.

    python benchmarks/decompositions.py                      all tables, 1 and 2 threads, some minutes
    python benchmarks/decompositions.py --only errors jump   these parts; the others stay as they are

Writes results/decompositions.md and .json. What is compared lives in decomposition_candidates.py.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from decomposition_candidates import REFRESHES, SVDS, WARM_SVDS, galore_torch, plain_step
from decomposition_report import markdown
from speed_report import machine
from torch import Tensor

from spectrain.linalg import leading_basis, subspace_step

RESULTS = Path(__file__).parent / "results"
SVD_SHAPES = ((512, 512), (1376, 512), (512, 1376), (768, 768), (2048, 768), (768, 2048))
LARGE_SHAPES = ((2048, 2048), (5461, 2048), (2048, 5461))  # LLaMA 1B
REFRESH_SHAPES = SVD_SHAPES  # at r = d/4
JUMPS = ("drift", "4 new directions on top", "random", "orthogonal")

Times = dict[str, float]


def main() -> None:
    parts: dict[str, Callable[[], Any]] = {
        "svd": lambda: [svd_times(shape, rounds=5) for shape in SVD_SHAPES],
        "large": lambda: [svd_times(shape, rounds=1) for shape in LARGE_SHAPES],
        "warm": lambda: [warm_times(shape, rounds=3) for shape in ((512, 512), (768, 768))],
        "errors": lambda: [svd_errors(shape) for shape in ((512, 512), (1376, 512), (512, 1376))],
        "refresh": lambda: [refresh_times(shape, rounds=5) for shape in REFRESH_SHAPES],
        "jump": lambda: [jump(kind, noise) for kind in JUMPS for noise in (0.05, 0.0)],
        "stacks": lambda: [stack_times(shape, rounds=5) for shape in ((512, 512), (768, 768))],
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    target = given.out / "decompositions.json"
    found = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    for name in given.only:
        timed = name not in ("errors", "jump")
        for threads in given.threads if timed else given.threads[:1]:
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            found[f"{name} {threads}" if timed else name] = parts[name]()
            print(name, threads, flush=True)
    found["machine"] = machine(torch.device("cpu"))
    found["machine"].pop("threads", None)  # each table says its own
    target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (given.out / "decompositions.md").write_text(markdown(found), encoding="utf-8")


def interleaved(arms: dict[str, Callable[[], object]], rounds: int) -> Times:
    """Median milliseconds of each arm, all in turn; the first of several rounds is dropped."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds + (rounds > 1)):
        for name, run in arms.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * median(taken[rounds > 1 :]) for name, taken in seconds.items()}


def svd_times(shape: tuple[int, int], rounds: int) -> dict[str, Any]:
    W = weights(*shape)["trained-like"]
    arms = {name: lambda f=f: f(W) for name, f in SVDS.items()}
    return {"shape": shape, "ms": interleaved(arms, rounds)}


def warm_times(shape: tuple[int, int], rounds: int) -> dict[str, Any]:
    """Warm starts where r = k/8 triples turned by about 0.1 and all s moved by about 1 %."""
    U, s, V = SVDS["`svd()`"](weights(*shape)["trained-like"])
    moved = torch.randperm(len(s))[: len(s) // 8]
    U1, V1 = U.clone(), V.clone()
    for rows in (U1, V1):
        rows[moved] += 0.1 * unit(torch.randn_like(rows[moved]))
        rows[moved] = unit(rows[moved])
    W = (U1.mT * (s * (1 + 0.01 * torch.randn_like(s)))) @ V1
    arms = {name: lambda f=f: f(W, U) for name, f in WARM_SVDS.items()}
    arms["`svd()`"] = lambda: SVDS["`svd()`"](W)
    return {
        "shape": shape,
        "ms": interleaved(arms, rounds),
        "errors": {name: errors(W, *run()) for name, run in arms.items()},
    }


def svd_errors(shape: tuple[int, int]) -> dict[str, Any]:
    found = {
        kind: {name: errors(W, *f(W)) for name, f in SVDS.items()}
        for kind, W in weights(*shape).items()
    }
    return {"shape": shape, "errors": found}


def errors(W: Tensor, U: Tensor, s: Tensor, V: Tensor) -> list[float]:
    """‖W − Uᵀ diag(s) V‖/‖W‖, ‖UUᵀ − I‖max, ‖VVᵀ − I‖max, max |s − s₆₄|/s_max, in float64."""
    W, U, s, V = W.double(), U.double(), s.double(), V.double()
    exact = torch.linalg.svdvals(W)
    one = torch.eye(len(s), dtype=W.dtype)
    return [
        float(((U.mT * s) @ V - W).norm() / W.norm()),
        float((U @ U.mT - one).abs().max()),
        float((V @ V.mT - one).abs().max()),
        float((s.sort(descending=True).values - exact).abs().max() / exact[0]),
    ]


def weights(m: int, n: int) -> dict[str, Tensor]:
    """Weights (m, n) of several spectra."""
    k = min(m, n)
    start = torch.randn(m, n) / n**0.5
    drift = torch.randn(m, 16) @ (torch.logspace(0, -1, 16)[:, None] * torch.randn(16, n))
    steps = torch.ones(k)
    steps[k // 2 :], steps[3 * k // 4 :] = 0.5, 0.05
    half = start[:, : k // 2] @ torch.randn(k // 2, n) / k**0.5
    return {
        "random start": start,
        "trained-like": start + 8 * drift / (m * n) ** 0.5,
        "power law i^-0.6": composed(m, n, power_law(k)),
        "decay to 1e-5": composed(m, n, torch.logspace(0, -5, k)),
        "half rank + 1e-6": half + 1e-6 * torch.randn(m, n),
        "three repeated values": composed(m, n, steps),
    }


def refresh_times(shape: tuple[int, int], rounds: int) -> dict[str, Any]:
    """Refresh from a gradient whose subspace has drifted a little since the last one."""
    m, n = shape
    k = min(m, n)
    rank = k // 4
    U, V = orthonormal(m, k), orthonormal(n, k)
    old = noisy(U, power_law(k), V, 0.05)
    turned = torch.linalg.qr(U + 0.2 * torch.randn_like(U) / m**0.5).Q
    gradient = noisy(turned, power_law(k), V, 0.05)
    # GaLore's basis is on the shorter side, the right one of a square matrix.
    side, old = (gradient.mT, old.mT) if m >= n else (gradient, old)
    basis = leading_basis(old, rank)
    arms = {name: lambda f=f: f(side, basis) for name, f in REFRESHES.items()}
    arms["galore-torch"] = lambda: galore_torch(gradient, rank)
    best = float(torch.linalg.svdvals(gradient.double())[:rank].square().sum())
    return {
        "shape": shape,
        "rank": rank,
        "ms": interleaved(arms, rounds),
        "kept": {name: kept(run(), side) / best for name, run in arms.items()},
    }


def jump(kind: str, noise: float, m: int = 512, n: int = 1376, rank: int = 128) -> dict[str, Any]:
    """Energy kept, relative to the best basis, over the refreshes after the subspace has jumped."""
    U, V = orthonormal(m, m), orthonormal(n, m)
    start = leading_basis(noisy(U, power_law(m), V, noise), rank)
    new = {
        "drift": torch.linalg.qr(U + 0.2 * torch.randn_like(U) / m**0.5).Q,
        "4 new directions on top": torch.cat((U[:, -4:], U[:, :-4]), dim=1),
        "random": orthonormal(m, m),
        "orthogonal": U.flip(1),
    }[kind]
    bases = {"plain step": start, "`subspace_step`": start}
    shares: dict[str, list[float]] = {name: [] for name in bases}
    for _ in range(5):
        gradient = noisy(new, power_law(m), V, noise)
        best = kept(leading_basis(gradient, rank), gradient)
        for name, step in (("plain step", plain_step), ("`subspace_step`", subspace_step)):
            bases[name] = step(gradient, bases[name])
            shares[name].append(kept(bases[name], gradient) / best)
    return {"kind": kind, "noise": noise, "kept": shares}


def stack_times(shape: tuple[int, int], rounds: int, count: int = 4) -> dict[str, Any]:
    """`count` matrices in one call, and one by one."""
    stack = torch.randn(count, *shape)
    calls = {
        "svd": lambda a: torch.linalg.svd(a, full_matrices=False),
        "eigh": lambda a: torch.linalg.eigh(a @ a.mT),
        "qr": torch.linalg.qr,
    }
    arms: dict[str, Callable[[], object]] = {}
    for name, call in calls.items():
        arms[f"{name}, one call"] = lambda call=call: call(stack)
        arms[f"{name}, one by one"] = lambda call=call: [call(a) for a in stack]
    return {"shape": shape, "count": count, "ms": interleaved(arms, rounds)}


def composed(m: int, n: int, s: Tensor) -> Tensor:
    return (orthonormal(m, len(s)) * s) @ orthonormal(n, len(s)).mT


def noisy(U: Tensor, s: Tensor, V: Tensor, noise: float) -> Tensor:
    signal = (U * s) @ V.mT
    error = torch.randn_like(signal)
    return signal + error * (noise * signal.norm() / error.norm())


def power_law(k: int) -> Tensor:
    return torch.arange(1, k + 1) ** -0.6


def orthonormal(rows: int, columns: int) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, columns)).Q


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


def kept(basis: Tensor, gradient: Tensor) -> float:
    return float((basis @ gradient).square().sum())


if __name__ == "__main__":
    main()
