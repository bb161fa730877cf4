"""Which nodes or pairs are trained on, which choose, and which measure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spectrain.errors import UsageError
from spectrain.tasks.graph.graphs import Graph


def node_split(
    graph: Graph, how: str, validation: float, test: float, seed: int
) -> dict[str, Tensor]:
    """Indices of the nodes in each of `PARTS`.

    how: "public", the graph's own split ("balanced" where it has none); "random"; "balanced": validation
    and test take equally many nodes of class 0 and of the others, in shares of the rarer of both, and
    the rest trains (Chami et al. 2019). Raises UsageError where a part would be empty.
    """
    if how == "public" and graph.split is not None:
        return graph.split
    assert graph.labels is not None
    labels = graph.labels.numpy()
    generator = np.random.default_rng(seed)
    if how == "random":
        groups = [generator.permutation(graph.nodes)]
    else:
        groups = [
            generator.permutation(np.flatnonzero(which)) for which in (labels != 0, labels == 0)
        ]
    smallest = min(map(len, groups))
    ends = round(validation * smallest), round(validation * smallest) + round(test * smallest)
    found = {
        "train": [group[ends[1] :] for group in groups],
        "validation": [group[: ends[0]] for group in groups],
        "test": [group[ends[0] : ends[1]] for group in groups],
    }
    parts = {name: torch.from_numpy(np.concatenate(pieces)) for name, pieces in found.items()}
    _require_some(graph, parts, validation, test)
    return parts


@dataclass(frozen=True)
class LinkSplit:
    """Edges to train on, and held-out ones with as many pairs that are no edges."""

    train: Tensor  # (E', 2)
    validation: Tensor
    test: Tensor
    validation_negatives: Tensor
    test_negatives: Tensor

    def held_out(self, split: str) -> tuple[Tensor, Tensor]:
        """(edges, pairs without one) of "validation" or "test"."""
        if split == "validation":
            return self.validation, self.validation_negatives
        return self.test, self.test_negatives


def link_split(graph: Graph, validation: float, test: float, seed: int) -> LinkSplit:
    """Shares of the edges, and as many pairs without an edge, all of them different.

    Raises UsageError where a part would be empty, or there are not enough pairs without an edge.
    """
    generator = np.random.default_rng(seed)
    edges = graph.edges.numpy()[generator.permutation(len(graph.edges))]
    first, second = int(validation * len(edges)), int(test * len(edges))
    held_out = first + second
    parts = {
        "train": torch.from_numpy(edges[held_out:]),
        "validation": torch.from_numpy(edges[:first]),
        "test": torch.from_numpy(edges[first:held_out]),
    }
    _require_some(graph, parts, validation, test)
    free = graph.nodes * (graph.nodes - 1) // 2 - len(edges)
    if free < 2 * held_out:
        raise UsageError(
            f"{graph.name}: {free:,} pairs have no edge, too few to set {held_out:,} of them against the "
            "edges of validation and test; hold out less, or take a sparser graph"
        )
    source, codes = Negatives(graph), np.empty(0, dtype=np.int64)
    while len(codes) < held_out:
        more = source.codes(generator, held_out)
        together = np.concatenate((codes, more))
        codes = together[np.sort(np.unique(together, return_index=True)[1])]
    pairs = source.pairs(codes[:held_out])
    return LinkSplit(**parts, validation_negatives=pairs[:first], test_negatives=pairs[first:])


class Negatives:
    """Pairs i < j without an edge of the whole graph, drawn uniformly."""

    def __init__(self, graph: Graph) -> None:
        self.nodes = graph.nodes
        edges = graph.edges.numpy()
        self._edges = np.sort(edges[:, 0] * self.nodes + edges[:, 1])
        if len(edges) == self.nodes * (self.nodes - 1) // 2:
            raise UsageError(
                f"{graph.name}: every pair of nodes has an edge, so none is there to tell edges from"
            )

    def draw(self, count: int, seed: int, step: int) -> Tensor:
        """(count, 2) of training step `step`: a function of seed and step alone."""
        generator = np.random.default_rng((seed, step))
        found = [self.codes(generator, count)]
        while (missing := count - sum(map(len, found))) > 0:
            found.append(self.codes(generator, missing))
        return self.pairs(np.concatenate(found)[:count])

    def codes(
        self, generator: np.random.Generator, count: int
    ) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """About `count` pairs without an edge, i · N + j each."""
        drawn = generator.integers(0, self.nodes, (2, count + count // 8 + 8))
        low, high = np.minimum(*drawn), np.maximum(*drawn)
        codes = low * self.nodes + high
        places = np.searchsorted(self._edges, codes).clip(max=len(self._edges) - 1)
        kept: np.ndarray[tuple[int], np.dtype[np.int64]]
        kept = codes[(self._edges[places] != codes) & (low != high)]
        return kept

    def pairs(self, codes: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
        """(n, 2) the pairs that the codes stand for."""
        return torch.from_numpy(np.stack(np.divmod(codes, self.nodes), 1))


def _require_some(graph: Graph, parts: dict[str, Tensor], validation: float, test: float) -> None:
    for name, part in parts.items():
        if not len(part):
            raise UsageError(
                f"{graph.name}: nothing is left for {name} with --validation {validation} and --test "
                f"{test}; change the shares, or take a larger graph"
            )
