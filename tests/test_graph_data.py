"""Graphs: what files hold, how it is split, and the numbers that are made of it."""

import bz2
import gzip
import itertools
import json
import warnings

import numpy as np
import pytest
import torch
from shared_data import shared_file

from spectrain.errors import RunError, UsageError
from spectrain.tasks.graph.builtin import sir_tree
from spectrain.tasks.graph.files import load_graph
from spectrain.tasks.graph.graphs import graph_from
from spectrain.tasks.graph.neighbours import adjacency, aggregate, augmented, row_normalised
from spectrain.tasks.graph.scores import link_scores, node_scores
from spectrain.tasks.graph.splits import link_split, node_split

PATH = [[0, 1], [1, 2], [2, 3]]


def random_graph(nodes=30, edges=60, seed=0, **more):
    generator = np.random.default_rng(seed)
    pairs = np.array(list(itertools.combinations(range(nodes), 2)))
    return graph_from("random", pairs[generator.choice(len(pairs), edges, False)], nodes, **more)


def codes(pairs):
    return {tuple(pair) for pair in pairs.tolist()}


# --- a graph


def test_edges_are_kept_once_and_in_order():
    graph = graph_from("g", [[3, 1], [1, 3], [2, 2], [0, 3], [1, 3]], 5)
    assert graph.edges.tolist() == [[0, 3], [1, 3]]
    assert graph.edges.dtype == torch.int64
    assert graph.nodes == 5
    assert graph.notes == (
        "1 self loop and 2 repeated edges were dropped",
        "no features: identity features are used",
    )
    assert graph_from("g", [[0, 0], [0, 1]], features=[[1], [2]]).notes == (
        "1 self loop was dropped",
    )


def test_labels_are_numbered_in_their_order():
    texts = graph_from("g", PATH, labels=["b", "a", "b", "c"])
    assert texts.labels.tolist() == [1, 0, 1, 2]
    assert texts.classes == 3
    assert "the labels a, b, c are numbered from 0 in this order" in texts.notes
    assert graph_from("g", PATH, labels=[10, -2, 9, 9]).labels.tolist() == [2, 0, 1, 1]
    assert len(graph_from("g", PATH, labels=[1, 0, 1, 2]).notes) == 1


def test_fingerprint_is_of_the_contents_alone():
    split = {"train": [0], "validation": [1], "test": [2, 3]}
    whole = {"features": np.eye(4), "labels": [0, 1, 0, 1], "target": [0.1, 0.2, 0.3, 0.4]}
    whole["split"] = split
    graph = graph_from("g", PATH, **whole)
    again = graph_from("another name", [[2, 3], [1, 0], [2, 1]], notes=["a note"], **whole)
    assert graph.fingerprint == again.fingerprint
    changes = {
        "features": 2 * np.eye(4),
        "labels": [0, 1, 1, 1],
        "target": [0.1, 0.2, 0.3, 0.5],
        "split": split | {"test": [3]},
    }
    others = [graph_from("g", PATH, **whole | {what: new}) for what, new in changes.items()]
    others += [graph_from("g", PATH, **whole | {what: None}) for what in whole]
    others.append(graph_from("g", [*PATH[:2], [1, 3]], **whole))
    found = {graph.fingerprint, *(other.fingerprint for other in others)}
    assert len(found) == len(others) + 1
    assert graph_from("g", PATH).fingerprint != graph_from("g", PATH, 5).fingerprint
    assert json.loads(json.dumps(graph.summary())) == {
        "name": "g",
        "fingerprint": graph.fingerprint,
        "nodes": 4,
        "edges": 3,
        "features": 4,
        "classes": 2,
        "notes": [],
    }


SPLIT = {"train": [0], "validation": [1], "test": [2]}


