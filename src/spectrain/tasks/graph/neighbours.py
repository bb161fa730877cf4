"""Means over neighbours, which graph convolutions take, and features made of neighbours' numbers."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectrain.abstract import is_abstract

MOST_DEGREES = 5  # nodes with more neighbours look alike


class Adjacency(NamedTuple):
    """D⁻¹ (A + I), each row the mean over a node and its neighbours, and its transpose."""

    forward: Tensor  # (N, N) sparse CSR
    backward: Tensor  # (N, N) sparse CSR

    def to(self, where: torch.device | str | torch.dtype) -> Adjacency:
        """The same on another device, or of other precision."""
        return Adjacency(self.forward.to(where), self.backward.to(where))


def adjacency(
    edges: Tensor,  # (E, 2), each once, without self loops
    nodes: int,
) -> Adjacency:
    """Row-normalised adjacency with self loops, float32."""
    own = torch.arange(nodes)
    rows = torch.cat((edges[:, 0], edges[:, 1], own))
    columns = torch.cat((edges[:, 1], edges[:, 0], own))
    order = torch.argsort(rows * nodes + columns)
    rows, columns = rows[order], columns[order]
    degrees = torch.bincount(rows, minlength=nodes)
    means = 1 / degrees.float()
    # A + I is symmetric: its transpose has the same places, with the values of their columns.
    starts = torch.cat((torch.zeros(1, dtype=torch.int64), degrees.cumsum(0)))
    return Adjacency(
        _csr(starts, columns, means[rows], nodes), _csr(starts, columns, means[columns], nodes)
    )


def _csr(starts: Tensor, columns: Tensor, values: Tensor, nodes: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        # 32 bits, as the libraries below take them: with 64 they are converted in every product.
        return torch.sparse_csr_tensor(
            starts.int(), columns.int(), values, (nodes, nodes), check_invariants=True
        )


def aggregate(
    adjacency: Adjacency,
    x: Tensor,  # (N, d)
) -> Tensor:  # (N, d)
    """Each node's mean of x over itself and its neighbours."""
    mean: Tensor = _Aggregate.apply(x, *adjacency)  # type: ignore[no-untyped-call]
    return mean


class _Aggregate(torch.autograd.Function):
    """A x with a backward pass by the stored transpose; torch's own transposes A in every step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
        ctx.pair = forward, backward
        if is_abstract(x):  # while memory is planned: a sparse tensor has no form without data
            return torch.empty_like(x)
        with torch.autocast(x.device.type, enabled=False):  # no sparse products in bfloat16
            return (forward @ x.to(forward.dtype)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        forward, backward = ctx.pair
        return aggregate(Adjacency(backward, forward), g), None, None


def augmented(
    features: Tensor,  # (N, F)
    edges: Tensor,  # (E, 2), each once, without self loops
    nodes: int,
) -> Tensor:  # (N, F + 7)
    """Features ‖ which of 0 … 4 or at least 5 neighbours, one-hot ‖ 1, as HGCN has it for Airport."""
    degrees = torch.bincount(edges.flatten(), minlength=nodes).clamp(max=MOST_DEGREES)
    one_hot = torch.nn.functional.one_hot(degrees, MOST_DEGREES + 1)
    return torch.cat((features, one_hot.to(features), features.new_ones(nodes, 1)), dim=1)


def row_normalised(
    features: Tensor,  # (N, F)
) -> Tensor:
    """Each row divided by its sum; rows that sum to 0 stay as they are."""
    sums = features.sum(dim=1, keepdim=True)
    return features / sums.masked_fill(sums == 0, 1)
