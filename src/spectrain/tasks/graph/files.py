"""Graphs from files: which kind a path holds, and NumPy archives."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from spectrain.errors import UsageError
from spectrain.tasks.graph.graphs import Graph, graph_from
from spectrain.tasks.graph.tables import LISTS, read_edge_list, read_folder
from spectrain.tasks.reading import DECOMPRESS, user_path

Array = np.ndarray[Any, Any]

SPARSE = ("feat_data", "feat_indices", "feat_indptr", "feat_shape")  # features in CSR form
SPLIT = {"train": "train_idx", "validation": "val_idx", "test": "test_idx"}
KNOWN = ("edges", "features", *SPARSE, "labels", "label_feature", *SPLIT.values())
MOST_BYTES = 2**33  # of an archive's arrays, or of features made dense; more is a mistake or a trap


def load_graph(path: Path | str) -> Graph:
    """The graph in a .npz file, in a folder with edges.csv, or in an edge list.

    Raises UsageError if there is no such path, or naming what is wrong with it; see `read_npz`,
    `read_folder` and `read_edge_list`.
    """
    place = user_path(str(path))
    if place.is_dir():
        return read_folder(place)
    if not place.exists():
        raise UsageError(f"there is no file or folder {str(path)!r} to read a graph from")
    if not place.is_file():  # a pipe or a device has no end
        raise UsageError(f"{path} is no ordinary file, so no graph is read from it")
    inner = place.with_suffix("") if place.suffix.lower() in DECOMPRESS else place
    if place.suffix.lower() == ".npz":
        return read_npz(place)
    if inner.suffix.lower() in LISTS:
        return read_edge_list(place)
    raise UsageError(
        f"{path} is of no known kind: a graph is a .npz file, an edge list ({', '.join(LISTS)}, "
        f"or one of them with {', '.join(DECOMPRESS)}), or a folder with edges.csv"
    )


def read_npz(path: Path) -> Graph:
    """The graph in a NumPy archive; nothing in it is unpickled.

    edges (E, 2); optional: features (N, F), or their CSR parts feat_data, feat_indices, feat_indptr
    and feat_shape; labels (N,); label_feature (N,); train_idx, val_idx and test_idx. N is the
    length of labels or features, or the highest node in edges and one.

    Raises UsageError, naming the array, for what is missing, damaged, or does not fit together.
    """
    arrays, others = _arrays(path)
    if "edges" not in arrays:
        raise UsageError(
            f'{path} has no array "edges" (E, 2); its arrays are {_shown([*arrays, *others]) or "none"}'
        )
    features = arrays.get("features")
    if sparse := [name for name in SPARSE if name in arrays]:
        if features is not None:
            raise UsageError(f"{path} has features twice, as features and as {sparse[0]}: keep one")
        features = _dense(path, arrays)
    return graph_from(
        path.stem,
        arrays["edges"],
        features=features,
        labels=arrays.get("labels"),
        target=arrays.get("label_feature"),
        split={part: arrays[name] for part, name in SPLIT.items() if name in arrays} or None,
        notes=[f"left out, since of no known name: {_shown(others)}"] if others else [],
    )


def _arrays(path: Path) -> tuple[dict[str, Array], list[str]]:
    """(the arrays of known names, other names); what has another name is not even read."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MOST_BYTES:
            raise UsageError(
                f"{path} unpacks to {size / 2**30:.0f} GiB, more than the {MOST_BYTES / 2**30:.0f} "
                "a graph may take"
            )
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if name in KNOWN}
            others = [name for name in archive.files if name not in KNOWN]
    except UsageError:
        raise
    except Exception as error:
        # zipfile and NumPy raise nearly anything at what is damaged: SyntaxError, struct.error …
        reason = str(error) or type(error).__name__
        raise UsageError(f"{path} is no intact .npz file of plain arrays: {reason}") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # NumPy gives what has no array's beginning as bytes
            raise UsageError(f'{path}: the entry "{name}" is no array')
    return arrays, others


def _dense(path: Path, arrays: dict[str, Array]) -> Array:
    """(N, F) float32 of CSR parts; entries that stand twice are added, as SciPy has it."""
    if missing := [name for name in SPARSE if name not in arrays]:
        raise UsageError(
            f"{path}: sparse features are in the four arrays {', '.join(SPARSE)}, and "
            f"{missing[0]} is missing"
        )
    data, columns, starts, shape = (arrays[name] for name in SPARSE)
    for name, kinds in zip(SPARSE, ("fiub", "iu", "iu", "iu"), strict=True):
        if arrays[name].ndim != 1 or arrays[name].dtype.kind not in kinds:
            what = "numbers" if "f" in kinds else "whole numbers"
            raise UsageError(
                f"{path}: {name} must be {what} in one dimension, and not {arrays[name].dtype} with "
                f"shape {arrays[name].shape}"
            )
    if len(shape) != 2 or min(shape.tolist()) < 1:
        raise UsageError(
            f"{path}: feat_shape must be two numbers above 0, those of rows and columns"
        )
    rows, width = (int(size) for size in shape)
    if 4 * rows * width > MOST_BYTES:
        raise UsageError(
            f"{path}: feat_shape says {rows:,} × {width:,}, too many features to be held in a table; "
            "leave out columns"
        )
    starts = starts.astype(np.int64)
    steps = np.diff(starts)
    if len(starts) != rows + 1 or starts[0] != 0 or starts[-1] != len(data) or steps.min() < 0:
        raise UsageError(
            f"{path}: feat_indptr must rise from 0 to the {len(data):,} entries of feat_data in "
            f"{rows + 1:,} numbers"
        )
    if len(columns) != len(data):
        raise UsageError(
            f"{path}: feat_indices has {len(columns):,} entries and feat_data {len(data):,}"
        )
    if len(columns) and not 0 <= columns.min() <= columns.max() < width:
        raise UsageError(
            f"{path}: feat_indices must be columns from 0 to {width - 1:,}, and are from "
            f"{columns.min():,} to {columns.max():,}"
        )
    table = np.zeros((rows, width), dtype=np.float32)
    with np.errstate(over="ignore"):  # what becomes infinite is refused with the other features
        np.add.at(table, (np.repeat(np.arange(rows), steps), columns), data.astype(np.float32))
    return table


def _shown(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