@pytest.mark.parametrize(
    ("edges", "more", "words"),
    [
        ([[0, 1, 2]], {}, "edges must be pairs"),
        ([[0.0, 1.0]], {}, "edges must be pairs"),
        ([["a", "b"]], {}, "edges must be pairs"),
        ([[0, 1], [2]], {}, "edges make no array"),
        ([[0, -1]], {}, "edges name node -1"),
        ([[0, 4]], {"nodes": 4}, "edges name node 4, and the nodes are numbered 0 to 3"),
        ([[0, 2**40]], {}, "are more than|numbers up to"),
        ([[0, 1000]], {}, "number the nodes from 0"),
        ([[1, 1]], {}, "an edge between them"),
        (np.empty((0, 2), dtype=int), {"nodes": 9}, "an edge between them"),
        (PATH, {"features": np.eye(3)}, "features are those of 3 nodes"),
        (PATH, {"features": [1, 2, 3, 4]}, "features must be numbers, a row for each node"),
        (PATH, {"features": np.empty((4, 0))}, "features must be numbers, a row"),
        (PATH, {"features": [[0], [1], [np.nan], [2]]}, "features of node 2 are infinite"),
        (PATH, {"features": [[0], [1e300], [3], [2]]}, "features of node 1 are infinite"),
        (PATH, {"labels": [0.5, 1, 2, 3]}, "labels must be whole numbers or texts"),
        (PATH, {"labels": [0, 1]}, "labels are those of 2 nodes"),
        (PATH, {"target": [[1, 2, 3, 4]]}, "label_feature must be numbers, one for each"),
        (PATH, {"split": {"train": [0]}}, "validation part of the split has no nodes"),
        (PATH, {"split": SPLIT | {"test": [4]}}, "names node 4, and there are 4"),
        (PATH, {"split": SPLIT | {"test": [0]}}, "in another part"),
        (PATH, {"split": SPLIT | {"test": [2, 2]}}, "twice"),
        (PATH, {"split": SPLIT | {"dev": [3]}}, "and not 'dev'"),
        (PATH, {"split": SPLIT | {"test": [True]}}, "must be whole numbers"),
    ],
)
def test_what_makes_no_graph_is_refused(edges, more, words):
    with pytest.raises(UsageError, match=words):
        graph_from("g", edges, **more)


# --- means over neighbours


def dense(graph):
    matrix = torch.eye(graph.nodes)
    i, j = graph.edges.T
    matrix[i, j] = matrix[j, i] = 1
    return matrix / matrix.sum(1, keepdim=True)


def test_adjacency_is_the_mean_over_a_node_and_its_neighbours():
    graph = random_graph(edges=20)  # some nodes have no neighbour
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair = adjacency(graph.edges, graph.nodes)
    torch.testing.assert_close(pair.forward.to_dense(), dense(graph))
    torch.testing.assert_close(pair.backward.to_dense(), dense(graph).T)
    x = torch.randn(graph.nodes, 7, requires_grad=True)
    out = aggregate(pair, x)
    torch.testing.assert_close(out, dense(graph) @ x)
    g = torch.randn_like(out)
    torch.testing.assert_close(torch.autograd.grad(out, x, g)[0], dense(graph).T @ g)


def test_aggregate_has_both_derivatives():
    pair = adjacency(torch.tensor(PATH), 5).to(torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: aggregate(pair, x), x)
    assert torch.autograd.gradgradcheck(lambda x: aggregate(pair, x) ** 2, x)


