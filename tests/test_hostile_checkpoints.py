"""Malformed checkpoints, also with sums that agree: used whole, passed over, or refused by name."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings

import hostile
import pytest
import torch
from hostile import cases, damaged_json, in_a_sentence
from hypothesis import strategies as st
from tiny import make_options, make_task, run

import spectrain
from spectrain import SST
from spectrain.runs import checkpoint, position
from spectrain.runs.directory import identity
from spectrain.runs.export import export
from spectrain.runs.files import read_json
from spectrain.runs.restore import restore

METHOD = SST(4, resample_every=5)
TENSORS = ("model.safetensors", "optimizer.safetensors")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A finished run with one checkpoint."""
    folder = tmp_path_factory.mktemp("run") / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(folder, METHOD, eval_every=0)
    return folder


@pytest.fixture
def copy(original, tmp_path):
    """A function that makes a new copy of the run; (run, checkpoint's folder, run's identity)."""

    def make():
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(original, folder)
        (found,) = checkpoint.on_disk(folder / "checkpoints").values()
        return folder, found, identity(read_json(folder / "config.json"))

    return make


@pytest.fixture(scope="module")
def fresh():
    """Model, optimizer and what makes the optimizer, to restore into."""
    torch.manual_seed(1)
    model = spectrain.apply(make_task().build_model(), METHOD, report=None)
    make = make_options().build_optimizer
    return model, make(spectrain.param_groups(model, 1e-2)), make


def forge(folder, name, raw):
    """Write a file of a checkpoint, and its sum into the manifest."""
    (folder / name).write_bytes(raw)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@cases("manifests", data=st.data(), how=st.sampled_from(("manifest", "manifest", "path", "file")))
def test_manifests(copy, data, how):
    folder, path, name = copy()
    manifest = json.loads((path / "manifest.json").read_text())
    if how == "manifest":
        raw = data.draw(damaged_json((path / "manifest.json").read_bytes()))
        (path / "manifest.json").write_bytes(raw)
    elif how == "path":  # a file elsewhere, by its name
        there = data.draw(st.sampled_from(("../../config.json", "/etc/passwd", "../x", "~/x")))
        manifest["files"][there] = manifest["files"].pop(data.draw(st.sampled_from(TENSORS)))
        (path / "manifest.json").write_text(json.dumps(manifest))
    else:
        file = path / data.draw(st.sampled_from(checkpoint.FILES))
        raw = file.read_bytes()
        file.unlink()
        kind = data.draw(st.sampled_from(("gone", "link", "folder", "longer", "shorter")))
        if kind == "link":
            file.symlink_to("/etc/passwd")
        elif kind == "folder":
            file.mkdir()
        elif kind != "gone":
            file.write_bytes(raw + b"x" if kind == "longer" else raw[:-1])
    with in_a_sentence():
        search = checkpoint.newest(folder / "checkpoints", name)
        if search.found is None:
            assert len(search.passed_over) == 1
            assert "\n" not in search.passed_over[0]
        else:  # nothing that counts has changed
            files = json.loads((path / "manifest.json").read_text())["files"]
            for file, sums in manifest["files"].items():
                assert sums.items() <= files[file].items()


def restored(folder, name, fresh):
    """What a run does that goes on: find, read, restore; and it says no more than a sentence."""
    with in_a_sentence():
        search = checkpoint.newest(folder / "checkpoints", name)
        assert search.found is not None, search.passed_over
        there, _ = position.read(search.found)
        search.found.rows()
        restore(search.found, *fresh)
        assert there.step == 12


@cases("checkpoint states", data=st.data())
def test_states(copy, fresh, data):
    folder, path, name = copy()
    forge(path, "state.json", data.draw(damaged_json((path / "state.json").read_bytes())))
    restored(folder, name, fresh)


SHAPES = st.lists(st.integers(-2, 9) | st.sampled_from((2**31, 2**62, 2**63, 2**64)), max_size=4)
DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "U8", "BOOL", "C64", "x", "", "F4")


def with_header(raw, data):
    """A safetensors file with a header that is damaged somehow."""
    length = int.from_bytes(raw[:8], "little")
    header, body = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    how = data.draw(
        st.sampled_from(
            ("json", "json", "length", "cut", "shape", "dtype", "offsets", "twice", "name")
        )
    )
    name = data.draw(st.sampled_from([key for key in header if key != "__metadata__"]))
    entry = header[name]
    if how == "json":
        text = data.draw(damaged_json(raw[8 : 8 + length]))
    else:
        if how == "shape":
            entry["shape"] = data.draw(SHAPES)
        elif how == "dtype":
            entry["dtype"] = data.draw(st.sampled_from(DTYPES))
        elif how == "offsets":
            moved = st.integers(-8, 8) | st.sampled_from((2**63, len(body), -len(body)))
            entry["data_offsets"] = [n + data.draw(moved) for n in entry["data_offsets"]]
        elif how == "name":
            header[data.draw(hostile.text)] = header.pop(name)
        text = json.dumps(header).encode()
        if how == "twice":
            text = text[:-1] + f", {json.dumps(name)}: {json.dumps(entry)}}}".encode()
    size = len(text)
    if how == "length":
        size = data.draw(st.sampled_from((0, 1, size - 1, size + 1, 10**8, 2**63, 2**64 - 1)))
    whole = size.to_bytes(8, "little") + text + body
    return whole[: data.draw(st.integers(0, len(whole)))] if how == "cut" else whole


@cases("safetensors", file=st.sampled_from(TENSORS), data=st.data())
def test_safetensors(copy, fresh, file, data):
    folder, path, name = copy()
    forge(path, file, with_header((path / file).read_bytes(), data))
    restored(folder, name, fresh)


MERGED = (
    *("config.json", "model/config.json", "tokenizer/tokenizer_config.json"),
    *("state.json", "probe.safetensors", "model.safetensors"),
)


@cases("merge", file=st.sampled_from(MERGED), data=st.data())
def test_merge(copy, tmp_path, file, data):
    folder, path, _ = copy()
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    if file.endswith("safetensors"):
        forge(path, file, with_header((path / file).read_bytes(), data))
    else:
        target = path if file == "state.json" else folder
        new = data.draw(damaged_json((target / file).read_bytes()))
        forge(path, file, new) if file == "state.json" else (target / file).write_bytes(new)
    before = sorted(path for path in tmp_path.rglob("*") if out not in path.parents)
    with in_a_sentence():
        export(folder, out)
    after = sorted(path for path in tmp_path.rglob("*") if out not in (path, *path.parents))
    assert after == before
