"""A graph that needs no file: a tree along which a disease spreads."""

from __future__ import annotations

import numpy as np

from spectrain.tasks.graph.graphs import Graph, graph_from

NOISE = 6  # features that say nothing


def sir_tree(seed: int = 0, nodes: int = 1024) -> Graph:
    """A random tree whose nodes are infected from their parents, or not (the SIR model).

    Of the kind of the Disease graphs of Chami et al. (2019). Each node is more or less susceptible; a sick
    parent infects it with that probability. What is known of a node is its susceptibility, blurred,
    and noise: enough to guess by, and its neighbours tell the rest.
    """
    generator = np.random.default_rng(seed)
    places = np.arange(1, nodes)
    # Each node hangs on one of those before it, near the front of the queue: branching as in a family tree.
    parents = (places * generator.uniform(0.25, 0.5, nodes - 1)).astype(np.int64)
    susceptible = generator.beta(2.0, 0.8, nodes)
    sick = np.zeros(nodes, dtype=np.int64)
    sick[0] = 1
    luck = generator.random(nodes)
    for child, parent in zip(places, parents, strict=True):
        seeded = luck[child] < 0.1 * susceptible[child]  # from elsewhere
        sick[child] = seeded or (sick[parent] and luck[child] < 0.95 * susceptible[child])
    known = susceptible + 0.15 * generator.standard_normal(nodes)
    features = np.column_stack((known, 1 - known, generator.standard_normal((nodes, NOISE))))
    edges = np.column_stack((parents, places))
    return graph_from("sir-tree", edges, features=features.astype(np.float32), labels=sick)
