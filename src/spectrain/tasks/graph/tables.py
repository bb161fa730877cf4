"""Graphs from tables of text: an edge list, or a folder with edges.csv and nodes.csv."""

from __future__ import annotations

import csv
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spectrain.errors import UsageError
from spectrain.tasks.graph.graphs import PARTS, Graph, graph_from
from spectrain.tasks.reading import DECOMPRESS, decode, read_bytes

Array = np.ndarray[Any, Any]

LISTS = (".csv", ".tsv", ".txt")  # edge lists by their suffix, each also compressed
HEADERS = {("source", "target"), ("id1", "id2"), ("from", "to"), ("src", "dst"), ("node1", "node2")}


class Row(NamedTuple):
    """The cells of one line."""

    line: int  # from 1
    cells: list[str]


def read_edge_list(path: Path) -> Graph:
    """A graph without features and labels from lines of two ids with a comma, tab or blanks between.

    Lines that begin with # are passed over, and so is a header. Ids are any texts; nodes are
    numbered in their order, which is that of the numbers if all are whole numbers.

    Raises UsageError, naming the line, for what is no pair of ids.
    """
    inner = path.with_suffix("") if path.suffix.lower() in DECOMPRESS else path
    return _from_edges(path, inner.stem)


def read_folder(folder: Path) -> Graph:
    """A graph from edges.csv (two columns of ids), and nodes.csv if there is one.

    nodes.csv has a header: id; optional label, and split (train, validation, test or nothing); all
    other columns are numbers, the features. Nodes are numbered as their lines are; one that no
    edge names has no neighbours.

    Raises UsageError, naming file and line, for what is missing or does not fit together.
    """
    name = folder.resolve().name
    edges_path, nodes_path = folder / "edges.csv", folder / "nodes.csv"
    if not edges_path.is_file():
        raise UsageError(
            f"{folder} has no file edges.csv, a table of two columns with ids of nodes"
        )
    if not nodes_path.is_file():
        return _from_edges(edges_path, name)
    columns, rows = _nodes(nodes_path)
    numbers: dict[str, int] = {}
    for row, node in zip(rows, columns.pop("id"), strict=True):
        if not node or node in numbers:
            problem = f"the id {node!r} a second time" if node else "no id"
            raise UsageError(f"{nodes_path} line {row.line} has {problem}; each node has its own")
        numbers[node] = len(numbers)
    pairs, notes = _pairs(edges_path, known=numbers)
    for row in pairs:
        if unknown := [cell for cell in row.cells if cell not in numbers]:
            raise UsageError(
                f"{edges_path} line {row.line} names {unknown[0]!r}, a node that {nodes_path.name} "
                "does not list"
            )
    labels, split = columns.pop("label", None), columns.pop("split", None)
    return graph_from(
        name,
        _numbered(pairs, numbers),
        len(numbers),
        features=_features(nodes_path, rows, columns) if columns else None,
        labels=None if labels is None else _labels(nodes_path, rows, labels),
        split=None if split is None else _split(nodes_path, rows, split),
        notes=notes,
    )


def _from_edges(path: Path, name: str) -> Graph:
    pairs, notes = _pairs(path)
    ids = _in_order({cell for row in pairs for cell in row.cells})
    numbers = {node: number for number, node in enumerate(ids)}
    return graph_from(name, _numbered(pairs, numbers), len(numbers), notes=notes)


def _pairs(path: Path, known: Container[str] = ()) -> tuple[list[Row], list[str]]:
    """(lines of two ids, what there is to say of them); `known` are ids, which no header names."""
    rows = _rows(path)
    for row in rows:
        if len(row.cells) != 2 or not all(row.cells):
            raise UsageError(
                f"{path} line {row.line} is no edge: an edge is two ids with a comma, a tab or blanks "
                "between, and nothing else on its line"
            )
    notes = []
    if rows and _is_header(rows, known):
        notes.append(f"the first line, {' and '.join(rows[0].cells)}, was taken for a header")
        rows = rows[1:]
    if not rows:
        raise UsageError(f"{path} has no edges")
    return rows, notes


