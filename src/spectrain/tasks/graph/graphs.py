"""A graph as tensors: its edges, and what is known of its nodes; all of it checked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from spectrain.errors import UsageError

Array = np.ndarray[Any, Any]

PARTS = ("train", "validation", "test")
MOST_NODES = 2**31 - 1  # the products with the adjacency number nodes in 32 bits
MOST_GAPS = 10  # numbers for each node that an edge names; more say that there are gaps


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes 0 … N - 1 and undirected edges between them; made by `graph_from`, which checks it."""

    name: str
    nodes: int  # N
    edges: Tensor  # (E, 2) int64, each once with i < j, in order
    features: Tensor | None = None  # (N, F) float32
    labels: Tensor | None = None  # (N,) int64, numbered 0 … C - 1
    target: Tensor | None = None  # (N,) float32, the number that labels were cut from
    split: dict[str, Tensor] | None = None  # the fixed public one: indices for each of PARTS
    notes: tuple[str, ...] = ()  # sentences for people

    @property
    def classes(self) -> int:
        """How many classes the labels name; 0 without labels."""
        return 0 if self.labels is None else int(self.labels.max()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over everything but name and notes."""
        digest = hashlib.sha256(f"{self.nodes} nodes".encode())
        parts = {
            "edges": self.edges,
            "features": self.features,
            "labels": self.labels,
            "target": self.target,
            **{f"split {part}": index for part, index in (self.split or {}).items()},
        }
        for name, tensor in parts.items():
            if tensor is not None:
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(np.ascontiguousarray(tensor.numpy()).data)
        return digest.hexdigest()

    def summary(self) -> dict[str, Any]:
        """What a report says of it, in JSON's kinds."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "nodes": self.nodes,
            "edges": len(self.edges),
            "features": 0 if self.features is None else self.features.shape[1],
            "classes": self.classes,
            "notes": list(self.notes),
        }


def graph_from(
    name: str,
    edges: ArrayLike,  # (E, 2) whole numbers, in any order, any direction
    nodes: int | None = None,  # N; default: the least that holds all the rest
    *,
    features: ArrayLike | None = None,  # (N, F)
    labels: Sequence[Any] | ArrayLike | None = None,  # (N,) whole numbers or texts
    target: ArrayLike | None = None,  # (N,)
    split: Mapping[str, ArrayLike] | None = None,  # for each of PARTS its indices
    notes: Sequence[str] = (),
) -> Graph:
    """A graph of what is given: self loops and repeated edges dropped, labels numbered in their order.

    Raises UsageError, naming the graph and the array, for what does not fit together.
    """
    pairs = _whole(f"{name}: edges", edges, (2, "pairs"))
    arrays = {
        "features": None if features is None else _numbers(f"{name}: features", features, 2),
        "labels": None if labels is None else _labels(name, labels),
        "label_feature": None if target is None else _numbers(f"{name}: label_feature", target, 1),
    }
    lengths = {what: len(array) for what, array in arrays.items() if array is not None}
    highest = int(pairs.max()) if pairs.size else -1
    count = max(highest + 1, *lengths.values(), 0) if nodes is None else nodes
    if highest >= count:
        raise UsageError(
            f"{name}: edges name node {highest:,}, and the nodes are numbered 0 to {count - 1:,}"
        )
    for what, length in lengths.items():
        if length != count:
            raise UsageError(
                f"{name}: {what} are those of {length:,} nodes, but the graph has {count:,}; give "
                "one row for each node"
            )
    if count > MOST_NODES:
        raise UsageError(f"{name}: {count:,} nodes are more than the {MOST_NODES:,} possible")
    kept, said = _simple(name, pairs, count)
    occurring = len(np.unique(kept))
    if nodes is None and not lengths and count > MOST_GAPS * occurring:
        raise UsageError(
            f"{name}: edges name only {occurring:,} nodes, but numbers up to {highest:,}: number the "
            "nodes from 0 without gaps"
        )
    said += [*notes, *([] if features is not None else ["no features: identity features are used"])]
    numbered = None
    if arrays["labels"] is not None:
        known, numbered = np.unique(arrays["labels"], return_inverse=True)
        said += _renaming(known)
    return Graph(
        name=name,
        nodes=count,
        edges=torch.from_numpy(kept),
        features=_tensor(arrays["features"]),
        labels=None if numbered is None else torch.from_numpy(numbered.astype(np.int64)),
        target=_tensor(arrays["label_feature"]),
        split=None if split is None else _checked_split(name, split, count),
        notes=tuple(said),
    )


