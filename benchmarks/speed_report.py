"""The tables as text: markdown for the committed results, and the machine they were made on."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
import torch
from speed_plan import TARGETS, Tables

COMMAND = "python benchmarks/speed.py"
PACKAGES = ("transformers", "peft", "galore-torch", "apollo-torch")

NOTES = """\
A step is forward, backward, the optimizer's step with the method's step rule, and zero_grad; times are
medians over rounds, and ratios those of medians. Every round has one step of every arm, in random
order. `±` is half the distance between the quartiles of the ratio round by round. *With events* adds
what happens every so many steps, timed by itself and divided by its default period;
*events* is their share of the run. *Counted* is the ratio of the floating-point operations of
the linear layers alone. *Expected* is the ratio of the whole step that these operations let expect:
full rank's own linear products, timed alone in the same rounds, times *counted*; full rank's remainder
(attention, norms, activations) as it is; its optimizer's time by numbers trained. *Above* is how far
the step is above what was expected. fp32, sequence 256, r = d/8 (GaLore, galore-torch and
apollo-torch: d/4) unless said; AdamW is torch's fused one wherever an arm uses torch's."""


def markdown(results: dict[str, Any]) -> str:
    """The whole report."""
    parts = [
        "# Speed and memory of a training step\n",
        f"Made by `{results['command']}` in {results['minutes']:.0f} minutes. {NOTES}\n",
        *(f"- {name}: {value}" for name, value in results["machine"].items()),
        "",
    ]
    if results["targets"]:
        parts += ["## Targets\n", target_table(results["targets"]), ""]
    for table in results["tables"]:
        parts += [f"## {table['title']}\n", step_table(table), ""]
    if results["bytes"]:
        parts += ["## Bytes of the replaced layers, LLaMA 60M, r = d/16, 4,096 tokens\n"]
        parts += [bytes_table(results["bytes"]), ""]
    return "\n".join(parts)


def step_table(table: dict[str, Any]) -> str:
    """Ratios of one table, and under them its peak bytes if they were measured."""
    head = ("", "r", "step, ms", "forward", "backward", "optimizer", "step / full", "±")
    head += ("with events", "events", "counted", "expected", "above")
    rows = []
    for row in table["rows"]:
        eventful = bool(row["events_ms"])
        rows.append(
            (
                row["title"],
                row["rank"] or "–",
                *(f"{row[part]:.0f}" for part in ("step_ms", "forward_ms", "backward_ms")),
                f"{row['update_ms']:.1f}",
                f"{row['ratio']:.3f}",
                f"{row['spread']:.3f}",
                f"{row['ratio_with_events']:.3f}" if eventful else "–",
                f"{row['events_share']:.1%}" if eventful else "–",
                f"{row['counted']:.3f}",
                f"{row['expected']:.3f}",
                f"{row['deviation']:+.1%}",
            )
        )
    text = _table(head, rows)
    text += (
        f"\n\n{table['rounds']} rounds; full rank's linear products alone: "
        f"{table['products_ms']:.0f} ms, {table['gflops']:.0f} GFLOP/s; other processes took "
        f"{table['elsewhere']:.0%} of the processors' time "
        f"({table['repeated']} more rounds were left out)."
    )
    refreshes = [
        f"{row['title']} {row['refresh_ms']:.0f} ms ({row['basis_ms']:.0f} ms in the update)"
        for row in table["rows"]
        if row["refresh_ms"]
    ]
    if refreshes:
        text += f" A refresh adds: {', '.join(refreshes)}."
    held = [row for row in table["rows"] if row["memory"]]
    if held:
        names = list(held[0]["memory"])
        bodies = [
            (row["title"], *(f"{row['memory'].get(name, 0) / 2**20:.1f}" for name in names))
            for row in held
        ]
        text += "\n\nPeak bytes of a step, MiB:\n\n" + _table(("", *names), bodies)
    return text


def bytes_table(found: dict[str, Any]) -> str:
    """What the exchanged layers of one block hold, over full rank's weights, gradients and moments."""
    names = ("weights", "cached W", "gradients", "moments")
    rows = [
        (
            row["title"],
            *(f"{row[name] / 2**20:.2f}" for name in names),
            f"{row['ratio']:.3f}",
            f"{row['model_ratio']:.3f}",
        )
        for row in found.values()
    ]
    return _table(("MiB of two blocks", *names, "/ full rank", "whole model / full rank"), rows)


def targets(tables: Tables) -> list[dict[str, Any]]:
    """Every target whose tables were run: bound, measured, met or not."""
    made = []
    for target in TARGETS:
        try:
            value = target.measured(tables)
        except KeyError:
            continue
        # As printed: three places decide.
        met = round(value, 3) <= target.bound
        made.append({"what": target.what, "bound": target.bound, "measured": value, "met": met})
    return made


def target_table(found: Iterable[dict[str, Any]]) -> str:
    rows = [
        (t["what"], f"≤ {t['bound']:.2f}", f"{t['measured']:.3f}", "met" if t["met"] else "not met")
        for t in found
    ]
    return _table(("what", "target", "measured", ""), rows)


def machine(device: torch.device) -> dict[str, str]:
    """What the figures depend on; no names of hosts, users or paths."""
    config = torch.__config__.show()
    blas = re.search(r"BLAS_INFO=(\w+)", config)
    found = {
        "processor": f"{_processor()}, {psutil.cpu_count(logical=False)} cores, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "torch": f"{torch.__version__}, BLAS: {blas[1] if blas else 'unknown'}",
        "packages": ", ".join(_version(name) for name in PACKAGES),
    }
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
    return found


def _version(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"no {name}"


def _processor() -> str:
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A markdown table whose columns also line up where it is read as text."""
    body = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(head), *body]) for i in range(len(head))]
    lines = [
        "| "
        + " | ".join(
            c.ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in [list(head), *body]
    ]
    rule = (
        "|"
        + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths))
        + "|"
    )
    return "\n".join([lines[0], rule, *lines[1:]])
