"""The tables of benchmarks/hyperbolic.py."""

from pathlib import Path


def collect(runs: Path, names: list[str]) -> None: ...
