"""A comparison's table for the terminal, with what must be said under it."""

from collections.abc import Iterable

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from spectrain.runs.compare import Comparison
from spectrain.runs.summary import summarise


def render(comparison: Comparison) -> RenderableType:
    """The table, its explanations and the schedules, to be printed by rich; 80 columns suffice."""
    summary = summarise(comparison)
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for heading in summary.columns:
        narrow = Text(heading.replace(" ", "\n"))
        table.add_column(narrow, justify="left" if heading == "method" else "right", no_wrap=True)
    for cells in summary.cells:
        table.add_row(*(Text(cell) for cell in cells))
    schedules = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("method", "schedule here", "in the paper"):
        schedules.add_column(heading)
    for arm in comparison.plan.arms:
        schedules.add_row(Text(arm.title), Text(arm.schedule), Text(arm.paper_schedule))
    return Group(
        table,
        Text(),
        _pairs(summary.columns.items(), style="dim"),
        Text(),
        _pairs(("•", sentence) for sentence in summary.sentences),
        _pairs((f"[{number}]", note) for number, note in enumerate(summary.footnotes, 1)),
        Text(),
        schedules,
    )


def _pairs(pairs: Iterable[tuple[str, str]], style: str = "") -> Table:
    """Marks or names, and beside each a text that wraps within its own column."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    for mark, text in pairs:
        grid.add_row(Text(mark, style=style, no_wrap=True), Text(text, style=style))
    return grid