def _simple(name: str, pairs: Array, nodes: int) -> tuple[Array, list[str]]:
    """(edges each once with i < j and in order, what was dropped for that)."""
    low, high = pairs.min(axis=1, initial=nodes), pairs.max(axis=1, initial=0)
    proper = low < high
    codes = np.unique(low[proper] * nodes + high[proper])
    if nodes < 2 or not len(codes):
        raise UsageError(f"{name}: a graph needs two nodes at least, and an edge between them")
    loops, repeated = int((~proper).sum()), int(proper.sum()) - len(codes)
    dropped = [
        f"{number:,} {what}{'' if number == 1 else 's'}"
        for number, what in ((loops, "self loop"), (repeated, "repeated edge"))
        if number
    ]
    verb = "was" if loops + repeated == 1 else "were"
    said = [f"{' and '.join(dropped)} {verb} dropped"] if dropped else []
    return np.stack(np.divmod(codes, nodes), axis=1), said


def _whole(what: str, values: ArrayLike, wanted: tuple[int, str] | None) -> Array:
    """Whole numbers of at least 0 as int64: (n,), or (n, k) where `wanted` says (k, what rows are)."""
    array = _array(what, values)
    dimensions = 1 if wanted is None else 2
    fits = array.ndim == dimensions and (wanted is None or array.shape[1] == wanted[0])
    if not fits or array.dtype.kind not in "iu":
        kind = "" if wanted is None else f"{wanted[1]} of "
        raise UsageError(
            f"{what} must be {kind}whole numbers, one for each row, and not {_kind(array)}"
        )
    if array.size and (array.min() < 0 or array.max() >= 2**62):
        odd = array.min() if array.min() < 0 else array.max()
        raise UsageError(f"{what} name node {odd:,}; nodes are numbered from 0 without gaps")
    return array.astype(np.int64)


def _numbers(what: str, values: ArrayLike, dimensions: int) -> Array:
    """Finite numbers as float32 in so many dimensions."""
    array = _array(what, values)
    if array.ndim != dimensions or array.dtype.kind not in "fiub" or 0 in array.shape[1:]:
        shape = "one for each node" if dimensions == 1 else "a row for each node"
        raise UsageError(f"{what} must be numbers, {shape}, and not {_kind(array)}")
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = array.astype(np.float32)
    finite = np.isfinite(numbers)
    if not finite.all():
        node = int(np.argwhere(~finite)[0, 0])
        raise UsageError(
            f"{what} of node {node:,} are infinite, not a number, or too large for float32; mend "
            "or leave out that column"
        )
    return numbers


def _labels(name: str, values: Sequence[Any] | ArrayLike) -> Array:
    array = _array(f"{name}: labels", values)
    if array.ndim != 1 or array.dtype.kind not in "iubU" or not len(array):
        raise UsageError(
            f"{name}: labels must be whole numbers or texts, one for each node, and not {_kind(array)}"
        )
    return array


def _renaming(known: Array) -> list[str]:
    """How labels are numbered, where it is not as they say themselves."""
    if known.dtype.kind in "iub" and known[0] == 0 and known[-1] == len(known) - 1:
        return []
    names = [str(label) for label in known[:5].tolist()]
    more = f" and {len(known) - 5:,} more" if len(known) > 5 else ""
    return [f"the labels {', '.join(names)}{more} are numbered from 0 in this order"]


def _checked_split(name: str, split: Mapping[str, ArrayLike], nodes: int) -> dict[str, Tensor]:
    taken = np.zeros(nodes, dtype=bool)
    found = {}
    if extra := sorted(set(split) - set(PARTS)):
        raise UsageError(f"{name}: a split has the parts {', '.join(PARTS)}, and not {extra[0]!r}")
    for part in PARTS:
        what = f"{name}: the {part} part of the split"
        index = _whole(what, split[part], None) if part in split else np.empty(0, dtype=np.int64)
        if not len(index):
            raise UsageError(f"{what} has no nodes; give all of {', '.join(PARTS)}, or none")
        if (highest := int(index.max())) >= nodes:
            raise UsageError(f"{what} names node {highest:,}, and there are {nodes:,}")
        if taken[index].any() or len(np.unique(index)) < len(index):
            raise UsageError(f"{what} has a node twice, or one that is in another part as well")
        taken[index] = True
        found[part] = torch.from_numpy(index)
    return found


def _array(what: str, values: Any) -> Array:
    try:
        return np.asarray(values)
    except (ValueError, TypeError, OverflowError) as error:  # rows of unequal lengths
        raise UsageError(f"{what} make no array: {error}") from None


def _kind(array: Array) -> str:
    return f"an array of {array.dtype} with shape {array.shape}"


def _tensor(array: Array | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)
