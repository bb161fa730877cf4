"""What is trained on, what chooses and what measures; and the nodes' inputs with their dropout."""

import numpy as np
import pytest
import torch

from spectrain.errors import UsageError
from spectrain.tasks.graph.builtin import sir_tree
from spectrain.tasks.graph.graphs import graph_from
from spectrain.tasks.graph.inputs import NodeInputs
from spectrain.tasks.graph.splits import Negatives, link_split, node_split

# --- inputs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.05, 0.9])
def test_dropout_of_inputs_is_dropout(share):
    x = torch.rand(3000, 40) * (torch.rand(3000, 40) < share)
    inputs = NodeInputs(x)
    found = inputs.dropped(0.25).clone()
    kept = found != 0
    torch.testing.assert_close(found[kept], x[kept] / 0.75)
    assert (x[kept] != 0).all()
    assert kept.sum() / (x != 0).sum() == pytest.approx(0.75, abs=0.05)
    assert not torch.equal(found, inputs.dropped(0.25))
    assert torch.equal(inputs.x, x)


# --- splits ------------------------------------------------------------------------------------


def labelled(n=100, rare=20):
    edges = np.column_stack((np.arange(n - 1), np.arange(1, n)))
    return graph_from("g", edges, labels=(np.arange(n) < rare).astype(int))


def test_a_balanced_split_takes_both_kinds_alike():
    graph = labelled()
    parts = node_split(graph, "balanced", 0.1, 0.5, seed=3)
    sizes = {name: np.bincount(graph.labels[part], minlength=2) for name, part in parts.items()}
    assert sizes["validation"].tolist() == [2, 2]
    assert sizes["test"].tolist() == [10, 10]
    assert sizes["train"].tolist() == [68, 8]
    assert torch.cat(list(parts.values())).sort().values.tolist() == list(range(100))
    again = node_split(graph, "balanced", 0.1, 0.5, seed=3)
    assert all(torch.equal(parts[name], again[name]) for name in parts)
    other = node_split(graph, "balanced", 0.1, 0.5, seed=4)
    assert not torch.equal(parts["test"], other["test"])


def test_a_random_split_has_its_shares():
    parts = node_split(labelled(), "random", 0.15, 0.25, seed=0)
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [60, 15, 25]


def test_a_public_split_is_taken_as_it_is():
    split = {"train": [4, 0], "validation": [1], "test": [2, 3]}
    edges = np.array([[0, 1], [2, 3], [3, 4]])
    graph = graph_from("g", edges, labels=[0, 1, 0, 1, 1], split=split)
    parts = node_split(graph, "public", 0.5, 0.5, seed=0)
    assert {name: part.tolist() for name, part in parts.items()} == split


def test_links_are_divided_and_set_against_pairs_without_one():
    graph = sir_tree(nodes=300)
    parts = link_split(graph, 0.05, 0.10, seed=1)
    assert [len(parts.validation), len(parts.test)] == [14, 29]
    together = torch.cat((parts.train, parts.validation, parts.test))
    assert sorted(together.tolist()) == graph.edges.tolist()
    known = {tuple(edge) for edge in graph.edges.tolist()}
    apart = torch.cat((parts.validation_negatives, parts.test_negatives)).tolist()
    assert len(apart) == 43 == len({tuple(pair) for pair in apart})
    assert all(i < j and (i, j) not in known for i, j in apart)
    assert parts.held_out("test")[0] is parts.test


def test_negatives_are_uniform_and_a_function_of_seed_and_step():
    graph = graph_from("g", np.array([[0, 1], [1, 2], [2, 3], [3, 4]]))
    source = Negatives(graph)
    drawn = source.draw(6000, seed=1, step=7)
    assert torch.equal(drawn, source.draw(6000, seed=1, step=7))
    assert not torch.equal(drawn, source.draw(6000, seed=1, step=8))
    counts = {}
    for pair in drawn.tolist():
        counts[tuple(pair)] = counts.get(tuple(pair), 0) + 1
    assert sorted(counts) == [(0, 2), (0, 3), (0, 4), (1, 3), (1, 4), (2, 4)]
    assert min(counts.values()) > 850
    assert max(counts.values()) < 1150


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(UsageError, match="nothing is left for validation"):
        node_split(labelled(), "balanced", 0.001, 0.5, seed=0)
    with pytest.raises(UsageError, match="nothing is left for train"):
        node_split(labelled(), "random", 0.5, 0.5, seed=0)
    complete = graph_from("g", np.array([[i, j] for i in range(6) for j in range(i)]))
    with pytest.raises(UsageError, match="too few to set"):
        link_split(complete, 0.2, 0.2, seed=0)
    with pytest.raises(UsageError, match="every pair of nodes has an edge"):
        Negatives(complete)
