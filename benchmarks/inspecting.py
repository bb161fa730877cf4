"""What `spectrain inspect` takes: seconds, peak resident memory, and how exact its singular values are.

    python benchmarks/inspecting.py FOLDER --name "SmolLM2-135M" [--against OTHER]

FOLDER holds a checkpoint in safetensors. Each call of the command is a process of its own, start-up
included; its singular values are compared with those that NumPy's SVD gives in float64. Writes
results/inspecting.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed_report import machine

from spectrain.diagnostics import as_matrix
from spectrain.runs.weights import open_weights

RESULTS = Path(__file__).parent / "results" / "inspecting.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", required=True, help="what the checkpoint is called in the table")
    parser.add_argument(
        "--against", type=Path, help="a checkpoint of the same model to compare with"
    )
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "found.json")
        rows.append(("inspect", *measured([str(given.folder), "--json", str(file)])))
        if given.against is not None:
            calls = [str(given.folder), "--against", str(given.against)]
            rows.append(("inspect --against", *measured(calls)))
        found = json.loads(file.read_text(encoding="utf-8"))
    size = sum(f.stat().st_size for f in given.folder.glob("*.safetensors")) / 2**20
    totals = found["totals"]
    about = machine(torch.device("cpu"))
    about.pop("packages")
    stands = ", ".join(f"{key}: {value}" for key, value in about.items())
    lines = [
        "# Inspecting a checkpoint",
        f"Made by `python benchmarks/inspecting.py FOLDER --name …` ({stands}), other work beside it.",
        f"{given.name}: {totals['matrices']} matrices with {totals['numbers']:,} numbers, {size:,.0f} MiB "
        "on disk.",
        "| command | seconds | processor seconds | peak resident memory, MiB |\n|---|--:|--:|--:|\n"
        + "\n".join(f"| {name} | {s:.1f} | {c:.1f} | {m:,.0f} |" for name, s, c, m in rows),
        errors(given.folder, found),
    ]
    RESULTS.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    print(RESULTS.read_text(encoding="utf-8"))


def measured(arguments: list[str]) -> tuple[float, float, float]:
    """(seconds, seconds of all processors, peak resident MiB) of one call of `spectrain inspect`."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "spectrain", "inspect", *arguments], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("spectrain inspect failed")
    seconds = time.perf_counter() - start
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def errors(folder: Path, found: dict[str, Any]) -> str:
    """A sentence on the largest error of a singular value, over its own size and over the largest one's."""
    weights = open_weights(folder)
    over_own, over_first, smallest = 0.0, 0.0, 1.0
    for layer in found["layers"]:
        matrix = as_matrix(weights.read(layer["name"])).double().numpy()
        exact = np.linalg.svd(matrix, compute_uv=False)
        apart = np.abs(np.array(layer["measures"]["singular_values"]) - exact)
        over_own = max(over_own, float((apart / exact).max()))
        over_first = max(over_first, float(apart.max() / exact[0]))
        smallest = min(smallest, float(exact[-1] / exact[0]))
    return (
        "Against NumPy's SVD in float64, no singular value of any matrix is off by more than "
        f"{over_own:.1e} of itself or {over_first:.1e} of the largest; the smallest of all is "
        f"{smallest:.1e} of its matrix's largest."
    )


if __name__ == "__main__":
    main()
