"""Graphs from files: .npz archives, folders of two tables, plain edge lists."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from spectrain.errors import UsageError
from spectrain.tasks.graph.graphs import Graph, graph_from
from spectrain.tasks.reading import DECOMPRESS, decode, read_bytes, suffix, user_path

Array = np.ndarray[Any, Any]

LISTS = (".csv", ".tsv", ".txt", ".edges")
CSR = ("feat_data", "feat_indices", "feat_indptr", "feat_shape")
LARGEST = 2**31  # numbers in a table of features; more is a mistake, or a trap
PARTS = {"train": "train_idx", "validation": "val_idx", "test": "test_idx"}


def load_graph(data: str) -> Graph:
    """The graph at a path: an .npz file, a folder with edges.csv (and nodes.csv), or an edge list.

    Raises UsageError, naming the file and what is wrong in it; nothing in it is executed.
    """
    path = user_path(data)
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise UsageError(f"--data {data}: there is no such file or folder")
    kind = suffix(path)
    name = path.name.split(".")[0]
    if kind == ".npz":
        return _archive(path, name)
    if kind in LISTS:
        return graph_from(name, _numbered(_pairs(path))[0])
    known = ", ".join((".npz", *LISTS))
    raise UsageError(
        f"--data {data}: a graph comes as {known} (the lists also as {', '.join(DECOMPRESS)}), or as a "
        "folder with edges.csv"
    )


# --- .npz --------------------------------------------------------------------------------------


def _archive(path: Path, name: str) -> Graph:
    """An archive of arrays: edges (E, 2); features (N, F), dense or as `CSR`; labels, label_feature (N,);
    a split as train_idx, val_idx and test_idx."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{path} is no intact .npz file of plain arrays: {reason}") from None
    if "edges" not in arrays:
        raise UsageError(f"{path} has no array called edges; it has {', '.join(arrays) or 'none'}")
    features = arrays.get("features")
    if features is None and "feat_data" in arrays:
        features = _dense(path, arrays)
    split = {part: arrays[key] for part, key in PARTS.items() if key in arrays}
    return graph_from(
        name,
        arrays["edges"],
        features=features,
        labels=arrays.get("labels"),
        target=arrays.get("label_feature"),
        split=split or None,
    )


def _dense(path: Path, arrays: dict[str, Array]) -> Array:
    """The features that the four arrays of `CSR` hold, as a table."""
    if missing := [key for key in CSR if key not in arrays]:
        raise UsageError(f"{path}: sparse features need {', '.join(CSR)}; {missing[0]} is missing")
    data, columns, starts, shape = (arrays[key] for key in CSR)
    whole = all(array.dtype.kind in "iu" and array.ndim == 1 for array in (columns, starts, shape))
    if not whole or data.dtype.kind not in "fiu" or data.ndim != 1 or len(shape) != 2:
        raise UsageError(f"{path}: {', '.join(CSR)} are no sparse matrix")
    rows, width = (int(n) for n in shape)
    sizes: Array = np.diff(starts.astype(np.int64))
    fits = len(starts) == rows + 1 and len(columns) == len(data) and (sizes >= 0).all()
    if not (fits and rows > 0 < width and rows * width < LARGEST and starts[0] == 0):
        raise UsageError(f"{path}: {', '.join(CSR)} do not fit together")
    inside = len(data) == starts[-1] and (
        len(data) == 0 or 0 <= columns.min() <= columns.max() < width
    )
    if not inside:
        raise UsageError(f"{path}: feat_indices are not within {width} columns")
    table = np.zeros((rows, width), dtype=np.float32)
    table[np.repeat(np.arange(rows), sizes), columns] = data
    return table


# --- tables ------------------------------------------------------------------------------------


