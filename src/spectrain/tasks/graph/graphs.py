"""A graph with what is known of its nodes, and the mean over neighbours that convolutions take."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spectrain.abstract import is_abstract
from spectrain.errors import UsageError

DEGREES = 6  # 0, 1 … 4, and 5 or more


@dataclass(frozen=True)
class Graph:
    """Nodes 0 … N − 1 and undirected edges between them."""

    name: str
    nodes: int
    edges: Tensor  # (E, 2) int64, each once with i < j, in order
    features: Tensor | None = None  # (N, F) float32
    labels: Tensor | None = None  # (N,) int64, from 0
    target: Tensor | None = None  # (N,) float32: the number that labels were cut from
    split: dict[str, Tensor] | None = None  # the public one: "train", "validation", "test"
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """How many labels there are; 0 without labels."""
        return 0 if self.labels is None else int(self.labels.max()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything but name and notes."""
        digest = hashlib.sha256(str(self.nodes).encode())
        parts = {"edges": self.edges, "features": self.features, "labels": self.labels}
        parts |= {"target": self.target, **(self.split or {})}
        for name, tensor in parts.items():
            digest.update(name.encode())
            if tensor is not None:
                digest.update(str(tuple(tensor.shape)).encode())
                digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def summary(self) -> dict[str, Any]:
        """What a report says of it."""
        return {
            "name": self.name,
            "nodes": self.nodes,
            "edges": len(self.edges),
            "features": 0 if self.features is None else self.features.shape[1],
            "classes": self.classes,
            "notes": list(self.notes),
        }


def graph_from(
    name: str,
    edges: np.ndarray[Any, Any],  # (E, 2) whole numbers
    *,
    nodes: int | None = None,
    features: np.ndarray[Any, Any] | None = None,  # (N, F)
    labels: Sequence[Any] | np.ndarray[Any, Any] | None = None,  # (N,), of any kind that sorts
    target: np.ndarray[Any, Any] | None = None,  # (N,)
    split: dict[str, np.ndarray[Any, Any]] | None = None,
) -> Graph:
    """Check everything, drop loops and repeated edges, number the labels in order.

    Raises UsageError, in one sentence that names the array, for what does not fit together.
    """
    edges = np.asarray(edges)
    if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype.kind not in "iu":
        raise UsageError(f"{name}: edges must be pairs of whole numbers, (E, 2)")
    edges = edges.astype(np.int64)
    if edges.size and edges.min() < 0:
        raise UsageError(f"{name}: edges name node {edges.min()}; nodes are numbered from 0")
    lengths = {
        what: len(array)
        for what, array in (("features", features), ("labels", labels), ("label_feature", target))
        if array is not None
    }
    highest = int(edges.max()) + 1 if edges.size else 0
    count = max(highest, nodes or 0, *lengths.values()) if lengths else max(highest, nodes or 0)
    for what, length in lengths.items():
        if length != count:
            raise UsageError(f"{name}: {what} are of {length} nodes, and there are {count}")
    ordered = np.sort(edges, axis=1)
    kept = np.unique(ordered[ordered[:, 0] != ordered[:, 1]], axis=0)
    if count < 2 or not len(kept):
        raise UsageError(f"{name}: a graph needs two nodes and an edge between them")
    notes = []
    if loops := int((ordered[:, 0] == ordered[:, 1]).sum()):
        notes.append(f"{loops} edges from a node to itself were dropped")
    if repeated := len(ordered) - loops - len(kept):
        notes.append(f"{repeated} repeated edges were dropped")
    if features is None:
        notes.append("no features: each node is known by its number alone (identity features)")
    return Graph(
        name,
        count,
        torch.from_numpy(kept),
        None if features is None else _numbers(f"{name}: features", features, 2),
        None if labels is None else _classes(name, labels),
        None if target is None else _numbers(f"{name}: label_feature", target, 1),
        None if split is None else _checked_split(name, split, count),
        tuple(notes),
    )


def _numbers(what: str, array: np.ndarray[Any, Any], dimensions: int) -> Tensor:
    array = np.asarray(array)
    if array.ndim != dimensions or array.dtype.kind not in "fiub" or not array.size:
        raise UsageError(f"{what} must be numbers in {dimensions} dimensions")
    with np.errstate(over="ignore"):
        found = array.astype(np.float32)
    if not np.isfinite(found).all():
        raise UsageError(f"{what} have NaN or infinite entries")
    return torch.from_numpy(found)


