"""Tables of an inspection for the terminal: a row for each matrix, or for each kind of matrix."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from statistics import median

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from spectrain.diagnostics.measures import Difference
from spectrain.runs.inspection import Inspection, Layer, by_kind

MANY = 24  # matrices from which on they are grouped by kind, unless all are asked for

_BLOCK = re.compile(
    r"(?s)(?:(.*\.(?:\d+|\*)|\d+|\*)\.)?(.*)"
)  # up to the last number or star, and the rest

Column = tuple[str, str, Callable[[Layer], float | None], str]  # heading, legend, value, format
SPECTRUM: tuple[Column, ...] = (
    ("s₁", "largest singular value, ‖W‖₂", lambda x: x.measures.spectral_norm, ".3g"),
    ("stab.", "stable rank ‖W‖_F²/s₁²", lambda x: x.measures.stable_rank, ".3g"),
    (
        *("eff.", "effective rank, the exponential of the entropy of s/Σs"),
        *(lambda x: x.measures.effective_rank, ".3g"),
    ),
    ("part.", "participation ratio (Σs²)²/Σs⁴", lambda x: x.measures.participation_ratio, ".3g"),
    ("90%", "rank that keeps 90 % of the energy Σs²", lambda x: x.measures.rank_90, ".0f"),
    ("99%", "rank that keeps 99 % of it", lambda x: x.measures.rank_99, ".0f"),
    (
        *("α", "exponent of the tail of the eigenvalues s² (small: a heavy tail)"),
        *(lambda x: x.measures.tail.alpha if x.measures.tail else None, ".3g"),
    ),
)
CHANGE: tuple[Column, ...] = (
    ("change", "its size, ‖ΔW‖_F/‖W‖_F", lambda x: _d(x).relative_change, ".3g%"),
    ("norm", "change of the norm, ‖W'‖_F/‖W‖_F − 1", lambda x: _d(x).norm_change, "+.3g%"),
    ("stab.", "stable rank of ΔW", lambda x: _d(x).update.stable_rank, ".3g"),
    ("eff.", "effective rank of ΔW", lambda x: _d(x).update.effective_rank, ".3g"),
    ("90%", "rank that keeps 90 % of the energy of ΔW", lambda x: _d(x).update.rank_90, ".0f"),
    (
        *("left", "largest principal angle of the leading left subspaces, in degrees"),
        *(lambda x: _largest(_d(x).left_angles), ".1f"),
    ),
    ("right", "that of the right ones", lambda x: _largest(_d(x).right_angles), ".1f"),
    (
        *("intr.", "intruder dimensions among the 10 leading left singular vectors"),
        *(lambda x: len(_d(x).left_intruders), ".0f"),
    ),
)


def inspection_table(found: Inspection, every: bool) -> RenderableType:
    """What was measured, with totals and sentences under it.

    every: a row for each matrix, however many; else many of them are grouped by kind and shape.
    """
    grouped = not every and len(found.layers) > MANY
    parts: list[RenderableType] = [_table(found.layers, found.checkpoint, SPECTRUM, grouped)]
    compared = [layer for layer in found.layers if layer.difference is not None]
    if compared:
        title = f"change since {found.against}"
        parts += [Text(), _table(compared, title, CHANGE, grouped)]
    sentences = list(_sentences(found, compared, grouped))
    return Group(*parts, Text(), *(Text(f"• {sentence}") for sentence in sentences))


def _table(
    layers: Sequence[Layer], title: str, columns: Sequence[Column], grouped: bool
) -> RenderableType:
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
        title_justify="left",
    )
    table.title = Text(title, style="bold")
    table.add_column("matrix", overflow="fold")
    if grouped:
        table.add_column("n", justify="right", no_wrap=True)
    shaped = columns is SPECTRUM  # a table of changes stands below one that has the shapes
    for heading in (*(["shape"] if shaped else []), *(column[0] for column in columns)):
        table.add_column(heading, justify="right", no_wrap=True)
    place = ""
    for parent, name, members in _rows(layers, grouped):
        if parent != place:
            table.add_row(Text(parent, style="bold"))
            place = parent
        rows, width = members[0].measures.shape
        cells = [f"  {name}" if parent else name, *([str(len(members))] if grouped else [])]
        cells += [f"{rows}×{width}"] if shaped else []
        cells += [_cell(members, column) for column in columns]
        table.add_row(*(Text(cell) for cell in cells))
    legend = Table.grid(padding=(0, 1, 0, 0))
    for heading, meaning, _, _ in columns:
        legend.add_row(Text(heading, style="dim", no_wrap=True), Text(meaning, style="dim"))
    return Group(table, Text(), legend)


def _rows(layers: Sequence[Layer], grouped: bool) -> list[tuple[str, str, list[Layer]]]:
    """(block, name within it, matrices), rows of one block together in the order of the first."""
    groups = by_kind(layers) if grouped else {(x.name, x.measures.shape): [x] for x in layers}
    blocks: dict[str, list[tuple[str, str, list[Layer]]]] = {}
    for (key, _), members in groups.items():
        full = members[0].name if len(members) == 1 else key
        parent, name = _BLOCK.fullmatch(full.removesuffix(".weight")).groups("")  # type: ignore[union-attr]
        blocks.setdefault(parent, []).append((parent, name, members))
    return [row for rows in blocks.values() for row in rows]


def _cell(members: Sequence[Layer], column: Column) -> str:
    """The median of a row's matrices."""
    values = [value for member in members if (value := column[2](member)) is not None]
    if not values:
        return "–"
    middle = median(values)
    if math.isinf(middle):
        return "∞"
    number, percent, _ = column[3].partition("%")
    return format(100 * middle, number) + "%" if percent else format(middle, number)


