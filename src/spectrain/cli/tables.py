"""Tables of plans for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from spectrain.memory.plan import Plan, in_words, mark


def plan_table(plan: Plan) -> RenderableType:
    """One plan: its parts, the peaks of its steps, and what to do about it."""
    settings = ", ".join(f"{k}={v}" for k, v in plan.method.items() if k == "rank")
    s = plan.setting
    how = [f"batch {s['batch_size']} × {s['sequence_length']} tokens", s["dtype"], s["optimizer"]]
    how += [f"accumulate {s['accumulate']}"] if s["accumulate"] > 1 else []
    how += ["gradient checkpointing"] if s["gradient_checkpointing"] else []
    how += ["layer-wise stepping"] if s["layerwise"] else []
    how += [f"loss by {s['loss_chunk']} tokens"] if s.get("loss_chunk") else []
    how.append(str(s["device"]))
    title = " · ".join([s.get("model", ""), f"{plan.title} {settings}".strip(), *how])
    table = Table(title=Text(title, style="bold"), title_justify="left")
    table.add_column("part")
    for heading in ("complete", "at the peak"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for line in plan.lines:
        table.add_row(line.name, in_words(line.bytes), in_words(line.at_peak), mark(line.exact))
    table.add_section()
    step = plan.step
    table.add_row(f"peak of a step, in its {step.moment}", "", in_words(step.bytes), mark(False))
    for peak in plan.events:
        name = f"peak with {peak.name}, in its {peak.moment}"
        table.add_row(name, "", in_words(peak.bytes), mark(False))
        if peak.moment != "update":
            table.add_row("  in its update alone", "", in_words(peak.update), mark(False))
    text = f"Mostly {plan.dominant}. Next to switch on: {plan.advice}.\n"
    if not str(s["device"]).startswith("cpu"):
        text += (
            "On a GPU the caching allocator and the libraries' workspaces take more than the sum of "
            "live tensors.\n"
        )
    return Group(table, Text(text))


def overview(plans: Sequence[Plan]) -> RenderableType:
    """Several plans side by side, a line for each."""
    parts = ("weights", "frozen", "gradients", "optimizer")
    unit, factor = ("GiB", 2**30) if max(p.peak for p in plans) >= 2**30 else ("MiB", 2**20)
    table = Table(title=Text(f"methods, in {unit}", style="bold"), title_justify="left")
    table.add_column("method", no_wrap=True)
    for heading in (*parts, "step", "peak"):
        table.add_column(heading, justify="right")
    for plan in plans:
        sizes = [plan.line(part).bytes for part in parts] + [plan.step.bytes, plan.peak]
        table.add_row(plan.title, *(f"{size / factor:,.2f}" for size in sizes))
    note = "step: the peak of an ordinary step; peak: of all steps, those with events included"
    return Group(table, Text(note + "\n"))


def fit_table(fits: Sequence[tuple[str, Mapping[str, Any]]], budget: int) -> RenderableType:
    """What fits into `budget` bytes, a line for each method."""
    table = Table(title=Text(f"what fits into {in_words(budget)}", style="bold"))
    table.title_justify = "left"
    table.add_column("method")
    table.add_column("largest batch at this rank", justify="right")
    table.add_column("largest rank at this batch", justify="right")
    notes = []
    for title, fit in fits:
        batch = f"{fit['batch_size']:,} ({in_words(fit['batch_peak'])})"
        if not fit["batch_size"]:
            batch = "–"
            notes.append(
                f"{title}: not even a batch of 1 fits, which needs {in_words(fit['batch_peak'])}. "
                f"Mostly {fit['dominant']}; next to switch on: {fit['next']}."
            )
        rank = "–"
        if fit.get("rank"):
            whole = " (all)" if fit["rank"] == fit["largest_rank"] else ""
            rank = f"{fit['rank']:,}{whole} ({in_words(fit['rank_peak'])})"
        elif "rank" in fit and fit["batch_size"]:
            notes.append(
                f"{title}: at a batch of {fit['at_batch_size']} not even rank 1 fits, which needs "
                f"{in_words(fit['rank_peak'])}."
            )
        table.add_row(title, batch, rank)
    return Group(table, *(Text(note) for note in notes))