def _classes(name: str, labels: Any) -> Tensor:
    array = np.asarray(labels)
    if array.ndim != 1 or array.dtype.kind not in "iubU":
        raise UsageError(f"{name}: labels must be whole numbers or texts, one for each node")
    known, numbers = np.unique(array, return_inverse=True)
    if len(known) < 2:
        raise UsageError(f"{name}: labels name one class, and there is nothing to tell apart")
    return torch.from_numpy(numbers.astype(np.int64))


def _checked_split(name: str, split: dict[str, Any], nodes: int) -> dict[str, Tensor]:
    taken = np.zeros(nodes, dtype=bool)
    found = {}
    for part in ("train", "validation", "test"):
        index = np.asarray(split.get(part, ()))
        if index.ndim != 1 or not index.size or index.dtype.kind not in "iu":
            raise UsageError(f"{name}: the split has no nodes for {part}")
        if index.min() < 0 or index.max() >= nodes:
            raise UsageError(f"{name}: the split's {part} names nodes that there are not")
        index = np.unique(index.astype(np.int64))
        if taken[index].any():
            raise UsageError(f"{name}: the split has a node in {part} and in another part")
        taken[index] = True
        found[part] = torch.from_numpy(index)
    return found


# --- the mean over neighbours ------------------------------------------------------------------


class Means(NamedTuple):
    """D⁻¹ (A + I): each row averages over a node and its neighbours. Its transpose is kept, too."""

    forward: Tensor  # (N, N) CSR
    backward: Tensor  # (N, N) CSR, the transpose

    def to(self, device: torch.device) -> Means:
        """The same on another device."""
        return Means(self.forward.to(device), self.backward.to(device))


def adjacency(
    edges: Tensor,  # (E, 2)
    nodes: int,
) -> Means:
    """Row-normalised adjacency with self loops. Indices are int32, as the CPU's products take them."""
    own = torch.arange(nodes)
    rows = torch.cat((edges[:, 0], edges[:, 1], own))
    columns = torch.cat((edges[:, 1], edges[:, 0], own))
    degree = torch.bincount(rows, minlength=nodes).float()
    return Means(
        _csr(rows, columns, 1 / degree[rows], nodes), _csr(columns, rows, 1 / degree[rows], nodes)
    )


def _csr(rows: Tensor, columns: Tensor, values: Tensor, nodes: int) -> Tensor:
    order = torch.argsort(rows * nodes + columns)
    starts = torch.zeros(nodes + 1, dtype=torch.int32)
    starts[1:] = torch.bincount(rows, minlength=nodes).cumsum(0)
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
    return torch.sparse_csr_tensor(
        starts, columns[order].int(), values[order], (nodes, nodes), check_invariants=True
    )


def aggregate(
    means: Means,
    x: Tensor,  # (N, d)
) -> Tensor:  # (N, d)
    """Each node's mean of x over itself and its neighbours."""
    found: Tensor = _Aggregate.apply(x, *means)  # type: ignore[no-untyped-call]
    return found


class _Aggregate(torch.autograd.Function):
    """A x. torch's own backward pass transposes A anew in each step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
        ctx.transpose = backward
        return _product(forward, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return _product(ctx.transpose, g), None, None


def _product(matrix: Tensor, x: Tensor) -> Tensor:
    if is_abstract(x):  # while a plan is made; there are no sparse tensors without data
        return torch.empty_like(x)
    return matrix.to(x.dtype) @ x


# --- features ----------------------------------------------------------------------------------


def row_normalised(
    features: Tensor,  # (N, F)
) -> Tensor:
    """Each row divided by its sum; one that sums to zero is left as it is."""
    sums = features.sum(1, keepdim=True)
    return features / torch.where(sums == 0, 1.0, sums)


def augmented(
    features: Tensor,  # (N, F)
    edges: Tensor,  # (E, 2)
    nodes: int,
) -> Tensor:  # (N, F + 7)
    """Features, the degree one-hot (0 … 4, 5 and more), and a constant (Chami et al. 2019, for Airport)."""
    degree = torch.bincount(edges.flatten(), minlength=nodes).clamp(max=DEGREES - 1)
    known = torch.nn.functional.one_hot(degree, DEGREES).to(features.dtype)
    return torch.cat((features, known, features.new_ones(nodes, 1)), 1)
