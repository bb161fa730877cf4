"""A graph that needs no file: a tree along which a disease spreads."""

from __future__ import annotations

import numpy as np

from spectrain.errors import UsageError
from spectrain.tasks.graph.graphs import Array, Graph, graph_from

LEAST_NODES = 64
CHILDREN = (0.15, 0.4, 0.25, 0.12, 0.08)  # the chance of one child, of two, … of five
INHERITED = 0.8  # correlation of a node's susceptibility with its parent's
LEVEL, STEEPNESS = 3.0, 6.0  # of the chance of infection, over susceptibility of variance 1
SHARE = 1 / 3  # of the nodes that are to be infected, about
OUTBREAKS = 24  # of which the one nearest to SHARE is taken
SIGNS, NOISE = 4, 5  # features that have to do with susceptibility, and those that have not
BLUR = 2.0  # standard deviation of the noise on each sign


def sir_tree(seed: int = 0, nodes: int = 1024) -> Graph:
    """A random tree with a disease that spreads from its root (SIR), like the Disease graphs of HGCN.

    An infected parent infects a child with a chance that grows with the child's susceptibility,
    which runs in families, and of which features are faint signs: each node's own tell little,
    and those of its neighbours much more. A function of seed and nodes alone.

    Raises UsageError for fewer than 64 nodes.
    """
    if nodes < LEAST_NODES:
        raise UsageError(
            f"a tree of {nodes} nodes is too small for a disease to spread: take {LEAST_NODES} or more"
        )
    generator = np.random.default_rng(seed)
    parents = _parents(generator, nodes)
    outbreaks = [_outbreak(generator, parents) for _ in range(OUTBREAKS)]
    susceptible, infected = min(outbreaks, key=lambda found: abs(found[1].mean() - SHARE))
    signs = susceptible[:, None] + BLUR * generator.standard_normal((nodes, SIGNS))
    features = np.concatenate((signs, generator.standard_normal((nodes, NOISE))), axis=1)
    edges = np.stack((parents[1:], np.arange(1, nodes)), axis=1)
    return graph_from("sir-tree", edges, nodes, features=features, labels=infected.astype(int))


def _parents(generator: np.random.Generator, nodes: int) -> Array:
    """(N,) each node's parent, which stands before it; that of the root is -1."""
    children = generator.choice(len(CHILDREN), nodes, p=CHILDREN) + 1  # one at least: it goes on
    return np.concatenate(([-1], np.repeat(np.arange(nodes), children)))[:nodes]


def _outbreak(generator: np.random.Generator, parents: Array) -> tuple[Array, Array]:
    """(N,) susceptibility, and (N,) bool: who was infected."""
    susceptible = generator.standard_normal(len(parents))
    for child, parent in enumerate(parents[1:], start=1):
        own = (1 - INHERITED**2) ** 0.5 * susceptible[child]
        susceptible[child] = INHERITED * susceptible[parent] + own
    chance = 1 / (1 + np.exp(-LEVEL - STEEPNESS * susceptible))
    infected = generator.random(len(parents)) < chance
    infected[0] = True
    for child, parent in enumerate(parents[1:], start=1):
        infected[child] &= infected[parent]
    return susceptible, infected
