"""Graphs: read, cleaned, divided; the mean over neighbours; scores."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from spectrain.errors import UsageError
from spectrain.tasks.graph.builtin import sir_tree
from spectrain.tasks.graph.files import load_graph
from spectrain.tasks.graph.graphs import (
    adjacency,
    aggregate,
    augmented,
    graph_from,
    row_normalised,
)
from spectrain.tasks.graph.inputs import NodeInputs
from spectrain.tasks.graph.scores import link_scores, node_scores
from spectrain.tasks.graph.splits import Negatives, link_split, node_split

SHARED = Path(__file__).parents[2] / "shared" / "data" / "graphs"
EDGES = np.array([[0, 1], [1, 0], [2, 2], [1, 3], [3, 2], [0, 1]])


def test_a_graph_is_cleaned_and_says_so():
    graph = graph_from("g", EDGES, labels=["b", "a", "b", "a"])
    assert graph.edges.tolist() == [[0, 1], [1, 3], [2, 3]]
    assert graph.nodes == 4
    assert graph.labels.tolist() == [1, 0, 1, 0]
    assert graph.classes == 2
    assert "1 edges from a node to itself were dropped" in graph.notes
    assert "2 repeated edges were dropped" in graph.notes
    assert any("identity features" in note for note in graph.notes)
    assert graph.summary()["edges"] == 3


def test_a_fingerprint_is_of_the_contents():
    one = graph_from("g", EDGES, features=np.eye(4))
    same = graph_from("h", EDGES[::-1].copy(), features=np.eye(4))
    other = graph_from("g", EDGES, features=2 * np.eye(4))
    assert one.fingerprint == same.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"edges": np.zeros((3, 3), int)}, "pairs of whole numbers"),
        ({"edges": np.zeros((3, 2))}, "pairs of whole numbers"),
        ({"edges": np.array([[-1, 2]])}, "numbered from 0"),
        ({"edges": np.array([[1, 1]])}, "two nodes and an edge"),
        ({"features": np.ones((3, 2))}, "features are of 3 nodes, and there are 4"),
        ({"features": np.full((4, 2), np.nan)}, "NaN or infinite"),
        ({"features": np.full((4, 2), 1e300)}, "NaN or infinite"),
        ({"features": np.ones(4)}, "2 dimensions"),
        ({"labels": np.zeros(4, int)}, "one class"),
        ({"labels": np.zeros(4)}, "whole numbers or texts"),
        ({"split": {"train": [0], "validation": [1]}}, "no nodes for test"),
        ({"split": {"train": [0], "validation": [0], "test": [2]}}, "another part"),
        ({"split": {"train": [0], "validation": [1], "test": [9]}}, "nodes that there are not"),
    ],
)
def test_what_does_not_fit_together_is_refused(arguments, said):
    with pytest.raises(UsageError, match=said):
        graph_from("g", **{"edges": EDGES} | arguments)


# --- the mean over neighbours ------------------------------------------------------------------


def dense_mean(edges, n):
    a = torch.eye(n, dtype=torch.float64)
    a[edges[:, 0], edges[:, 1]] = 1
    a[edges[:, 1], edges[:, 0]] = 1
    return a / a.sum(1, keepdim=True)


def test_the_mean_is_that_of_the_dense_matrix():
    graph = sir_tree(nodes=60)
    means = adjacency(graph.edges, graph.nodes)
    x = torch.randn(60, 5)
    expected = dense_mean(graph.edges, 60) @ x.double()
    torch.testing.assert_close(aggregate(means, x).double(), expected, rtol=1e-5, atol=1e-6)
    small = torch.randn(60, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: aggregate(means, x), (small,))


def test_features_of_degree_and_normalised_rows():
    edges = torch.tensor([[0, i] for i in range(1, 8)])
    found = augmented(torch.zeros(9, 2), edges, 9)
    assert found.shape == (9, 9)
    assert found[0, 2:].tolist() == [0, 0, 0, 0, 0, 1, 1]  # five neighbours or more
    assert found[1, 2:].tolist() == [0, 1, 0, 0, 0, 0, 1]
    assert found[8, 2:].tolist() == [1, 0, 0, 0, 0, 0, 1]  # none
    rows = row_normalised(torch.tensor([[1.0, 3.0], [0.0, 0.0], [1.0, -1.0]]))
    assert rows.tolist() == [[0.25, 0.75], [0.0, 0.0], [1.0, -1.0]]


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
    assert {name: part.tolist() for name, part in parts.items()} == {**split, "train": [0, 4]}


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


# --- scores ------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 4])
def test_node_scores_are_scikit_learns(classes):
    logits, labels = torch.randn(200, classes), torch.randint(classes, (200,))
    guess = logits.argmax(1)
    found = node_scores(logits, labels)
    average = "binary" if classes == 2 else "micro"
    assert found["f1"] == pytest.approx(f1_score(labels, guess, average=average))
    assert found["accuracy"] == pytest.approx((guess == labels).double().mean().item())
    assert node_scores(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))["f1"] == 0.0


@pytest.mark.parametrize("decimals", [0, 1, 6])  # with many ties, some, none
def test_link_scores_are_scikit_learns(decimals):
    positive = (torch.randn(70) + 1).round(decimals=decimals)
    negative = torch.randn(90).round(decimals=decimals)
    truth = [1] * 70 + [0] * 90
    scores = torch.cat((positive, negative))
    found = link_scores(positive, negative)
    assert found["roc_auc"] == pytest.approx(roc_auc_score(truth, scores))
    assert found["average_precision"] == pytest.approx(average_precision_score(truth, scores))


# --- files -------------------------------------------------------------------------------------


def test_an_archive_is_read_dense_or_sparse(tmp_path):
    features = np.array([[0, 1.5], [2, 0], [0, 0], [3, 4]], dtype=np.float32)
    dense, sparse = tmp_path / "one.npz", tmp_path / "two.npz"
    np.savez(dense, edges=EDGES, features=features, labels=np.array([5, 7, 7, 5]))
    np.savez(
        sparse,
        edges=EDGES,
        feat_data=np.array([1.5, 2, 3, 4], dtype=np.float32),
        feat_indices=np.array([1, 0, 0, 1], dtype=np.int16),
        feat_indptr=np.array([0, 1, 2, 2, 4]),
        feat_shape=np.array([4, 2]),
        labels=np.array([0, 1, 1, 0], dtype=np.int8),
        train_idx=np.array([0]),
        val_idx=np.array([1, 2]),
        test_idx=np.array([3]),
        label_feature=np.arange(4.0),
    )
    one, two = load_graph(str(dense)), load_graph(str(sparse))
    assert one.name == "one"
    assert torch.equal(one.features, two.features)
    assert torch.equal(one.labels, two.labels)
    assert two.split["validation"].tolist() == [1, 2]
    assert two.target.tolist() == [0, 1, 2, 3]
    assert one.split is None


def test_a_folder_of_tables_is_read(tmp_path):
    (tmp_path / "edges.csv").write_text("source,target\na,b\nb,c\n")
    (tmp_path / "nodes.csv").write_text(
        "id,label,height,split,width\na,x,1,train,2\nb,y,3,test,4\nc,x,5,validation,6\nd,y,7,,8\n"
    )
    graph = load_graph(str(tmp_path))
    assert graph.nodes == 4  # one of them without an edge
    assert graph.edges.tolist() == [[0, 1], [1, 2]]
    assert graph.features.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert graph.labels.tolist() == [0, 1, 0, 1]
    assert {name: part.tolist() for name, part in graph.split.items()} == {
        "train": [0],
        "validation": [2],
        "test": [1],
    }
    (tmp_path / "nodes.csv").unlink()
    assert load_graph(str(tmp_path)).nodes == 3


@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.txt", "list.tsv.gz"])
def test_edge_lists_are_read(tmp_path, name):
    separator = "," if "csv" in name else "\t" if "tsv" in name else "  "
    text = f"# a comment\nid1{separator}id2\n10{separator}11\n11{separator}12\n\n12{separator}13\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    graph = load_graph(str(path))
    assert graph.name == "list"
    assert graph.nodes == 14  # numbers are taken for what they are where most of them occur
    far = tmp_path / "far.csv"
    far.write_text("1000,2000\n2000,3000\n")
    assert load_graph(str(far)).nodes == 3


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"edges.csv": "a,b\nc\n"}, "edges.csv line 2: an edge is two names"),
        ({"edges.csv": ""}, "has no edges"),
        ({"edges.csv": "a,b\n", "nodes.csv": "name\na\n"}, "one of them id"),
        ({"edges.csv": "a,b\n", "nodes.csv": "id\na\na\n"}, "'a' stands there twice"),
        ({"edges.csv": "a,b\n", "nodes.csv": "id\na\n"}, "names node 'b', which nodes.csv has not"),
        ({"edges.csv": "a,b\n", "nodes.csv": "id,x\na,1\nb,?\n"}, "something else than numbers"),
        ({"edges.csv": "a,b\n", "nodes.csv": "id,x\na,1\nb\n"}, "line 3: 1 columns"),
        ({"edges.csv": "a,b\n", "nodes.csv": "id,x,x\na,1,1\nb,1,1\n"}, "the same name"),
        ({"edges.csv": "a,b\n", "nodes.csv": "id,split\na,dev\nb,test\n"}, "split is 'dev'"),
        ({"nodes.csv": "id\na\n"}, "has no edges.csv"),
    ],
)
def test_malformed_tables_are_refused(tmp_path, files, said):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=said):
        load_graph(str(tmp_path))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        load_graph(str(tmp_path / "none.npz"))
    (tmp_path / "graph.gml").write_text("graph []")
    with pytest.raises(UsageError, match="a graph comes as"):
        load_graph(str(tmp_path / "graph.gml"))
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(UsageError, match=r"no intact \.npz file"):
        load_graph(str(tmp_path / "bad.npz"))
    np.savez(tmp_path / "pickled.npz", edges=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UsageError, match="plain arrays"):
        load_graph(str(tmp_path / "pickled.npz"))
    np.savez(tmp_path / "empty.npz", nodes=np.zeros(3))
    with pytest.raises(UsageError, match="no array called edges"):
        load_graph(str(tmp_path / "empty.npz"))


def test_the_builtin_tree_is_a_tree_with_two_kinds_of_nodes():
    graph = sir_tree()
    assert len(graph.edges) == graph.nodes - 1 == 1023
    assert 0.15 < graph.labels.double().mean() < 0.5
    assert graph.fingerprint == sir_tree().fingerprint != sir_tree(seed=1).fingerprint


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared graphs are not here")
@pytest.mark.parametrize(
    ("file", "nodes", "edges", "features", "classes"),
    [
        ("airport.npz", 3188, 18630, 4, 4),
        ("cora.npz", 2708, 5278, 1433, 7),
        ("disease_lp.npz", 2665, 2664, 11, 2),
        ("disease_nc.npz", 1044, 1043, None, 2),
        ("wordnet_mammals_closure.tsv.gz", 1182, 6542, None, 0),
    ],
)
def test_published_graphs_have_their_published_sizes(file, nodes, edges, features, classes):
    graph = load_graph(str(SHARED / file))
    width = None if graph.features is None else graph.features.shape[1]
    assert (graph.nodes, len(graph.edges), width, graph.classes) == (
        *(nodes, edges, features, classes),
    )
