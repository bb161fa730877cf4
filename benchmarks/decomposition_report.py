"""The tables of decompositions.py as markdown."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

INTRODUCTION = """# Decompositions

Made by `python benchmarks/decompositions.py`; float32, medians of interleaved calls in one process,
the first round dropped (the largest shapes: one call each). Compare within a row: rows and tables were
measured at different times, some while other programs ran. Machine: {machine}.
"""
TITLES = {
    "svd": "Thin SVD of a weight",
    "large": "Thin SVD of a weight, LLaMA 1B (one call each)",
    "warm": "Thin SVD from the old factors: k/8 triples turned by about 0.1, all s moved by about 1 %",
    "refresh": "GaLore's refresh, r = d/4, the subspace drifted a little",
    "stacks": "Four matrices in one call, and one by one",
}
ERRORS = "‖W − UᵀSV‖/‖W‖ · ‖UUᵀ − I‖max · ‖VVᵀ − I‖max · max abs(s − s₆₄)/s_max"


def markdown(found: dict[str, Any]) -> str:
    machine = "; ".join(f"{key} {value}" for key, value in found["machine"].items())
    parts = [INTRODUCTION.format(machine=machine)]
    for name, title in TITLES.items():
        for key in sorted(key for key in found if key.split()[0] == name):
            parts.append(f"## {title}: milliseconds, threads: {key.split()[1]}\n")
            parts.append(_times(found[key]))
            if name == "refresh":
                parts.append("Time over galore-torch's; energy kept over the best basis's.\n")
                parts.append(_table_of(found[key], _ratio_and_kept))
                parts.append(_blocks(found[key]))
            if name == "warm" and key == f"{name} 1":
                parts.append(f"Errors: {ERRORS}.\n")
                parts.append(_table_of(found[key], lambda row, arm: _four(row["errors"][arm])))
    if "errors" in found:
        parts.append(f"## Errors of the thin SVD\n\n{ERRORS}, against float64.\n")
        for row in found["errors"]:
            arms = list(next(iter(row["errors"].values())))
            lines = [
                [kind, *(_four(own[arm]) for arm in arms)] for kind, own in row["errors"].items()
            ]
            parts.append(f"{_shape(row)}:\n\n" + table(["spectrum", *arms], lines))
    if "jump" in found:
        parts.append("## After a jump: energy kept over the best basis's, 512×1376, r = 128\n")
        lines = [
            [row["kind"], f"{row['noise']:.0%}", arm, *(f"{share:.4f}" for share in shares)]
            for row in found["jump"]
            for arm, shares in row["kept"].items()
        ]
        refreshes = [f"refresh {i}" for i in range(1, 6)]
        parts.append(table(["new subspace", "noise", "method", *refreshes], lines))
    return "\n".join(parts)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _times(rows: list[dict[str, Any]]) -> str:
    return _table_of(rows, lambda row, arm: f"{row['ms'][arm]:,.1f}")


def _table_of(rows: list[dict[str, Any]], cell: Callable[[dict[str, Any], str], str]) -> str:
    arms = list(rows[0]["ms"])
    return table(["matrix", *arms], ([_shape(row), *(cell(row, a) for a in arms)] for row in rows))


def _blocks(rows: list[dict[str, Any]]) -> str:
    """Refresh of all matrices of a decoder block, over galore-torch's."""
    ms = {tuple(row["shape"]): row["ms"] for row in rows}
    arms = list(rows[0]["ms"])
    lines = []
    for name, d, hidden in (("LLaMA 60M", 512, 1376), ("LLaMA 130M", 768, 2048)):
        counts = {(d, d): 4, (hidden, d): 2, (d, hidden): 1}
        total = {arm: sum(count * ms[s][arm] for s, count in counts.items()) for arm in arms}
        lines.append([name, *(f"{total[arm] / total['galore-torch']:.2f}" for arm in arms)])
    return table(["block", *arms], lines)


def _ratio_and_kept(row: dict[str, Any], arm: str) -> str:
    return f"{row['ms'][arm] / row['ms']['galore-torch']:.2f}; {row['kept'][arm]:.4f}"


def _four(values: Sequence[float]) -> str:
    return " · ".join(f"{value:.0e}" for value in values)


def _shape(row: dict[str, Any]) -> str:
    m, n = row["shape"]
    return f"{m}×{n}" + (f", r {row['rank']}" if "rank" in row else "")