def _sentences(found: Inspection, compared: Sequence[Layer], grouped: bool) -> Iterable[str]:
    if grouped:
        yield "Rows of several matrices (n) show medians; --all shows each, --json has the spectra."
    nonzero = [layer for layer in found.layers if layer.measures.spectral_norm]
    if len(nonzero) > 1:
        low = min(nonzero, key=lambda x: x.measures.effective_rank / x.measures.size)
        yield (
            f"Lowest effective rank for its size: {low.name}, {low.measures.effective_rank:.1f} of "
            f"{low.measures.size}."
        )
    tails = [(x.measures.tail.alpha, x.name) for x in found.layers if x.measures.tail]
    if len(tails) > 1:
        low_tail, high_tail = min(tails), max(tails)
        yield (
            f"Tails: α from {low_tail[0]:.2f} ({low_tail[1]}) to {high_tail[0]:.2f} ({high_tail[1]})."
        )
    if compared:
        yield from _sentences_of_change(found, compared)
    yield (
        f"{len(found.layers):,} matrices with {found.numbers:,} numbers, embeddings "
        f"included; {found.vectors:,} tensors of fewer than two dimensions ({found.vector_numbers:,} "
        "numbers) are left out."
    )


def _sentences_of_change(found: Inspection, compared: Sequence[Layer]) -> Iterable[str]:
    most = max(compared, key=lambda x: _d(x).relative_change)
    yield (
        f"Changed most: {most.name}, by {_d(most).relative_change:.2%} of its norm. Angles are those of "
        f"the subspaces of rank {found.rank}."
    )
    counts = [(len(_d(x).left_intruders), x.name) for x in compared]
    total, having = sum(n for n, _ in counts), [x for x in counts if x[0]]
    yield (
        f"Intruder dimensions: {total:,} in {len(having):,} of {len(compared):,} matrices"
        + (f", most in {max(having)[1]} ({max(having)[0]})." if having else ".")
    )
    same = sum(_d(x).update.spectral_norm == 0 for x in compared)
    if same:
        yield f"{same:,} of {len(compared):,} matrices did not change at all."
    if found.unmatched:
        more = f" and {len(found.unmatched) - 1} more" if len(found.unmatched) > 1 else ""
        yield f"{found.against} lacks {found.unmatched[0]}{more}: not compared."


def _d(layer: Layer) -> Difference:
    assert layer.difference is not None
    return layer.difference


def _largest(angles: Sequence[float]) -> float | None:
    return math.degrees(angles[-1]) if angles else None