def _folder(folder: Path) -> Graph:
    """edges.csv: two columns, nodes by any name. nodes.csv: id; label, split, and columns of numbers."""
    lists = [folder / f"edges{kind}" for kind in LISTS[:2] if (folder / f"edges{kind}").is_file()]
    if not lists:
        raise UsageError(f"{folder} has no edges.csv")
    pairs = _pairs(lists[0])
    table = next((p for kind in LISTS[:2] if (p := folder / f"nodes{kind}").is_file()), None)
    if table is None:
        return graph_from(folder.resolve().name, _numbered(pairs)[0])
    header, rows = _table(table)
    if "id" not in header:
        raise UsageError(f"{table}: its first line has to name the columns, one of them id")
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    ids = columns.pop("id")
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise UsageError(f"{table}: node {twice!r} stands there twice")
    edges, names = _numbered(pairs, list(ids))
    if len(names) > len(ids):
        raise UsageError(f"{lists[0]} names node {names[len(ids)]!r}, which {table.name} has not")
    labels, parts = columns.pop("label", None), columns.pop("split", None)
    return graph_from(
        folder.resolve().name,
        edges,
        nodes=len(ids),
        features=_features(table, columns) if columns else None,
        labels=None if labels is None else _labels(labels),
        split=None if parts is None else _parts(table, parts),
    )


def _features(path: Path, columns: dict[str, tuple[str, ...]]) -> Array:
    found = []
    for name, cells in columns.items():
        try:
            found.append([float(cell) for cell in cells])
        except ValueError:
            raise UsageError(
                f"{path}: column {name!r} holds something else than numbers; columns beside id, label and "
                "split are features"
            ) from None
    return np.array(found, dtype=np.float64).T


def _labels(cells: tuple[str, ...]) -> Array:
    """Whole numbers in their order, anything else in that of the alphabet."""
    whole = all(re.fullmatch(r"-?\d{1,18}", cell) for cell in cells)
    return np.array([int(cell) for cell in cells] if whole else cells)


def _parts(path: Path, cells: tuple[str, ...]) -> dict[str, Array]:
    if odd := sorted(set(cells) - {*PARTS, ""}):
        raise UsageError(f"{path}: split is {odd[0]!r}; allowed are {', '.join(PARTS)}, or nothing")
    array = np.array(cells)
    return {part: np.flatnonzero(array == part) for part in PARTS}


def _numbered(
    pairs: list[tuple[str, str]], known: list[str] | None = None
) -> tuple[Array, list[str]]:
    """(edges (E, 2), names): nodes numbered as `known` has them, further ones in the order they come.

    Where all names are whole numbers and none is known, they are taken for what they are.
    """
    if known is None and all(a.isdecimal() and b.isdecimal() and len(a + b) < 30 for a, b in pairs):
        edges = np.array([(int(a), int(b)) for a, b in pairs], dtype=np.int64).reshape(-1, 2)
        if edges.size and edges.max() < 4 * edges.size:  # else most nodes would be without an edge
            return edges, []
    numbers = {name: i for i, name in enumerate(known or [])}
    found = [tuple(numbers.setdefault(name, len(numbers)) for name in pair) for pair in pairs]
    return np.array(found, dtype=np.int64).reshape(-1, 2), list(numbers)


def _pairs(path: Path) -> list[tuple[str, str]]:
    """The edges of a list: two names a line, between them a comma, a tab or blanks."""
    found = []
    for number, cells in enumerate(_rows(path), start=1):
        if len(cells) < 2 or not all(cells[:2]):
            raise UsageError(f"{path} line {number}: an edge is two names of nodes")
        found.append((cells[0], cells[1]))
    headings = {("source", "target"), ("id1", "id2"), ("from", "to"), ("u", "v"), ("i", "j")}
    if found and tuple(name.lower() for name in found[0]) in headings:
        found = found[1:]
    if not found:
        raise UsageError(f"{path} has no edges")
    return found


def _table(path: Path) -> tuple[list[str], list[list[str]]]:
    """(names of the columns, rows), every row as long as the first."""
    header, *rows = _rows(path) or [[]]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise UsageError(
                f"{path} line {number}: {len(row)} columns, where line 1 has {len(header)}"
            )
    if not rows:
        raise UsageError(f"{path} has no nodes")
    if len(set(header)) < len(header):
        raise UsageError(f"{path}: two columns have the same name")
    return header, rows


def _rows(path: Path) -> list[list[str]]:
    """The cells of every line that is neither empty nor a comment (#)."""
    text = decode(path, read_bytes(path))
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    first = lines[0] if lines else ""
    if "," in first or "\t" in first:
        reader = csv.reader(io.StringIO("\n".join(lines)), delimiter="\t" if "\t" in first else ",")
        try:
            return [[cell.strip() for cell in row] for row in reader]
        except csv.Error as error:
            raise UsageError(f"{path}: {error}") from None
    return [line.split() for line in lines]