def test_aggregate_under_autocast_keeps_the_kind_of_its_input():
    pair = adjacency(torch.tensor(PATH), 4)
    x = torch.randn(4, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = aggregate(pair, x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, aggregate(pair, x.float()).bfloat16())


def test_aggregate_of_what_has_a_shape_alone():
    x = torch.empty(4, 3, device="meta", requires_grad=True)
    out = aggregate(adjacency(torch.tensor(PATH), 4), x)
    out.sum().backward()
    assert x.grad.shape == out.shape == (4, 3)


def test_features_of_degrees():
    star = torch.tensor([[0, other] for other in range(1, 8)] + [[1, 2]])
    found = augmented(torch.full((9, 2), 0.5), star, 9)
    assert found.shape == (9, 9)
    assert found.dtype == torch.float32
    assert (found[:, :2] == 0.5).all()
    assert found[:, 2:8].argmax(1).tolist() == [5, 2, 2, 1, 1, 1, 1, 1, 0]
    assert (found[:, 2:8].sum(1) == 1).all()
    assert (found[:, 8] == 1).all()


def test_rows_are_divided_by_their_sums():
    rows = torch.tensor([[1.0, 3.0], [0.0, 0.0], [2.0, -2.0], [-1.0, -1.0]])
    wanted = [[0.25, 0.75], [0.0, 0.0], [2.0, -2.0], [0.5, 0.5]]
    assert row_normalised(rows).tolist() == wanted


# --- scores


@pytest.mark.parametrize("classes", [2, 3])
def test_node_scores_are_those_of_scikit_learn(classes):
    metrics = pytest.importorskip("sklearn.metrics")
    for seed in range(20):
        torch.manual_seed(seed)
        logits, labels = torch.randn(30, classes), torch.randint(classes, (30,))
        found = node_scores(logits, labels)
        how = "binary" if classes == 2 else "micro"
        assert found["f1"] == pytest.approx(
            metrics.f1_score(labels, logits.argmax(1), average=how), abs=1e-12
        )
        assert found["accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean())


def test_node_scores_at_the_edges():
    never = torch.tensor([[1.0, 0.0]] * 3)
    assert node_scores(never, torch.tensor([0, 0, 0])) == {"f1": 0.0, "accuracy": 1.0}
    with pytest.raises(UsageError, match="no nodes"):
        node_scores(never[:0], torch.empty(0, dtype=torch.int64))
    with pytest.raises(RunError, match="diverged"):
        node_scores(never * float("nan"), torch.tensor([0, 0, 0]))


@pytest.mark.parametrize("levels", [2, 5, 1000])  # many ties, some, none
def test_link_scores_are_those_of_scikit_learn(levels):
    metrics = pytest.importorskip("sklearn.metrics")
    for seed in range(20):
        generator = np.random.default_rng(seed)
        positive = np.round(levels * generator.random(generator.integers(1, 40)))
        negative = np.round(levels * generator.random(generator.integers(1, 40)) - levels / 5)
        found = link_scores(torch.from_numpy(positive), torch.from_numpy(negative))
        truth = np.repeat([1, 0], [len(positive), len(negative)])
        scores = np.concatenate((positive, negative))
        wanted = {
            "roc_auc": metrics.roc_auc_score(truth, scores),
            "average_precision": metrics.average_precision_score(truth, scores),
        }
        assert found == pytest.approx(wanted, abs=1e-12)


def test_link_scores_at_the_edges():
    ones = torch.ones(3)
    assert link_scores(ones, -ones) == {"roc_auc": 1.0, "average_precision": 1.0}
    assert link_scores(ones, ones) == {"roc_auc": 0.5, "average_precision": 0.5}
    infinite = link_scores(ones * float("inf"), -ones * float("inf"))
    assert infinite == {"roc_auc": 1.0, "average_precision": 1.0}
    with pytest.raises(UsageError, match="no edges"):
        link_scores(ones[:0], ones)
    with pytest.raises(RunError, match="diverged"):
        link_scores(ones, torch.tensor([1.0, float("nan")]))


# --- files


def save(path, **arrays):
    np.savez(path, **arrays)
    return load_graph(path)


def test_an_archive_with_everything(tmp_path):
    graph = save(
        tmp_path / "net.npz",
        edges=np.array(PATH, dtype=np.int32),
        features=np.eye(5, 3),
        labels=np.array([1, 1, 0, 0, 2], dtype=np.int8),
        label_feature=np.arange(5),
        train_idx=[0, 2],
        val_idx=[1],
        test_idx=[4],
        weights=np.ones(3),
    )
    assert graph.name == "net"
    assert graph.nodes == 5
    assert graph.features.equal(torch.eye(5, 3))
    assert graph.labels.tolist() == [1, 1, 0, 0, 2]
    assert graph.target.tolist() == [0, 1, 2, 3, 4]
    assert {part: index.tolist() for part, index in graph.split.items()} == {
        "train": [0, 2],
        "validation": [1],
        "test": [4],
    }
    assert graph.notes == ("left out, since of no known name: weights",)


def test_sparse_features_are_the_same_as_dense_ones(tmp_path):
    sparse = pytest.importorskip("scipy.sparse")
    table = np.array([[0, 2, 0], [0, 0, 0], [1, 0, 3], [0, 0, 4]], dtype=np.float32)
    matrix = sparse.csr_matrix(table)
    parts = {"feat_data": matrix.data, "feat_indices": matrix.indices, "feat_indptr": matrix.indptr}
    graph = save(tmp_path / "a.npz", edges=PATH, feat_shape=[4, 3], **parts)
    assert graph.fingerprint == save(tmp_path / "b.npz", edges=PATH, features=table).fingerprint


def test_an_edge_list_in_any_form(tmp_path):
    lines = [("10", "9"), ("2", "10"), ("9", "2"), ("9", "1")]
    forms = {
        "comma.csv": "".join(f"{a},{b}\n" for a, b in lines),
        "header.csv": "source,target\r\n" + "".join(f"{a}, {b}\r\n" for a, b in lines),
        "other.tsv": "\ufeffparent\tchild\n" + "".join(f"{a}\t{b}\n" for a, b in lines),
        "blank.txt": "# from\n\n" + "".join(f"  {a}   {b}\n" for a, b in lines) + "# end",
        "mac.csv": "".join(f'"{a}","{b}"\r' for a, b in lines),
    }
    found = []
    for name, text in forms.items():
        (tmp_path / name).write_bytes(text.encode())
        found.append(load_graph(tmp_path / name))
        assert found[-1].name == name.split(".")[0]
    (tmp_path / "packed.tsv.gz").write_bytes(gzip.compress(forms["other.tsv"].encode()))
    (tmp_path / "packed.csv.bz2").write_bytes(bz2.compress(forms["comma.csv"].encode()))
    found += [load_graph(str(tmp_path / name)) for name in ("packed.tsv.gz", "packed.csv.bz2")]
    assert found[-1].name == "packed"
    assert found[0].edges.tolist() == [[0, 2], [1, 2], [1, 3], [2, 3]]  # 1, 2, 9, 10
    assert len({graph.fingerprint for graph in found}) == 1
    assert "the first line, parent and child, was taken for a header" in found[2].notes
    (tmp_path / "texts.csv").write_text("b,a\na,new york\n")
    assert load_graph(tmp_path / "texts.csv").edges.tolist() == [[0, 1], [0, 2]]


def test_a_folder_of_two_tables(tmp_path):
    (tmp_path / "edges.csv").write_text("source,target\nx,y\ny,z\nz,x\n")
    alone = load_graph(tmp_path)
    assert alone.name == tmp_path.name
    assert alone.nodes == 3
    (tmp_path / "nodes.csv").write_text(
        "width,id,label,split,height\n1,z,9,train,0\n2,y,10,validation,1e1\n3,x,9,test,-1\n4,w,10,,5\n"
    )
    graph = load_graph(tmp_path)
    assert graph.nodes == 4
    assert graph.edges.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert graph.features.tolist() == [[1, 0], [2, 10], [3, -1], [4, 5]]
    assert graph.labels.tolist() == [0, 1, 0, 1]
    assert [index.tolist() for index in graph.split.values()] == [[0], [1], [2]]
    (tmp_path / "nodes.csv").write_text("id\nz\ny\nx\nw\n")
    assert load_graph(tmp_path).fingerprint == graph_from("g", graph.edges, 4).fingerprint


# --- real graphs, and the one that needs no file


@pytest.mark.parametrize(
    ("name", "nodes", "edges", "features", "classes"),
    [
        ("airport.npz", 3188, 18630, 4, 4),
        ("cora.npz", 2708, 5278, 1433, 7),
        ("disease_lp.npz", 2665, 2664, 11, 2),
        ("disease_nc.npz", 1044, 1043, 0, 2),
        ("pubmed_structure.npz", 19717, 44324, 0, 3),
        ("wordnet_mammals_closure.tsv.gz", 1182, 6542, 0, 0),
        ("wordnet_mammals_direct.tsv.gz", 1182, 1182, 0, 0),
    ],
)
def test_real_graphs(name, nodes, edges, features, classes):
    graph = load_graph(shared_file(f"graphs/{name}"))
    found = graph.summary()
    assert [found[key] for key in ("nodes", "edges", "features", "classes")] == [
        nodes,
        edges,
        features,
        classes,
    ]
    assert (graph.target is not None) == (name == "airport.npz")
    if graph.split:
        assert [len(index) for index in graph.split.values()] == [20 * classes, 500, 1000]
    split = link_split(graph, 0.05, 0.1, 0)
    assert len(split.test) == len(split.test_negatives) == int(edges * 0.1)


def test_the_tree_is_a_tree_with_a_disease_that_spread():
    graph = sir_tree()
    assert graph.name == "sir-tree"
    assert graph.nodes == 1024
    assert len(graph.edges) == 1023
    for seed in range(10):
        graph = sir_tree(seed, 300)
        parent = dict(graph.edges.flip(1).tolist())  # each node but the root has one before it
        assert sorted(parent) == list(range(1, 300))
        sick = graph.labels.tolist()
        assert sick[0]
        assert all(sick[parent[node]] for node in range(1, 300) if sick[node])
        assert 0.2 < graph.labels.float().mean() < 0.45
    assert sir_tree(3).fingerprint == sir_tree(3).fingerprint != sir_tree(4).fingerprint
    with pytest.raises(UsageError, match="too small"):
        sir_tree(nodes=9)


def test_neighbours_help_to_tell_who_is_ill():
    linear = pytest.importorskip("sklearn.linear_model")
    better = 0.0
    for seed in range(3):
        graph = sir_tree(seed)
        split = node_split(graph, "balanced", 0.1, 0.6, seed)
        own, pair = graph.features, adjacency(graph.edges, graph.nodes)
        means = torch.cat((own, aggregate(pair, own), aggregate(pair, aggregate(pair, own))), 1)
        scores = []
        for x in (own, means):
            model = linear.LogisticRegression(max_iter=500, class_weight="balanced")
            model.fit(x[split["train"]], graph.labels[split["train"]])
            logits = torch.from_numpy(model.decision_function(x[split["test"]]))
            truth = graph.labels[split["test"]] == 1
            scores.append(link_scores(logits[truth], logits[~truth])["roc_auc"])
        assert 0.55 < scores[0] < 0.85
        better += (scores[1] - scores[0]) / 3
    assert better > 0.03