def _is_header(rows: list[Row], known: Container[str]) -> bool:
    """By its words, or as the only line of which neither is a whole number."""
    first, *others = (row.cells for row in rows)
    if any(cell in known for cell in first):
        return False
    by_words = tuple(cell.lower() for cell in first) in HEADERS
    return by_words or (
        bool(others)
        and not any(map(_is_whole, first))
        and all(_is_whole(cell) for cells in others for cell in cells)
    )


def _numbered(pairs: list[Row], numbers: dict[str, int]) -> Array:
    return np.array([[numbers[cell] for cell in row.cells] for row in pairs], dtype=np.int64)


def _in_order(ids: Iterable[str]) -> list[str]:
    """Whole numbers by size, whatever their length; anything else as texts."""
    found = sorted(ids)
    if all(map(_is_whole, found)):
        found.sort(key=lambda cell: (len(cell.lstrip("0")), cell.lstrip("0")))
    return found


def _is_whole(cell: str) -> bool:
    return cell.isascii() and cell.isdigit()


# --- the table of nodes -------------------------------------------------------------------------


def _nodes(path: Path) -> tuple[dict[str, list[str]], list[Row]]:
    """(cells of each column by its name, the lines below the header)."""
    rows = _rows(path)
    header = rows[0].cells if rows else []
    if "id" not in header:
        raise UsageError(f'{path} must begin with a line that names its columns, one of them "id"')
    for title in header:
        if not title or header.count(title) > 1:
            problem = f"two columns {title!r}" if title else "a column without a name"
            raise UsageError(f"{path} has {problem}: give each a name of its own, or take it out")
    for row in rows[1:]:
        if len(row.cells) != len(header):
            raise UsageError(
                f"{path} line {row.line} has {len(row.cells):,} columns, and the header {len(header):,}"
            )
    columns = zip(*(row.cells for row in rows[1:]), strict=True) if rows[1:] else [()] * len(header)
    return {title: list(cells) for title, cells in zip(header, columns, strict=True)}, rows[1:]


def _features(path: Path, rows: list[Row], columns: dict[str, list[str]]) -> Array:
    table = np.empty((len(rows), len(columns)))
    for at, (title, cells) in enumerate(columns.items()):
        for number, cell in enumerate(cells):
            try:
                table[number, at] = float(cell)
            except ValueError:
                raise UsageError(
                    f"{path} line {rows[number].line}: {cell!r} in the column {title!r} is no number; "
                    "all columns but id, label and split are features"
                ) from None
    return table


def _labels(path: Path, rows: list[Row], cells: list[str]) -> Array:
    if "" in cells:
        raise UsageError(
            f"{path} line {rows[cells.index('')].line} has no label; label all nodes, or none"
        )
    whole = all(_is_whole(cell.removeprefix("-")) and len(cell) < 19 for cell in cells)
    return np.array([int(cell) for cell in cells] if whole else cells)


def _split(path: Path, rows: list[Row], cells: list[str]) -> dict[str, list[int]]:
    parts: dict[str, list[int]] = {part: [] for part in PARTS}
    for number, cell in enumerate(cells):
        if cell and cell not in parts:
            raise UsageError(
                f"{path} line {rows[number].line}: {cell!r} is no split; those are {', '.join(PARTS)}, "
                "or nothing for a node in none"
            )
        if cell:
            parts[cell].append(number)
    return parts


# --- lines and cells ----------------------------------------------------------------------------


def _rows(path: Path) -> list[Row]:
    """The cells of all lines but blank ones and comments, parted as the first of them is."""
    text = decode(path, read_bytes(path)).replace("\r\n", "\n").replace("\r", "\n")
    numbered = [
        (number, line)
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip() and not line.startswith("#")
    ]
    first = numbered[0][1] if numbered else ""
    tab = "\t" in first
    if not tab and "," not in first:
        return [Row(number, line.split()) for number, line in numbered]
    reader = csv.reader(
        (f"{line}\n" for _, line in numbered),
        delimiter="\t" if tab else ",",
        quoting=csv.QUOTE_NONE if tab else csv.QUOTE_MINIMAL,
        strict=True,
    )
    rows = []
    try:
        for cells in reader:
            number = numbered[reader.line_num - 1][0]
            rows.append(Row(number, [cell.strip() for cell in cells]))
    except csv.Error as error:
        number = numbered[max(reader.line_num, 1) - 1][0]
        raise UsageError(f"{path} line {number} is no line of a table: {error}") from error
    return rows
