"""Malformed graphs: what files hold is used, or refused in one sentence; nothing is executed."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import zipfile

import hostile
import numpy as np
import pytest
import torch
from hostile import cases, in_a_sentence
from hypothesis import strategies as st

from spectrain.errors import UsageError
from spectrain.tasks.graph.files import load_graph


def look_at(path):
    """Load a graph; whatever is loaded keeps the promises of `Graph`."""
    with in_a_sentence():
        graph = load_graph(path)
        i, j = graph.edges.T
        assert len(graph.edges)
        assert ((i >= 0) & (i < j) & (j < graph.nodes)).all()
        codes = i * graph.nodes + j
        assert (codes[1:] > codes[:-1]).all()
        for tensor in (graph.features, graph.labels, graph.target):
            assert tensor is None or len(tensor) == graph.nodes
        if graph.features is not None:
            assert graph.features.isfinite().all()
        if graph.labels is not None:
            assert graph.labels.unique().equal(torch.arange(graph.classes))
        if graph.split is not None:
            together = torch.cat(list(graph.split.values()))
            assert len(together.unique()) == len(together)
            assert ((together >= 0) & (together < graph.nodes)).all()
        assert all(isinstance(note, str) for note in graph.notes)
        assert len(graph.summary()["fingerprint"]) == 64


PATH = np.array([[0, 1], [1, 2], [2, 3]])
KINDS = ("int8", "int64", "uint64", "float16", "float64", "bool", "U3", "S3", "complex64", "M8[s]")
NAMES = ("edges", "features", "labels", "label_feature", "train_idx", "val_idx", "test_idx", "x")


@st.composite
def arrays(draw):
    """Arrays of any kind with small, odd or huge entries."""
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    kind = np.dtype(draw(st.sampled_from(KINDS)))
    size = int(np.prod(shape))
    values = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    array = np.array(values, dtype=np.int64).reshape(shape).astype(kind)
    if size and kind.kind in "iuf" and draw(st.booleans()):
        odd = [np.inf, np.nan, -1.0] if kind.kind == "f" else [np.iinfo(kind).max]
        array.flat[draw(st.integers(0, size - 1))] = draw(st.sampled_from(odd))
    return array


whole = {
    "edges": PATH,
    "features": np.eye(4, 2),
    "labels": np.array([0, 1, 1, 2]),
    "train_idx": np.array([0]),
    "val_idx": np.array([1]),
    "test_idx": np.array([3]),
}


@cases(
    "graphs: archives of arrays",
    kept=st.sets(st.sampled_from(sorted(whole))),
    others=st.dictionaries(st.sampled_from(NAMES), arrays(), max_size=2),
)
def test_archives_of_arrays(tmp_path, kept, others):
    path = tmp_path / "a.npz"
    np.savez(path, **{name: whole[name] for name in kept} | others)
    look_at(path)


def packed(**entries):
    buffer = io.BytesIO()
    np.savez(buffer, **entries)
    return buffer.getvalue()


INTACT = packed(**whole)
HEADER = b"\x93NUMPY\x01\x00"


def archive_of(raw, name="edges.npy"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, raw)
    return buffer.getvalue()


def with_header(text):
    return archive_of(
        HEADER + len(text.encode()).to_bytes(2, "little") + text.encode() + b"\0" * 48
    )


headers = st.one_of(
    hostile.text.filter(lambda text: all(ord(c) < 256 for c in text)),
    st.sampled_from([deep for deep in hostile.NESTED if len(deep) < 60_000]),
    st.builds(
        "{{'descr': {!r}, 'fortran_order': {}, 'shape': {}}}".format,
        st.sampled_from(("<i8", "|O", "<f8", "|V0", "|V8", "<U9999999", "<i3", "", "evil")),
        st.sampled_from(("False", "True", "None", "__import__('os').abort()")),
        st.sampled_from(
            ("(3, 2)", "(2,)", "()", "(10**12, 2)", "(-1, 2)", "(4611686018427387904, 2)")
        )
        | st.integers(-(2**70), 2**70).map("({}, 2)".format),
    ),
)
archive_bytes = st.one_of(
    st.binary(max_size=60),
    st.integers(0, len(INTACT)).map(lambda end: INTACT[:end]),
    st.tuples(st.integers(0, len(INTACT) - 1), st.binary(min_size=1, max_size=3)).map(
        lambda change: INTACT[: change[0]] + change[1] + INTACT[change[0] + len(change[1]) :]
    ),
    headers.map(with_header),
    st.tuples(st.binary(max_size=40), st.sampled_from(("edges", "edges.npy", "../edges.npy"))).map(
        lambda entry: archive_of(*entry)
    ),
)


@cases("graphs: archives of bytes", raw=archive_bytes)
def test_archives_of_bytes(tmp_path, raw):
    path = tmp_path / "a.npz"
    path.write_bytes(raw)
    look_at(path)


class Evil:
    """Executes something when it is unpickled."""

    def __reduce__(self):
        return os._exit, (3,)


def test_nothing_is_unpickled(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, edges=np.array([[Evil(), Evil()]], dtype=object))
    with pytest.raises(UsageError, match=r"no intact \.npz file of plain arrays"):
        load_graph(path)
    np.savez(path, edges=PATH, other=np.array([Evil()], dtype=object))
    assert load_graph(path).notes[0] == "left out, since of no known name: other"


@pytest.mark.parametrize(
    ("local", "central", "new", "words"),
    [(8, 10, 99, "compression method is not supported"), (6, 8, 1, "is encrypted")],
)
def test_archives_that_zipfile_does_not_open(tmp_path, local, central, new, words):
    raw = bytearray(packed(edges=PATH))
    raw[local] = raw[raw.index(b"PK\x01\x02") + central] = new
    (tmp_path / "a.npz").write_bytes(raw)
    with pytest.raises(UsageError, match=words):
        load_graph(tmp_path / "a.npz")


SPARSE = {
    "feat_data": np.ones(3),
    "feat_indices": np.array([0, 1, 1]),
    "feat_indptr": np.array([0, 1, 2, 3, 3]),
    "feat_shape": np.array([4, 2]),
}
odd_numbers = st.lists(
    st.integers(-1, 4) | st.sampled_from((2**31, 2**62, 2**63 - 1, -(2**63))), max_size=5
).map(lambda values: np.array(values, dtype=np.int64))


@cases(
    "graphs: sparse features",
    changes=st.dictionaries(
        st.sampled_from(sorted(SPARSE)), st.none() | odd_numbers | arrays(), max_size=2
    ),
)
def test_sparse_features(tmp_path, changes):
    path = tmp_path / "a.npz"
    entries = {name: array for name, array in (SPARSE | changes).items() if array is not None}
    np.savez(path, edges=PATH, **entries)
    look_at(path)


# --- tables

cell = hostile.text | st.sampled_from(
    ("a", "b", "1", "2", "03", '"', '"a', "#", "id", "source", "n" * 140_000)
)
table = st.builds(
    lambda rows, separator, end: end.join(separator.join(row) for row in rows),
    st.lists(
        st.lists(cell, min_size=1, max_size=3) | st.lists(cell, min_size=2, max_size=2), max_size=6
    ),
    st.sampled_from((",", "\t", " ", ";", ", ")),
    st.sampled_from(("\n", "\r\n", "\r")),
)
raw_table = st.one_of(
    table.map(lambda text: text.encode(errors="surrogatepass")), st.binary(max_size=40)
)


@cases(
    "graphs: edge lists",
    raw=raw_table,
    name=st.sampled_from(("a.csv", "a.tsv", "a.txt", "a.csv.gz", "a.txt.xz", "a.md", "a")),
    compress=st.booleans(),
)
def test_edge_lists(tmp_path, raw, name, compress):
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw, mtime=0) if compress and name.endswith("gz") else raw)
    look_at(path)


value = (
    st.sampled_from(("0", "1", "-1.5", "nan", "1e999", "٣", "train", "test", "a", ""))
    | hostile.text
)
nodes_table = st.builds(
    lambda header, rows: "\n".join(",".join(row) for row in [header, *rows]),
    st.lists(st.sampled_from(("id", "label", "split", "x", "y", "")), min_size=1, max_size=4).map(
        lambda header: ["id", *header[1:]]
    ),
    st.lists(st.lists(value, min_size=1, max_size=4), max_size=4).map(
        lambda rows: [[name, *row[1:]] for name, row in zip("abcd", rows, strict=False)]
    ),
)


@cases(
    "graphs: folders",
    edges=st.none() | raw_table | st.just(b"source,target\na,b\nb,c\n"),
    nodes=st.none() | raw_table | nodes_table.map(lambda text: text.encode(errors="surrogatepass")),
)
def test_folders(tmp_path, edges, nodes):
    folder = tmp_path / "graph"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, raw in (("edges.csv", edges), ("nodes.csv", nodes)):
        if raw is not None:
            (folder / name).write_bytes(raw)
    look_at(folder)


NODES = "id,label,split,x\n"
SENTENCES = {
    "no edges.csv": (None, None, "has no file edges.csv"),
    "an empty list": ("source,target\n", None, "has no edges"),
    "three columns": ("a,b,c\n", None, "line 1 is no edge"),
    "a comment, then one": ("# all\n\na,b\nc\n", None, "line 4 is no edge"),
    "no id": ("a,b\n", "name,x\na,1\n", 'one of them "id"'),
    "twice": ("a,b\n", "id\na\nb\na\n", "line 4 has the id 'a' a second time"),
    "unknown": ("a,b\na,c\n", "id\na\nb\n", "line 2 names 'c', a node that nodes.csv does not"),
    "too long": ("a,b\n", f"{NODES}a,1,,3\nb,1,,3,5\n", "line 3 has 5 columns, and the header 4"),
    "no number": ("a,b\n", f"{NODES}a,1,,3\nb,2,,red\n", "line 3: 'red' in the column 'x'"),
    "not finite": ("a,b\n", f"{NODES}a,1,train,3\nb,2,test,nan\n", "features of node 1"),
    "no label": ("a,b\n", f"{NODES}a,1,,3\nb,,,3\n", "line 3 has no label"),
    "no split": ("a,b\n", f"{NODES}a,1,dev,3\nb,1,,3\n", "'dev' is no split"),
    "nameless": ("a,b\n", "id,\na,1\nb,1\n", "a column without a name"),
    "the same": ("a,b\n", "id,x,x\na,1,1\nb,1,1\n", "two columns 'x'"),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_what_is_wrong_with_tables_is_said(tmp_path, case):
    edges, nodes, words = SENTENCES[case]
    for name, text in (("edges.csv", edges), ("nodes.csv", nodes)):
        if text is not None:
            (tmp_path / name).write_text(text)
    with pytest.raises(UsageError) as caught:
        load_graph(tmp_path)
    assert words in str(caught.value)


def test_paths_that_hold_no_graph(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "graph.gml").write_text("graph []")
    for name, words in (
        ("gone.npz", "there is no file or folder"),
        ("pipe.csv", "is no ordinary file"),
        ("graph.gml", "is of no known kind"),
        ("a\0b", "there is no file or folder|cannot be looked for"),
    ):
        with pytest.raises(UsageError, match=words):
            load_graph(f"{tmp_path}/{name}")


def test_an_archive_that_would_fill_the_memory_is_not_unpacked(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(
        path, edges=PATH, feat_shape=[2**40, 2**40], **{n: SPARSE[n] for n in list(SPARSE)[:3]}
    )
    with pytest.raises(UsageError, match="too many features to be held in a table"):
        load_graph(path)
