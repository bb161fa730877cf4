"""Whether a run of soak.py ended as one that nothing happened to."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from soak_arms import STEPS

from spectrain.runs.directory import identity


def compare(whole: Path, run: Path) -> tuple[int, int, list[str]]:
    """(tensors in all checkpoints of `whole`, how many of them are equal in `run`, what differs)."""
    different = [
        f"{name} differs"
        for name in ("metrics.jsonl", "spectra.json")
        if (whole / name).read_bytes() != (run / name).read_bytes()
    ]
    there, here = (_own_checkpoints(directory) for directory in (whole, run))
    if there != here:
        different.append(f"checkpoints {here} instead of {there}")
    steps = [json.loads(line)["step"] for line in (run / "timing.jsonl").open()]
    if steps != list(range(1, STEPS + 1)):
        different.append("rows of timing.jsonl are lost or doubled")
    if left := [path.name for path in run.rglob("*.partial")]:
        different.append(f"left over: {left}")
    tensors = equal = 0
    for name in set(there) & set(here):
        for part in ("model", "optimizer", "probe"):
            file = Path("checkpoints", name, f"{part}.safetensors")
            a, b = load_file(whole / file), load_file(run / file)
            same = {key for key in a.keys() & b.keys() if _same(a[key], b[key])}
            tensors, equal = tensors + len(a.keys() | b.keys()), equal + len(same)
            different += [f"{name}: {key}" for key in sorted((a.keys() | b.keys()) - same)]
    return tensors, equal, different


def _own_checkpoints(run: Path) -> list[str]:
    """Their names, without one of another run that was put beside them after the last save."""
    config = json.loads((run / "config.json").read_text())
    return [
        path.name
        for path in sorted((run / "checkpoints").iterdir())
        if json.loads((path / "manifest.json").read_text())["run"] == identity(config)
    ]


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit, NaN and the sign of zero included."""
    alike = a.dtype == b.dtype and a.shape == b.shape
    return alike and a.numpy().tobytes() == b.numpy().tobytes()
