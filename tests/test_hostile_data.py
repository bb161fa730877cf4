"""Malformed corpora, tokenizers and models: what they hold is used, or refused in one sentence."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import shutil

import hostile
import pytest
import torch
from hostile import as_bytes, cases, damaged_json, in_a_sentence, place_anything
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny import LLAMA, corpus, prose

from spectrain.errors import UsageError
from spectrain.tasks.lm import hub
from spectrain.tasks.lm.corpus import _read, _write
from spectrain.tasks.lm.models import build_model
from spectrain.tasks.lm.sources import find_source
from spectrain.tasks.lm.splits import SPLITS
from spectrain.tasks.lm.tokenizer import load_tokenizer, tokenize

PROSE = prose(12)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setattr(hub, "_unreachable", lambda name, kind: "no network in tests")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def text_of(data, text_field=None):
    """Read a source to its end; every document is a text that can be encoded."""
    with in_a_sentence():
        splits, notes = find_source(str(data), text_field=text_field).read(lambda words: None)
        assert sorted(splits) == sorted(SPLITS)
        for documents in splits.values():
            for document in documents:
                document.encode()
        assert all(isinstance(note, str) for note in notes)


# --- corpora ------------------------------------------------------------------------------------

text_bytes = st.one_of(
    st.binary(max_size=60),
    hostile.text.map(lambda text: text.encode(errors="surrogatepass")),
    st.tuples(st.just(PROSE.encode()), st.binary(max_size=3)).map(b"".join),
)


@cases("text files", raw=text_bytes, name=st.sampled_from(("a.txt", "a", "a.csv", "train.md")))
def test_text_files(tmp_path, raw, name):
    path = tmp_path / name
    path.write_bytes(raw)
    text_of(path)


record = st.one_of(
    st.fixed_dictionaries({"text": hostile.text}),
    st.dictionaries(st.sampled_from(("text", "content", "x")) | hostile.text, hostile.json_values),
    hostile.json_values,
)
jsonl = st.one_of(
    st.lists(record, max_size=5).map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
    st.lists(as_bytes(record), max_size=3).map(b"\n".join),
)


@cases("JSON lines", raw=jsonl, field=st.sampled_from((None, None, "x", "")))
def test_json_lines(tmp_path, raw, field):
    path = tmp_path / "a.jsonl"
    path.write_bytes(raw)
    text_of(path, field)


COMPRESS = {
    ".gz": lambda raw: gzip.compress(raw, mtime=0),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@cases(
    "compressed files",
    suffix=st.sampled_from(list(COMPRESS)),
    raw=text_bytes,
    cut=st.integers(0, 100),
    change=st.none() | st.tuples(st.integers(0, 200), st.binary(max_size=3)),
)
def test_compressed_files(tmp_path, suffix, raw, cut, change):
    packed = COMPRESS[suffix](raw)
    packed = packed[: len(packed) - cut] if cut < 50 else packed
    if change:
        at, new = change
        packed = packed[:at] + new + packed[at + 1 :]
    (tmp_path / f"a.txt{suffix}").write_bytes(packed)
    text_of(tmp_path / f"a.txt{suffix}")


@cases(
    "names of data", name=st.one_of(hostile.text, st.from_regex(r"[~./\w:-]{1,20}", fullmatch=True))
)
def test_names_of_data(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for look in (find_source, load_tokenizer):
        with in_a_sentence():
            look(name)
    with in_a_sentence(), torch.device("meta"):
        build_model(name, vocab_size=300, sequence_length=8, overrides=LLAMA, weights=False)


file_name = hostile.text.filter(lambda t: t and "\0" not in t and "/" not in t and len(t) < 200)


@cases(
    "folders",
    names=st.lists(
        file_name | st.sampled_from(("train.txt", "test/a.txt", "b\udcff.txt")), max_size=4
    ),
)
def test_folders(tmp_path, names):
    folder = tmp_path / "data"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in names:
        path = folder / name
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_text(PROSE)
        except (OSError, UnicodeEncodeError):
            continue  # the file system has no such name
    text_of(folder)


def test_what_is_no_ordinary_file_is_not_waited_for(tmp_path):
    (tmp_path / "a.txt").write_text(PROSE)
    os.mkfifo(tmp_path / "pipe.txt")
    for data in (tmp_path, tmp_path / "pipe.txt", "/dev/zero"):
        with pytest.raises(UsageError, match="is no ordinary file"):
            find_source(str(data))


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """A cached corpus: its folder."""
    folder = tmp_path_factory.mktemp("cached") / "corpus"
    _write(folder, corpus())
    return folder


@cases(
    "cached corpora",
    file=st.sampled_from(("corpus.json", "tokens.safetensors", "tokenizer.json")),
    how=st.sampled_from(("json", "cut", "byte", "gone")),
    at=st.floats(0, 1),
    new=st.binary(max_size=2),
    data=st.data(),
)
def test_cached_corpora(tmp_path, cached, file, how, at, new, data):
    folder = tmp_path / "corpus"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(cached, folder)
    raw = (folder / file).read_bytes()
    place = int(at * (len(raw) - 1))
    if how == "json" and file.endswith("json"):
        raw = data.draw(damaged_json(raw))
    elif how == "byte":
        raw = raw[:place] + new + raw[place + 1 :]
    else:
        raw = raw[:place]
    (folder / file).write_bytes(raw)
    if how == "gone":
        (folder / file).unlink()
    with in_a_sentence():
        found = _read(folder, "text", None)
        if found is not None:  # then it is what was written
            assert found.fingerprint == corpus().fingerprint
            assert all(isinstance(note, str) for note in found.notes)


@pytest.mark.parametrize("wrong", ["shape", "range"])
def test_a_cached_corpus_with_a_matching_sum_is_looked_at_all_the_same(tmp_path, cached, wrong):
    """Whoever can write the tokens can write their sum."""
    folder = tmp_path / "corpus"
    shutil.copytree(cached, folder)
    splits = {name: tokens.clone() for name, tokens in corpus().splits.items()}
    if wrong == "shape":
        splits["train"] = splits["train"][:, None]
    else:
        splits["train"][3] = 40_000
    save_file(splits, folder / "tokens.safetensors")
    import dataclasses

    forged = dataclasses.replace(corpus(), splits=splits)
    (folder / "corpus.json").write_text(json.dumps(forged.summary()))
    assert _read(folder, "text", None) is None


# --- tokenizers and models ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder_of_a_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    corpus().tokenizer.save_pretrained(folder)
    return folder


@cases(
    "tokenizers",
    file=st.sampled_from(("tokenizer.json", "tokenizer_config.json")),
    data=st.data(),
)
def test_tokenizers(tmp_path, folder_of_a_tokenizer, file, data):
    folder = tmp_path / "tokenizer"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(folder_of_a_tokenizer, folder)
    (folder / file).write_bytes(data.draw(damaged_json((folder / file).read_bytes())))
    with in_a_sentence():
        tokenizer = load_tokenizer(str(folder))
        tokens = tokenize(tokenizer, [PROSE[:200]])
        assert ((tokens >= 0) & (tokens < len(tokenizer))).all()


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 32,
    "vocab_size": 300,
    **{key: int(value) for key, value in LLAMA.items()},
}
# Sizes that a machine could allocate are tried: they end in a model, or in no memory.
small_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 40), st.floats(), hostile.text)
    | st.sampled_from((2**63, 10**30, 10**400)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(hostile.text, inner, max_size=3),
    max_leaves=5,
)
EXTRAS = (
    {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}},
    {"model_type": "evil", "auto_map": {"AutoConfig": "evil.py--Config"}},
    {"architectures": ["os.system"]},
    {"_name_or_path": "../../evil"},
    {"torch_dtype": "__import__('os').abort()"},
    {"attn_implementation": "evil/kernel"},
    {"_attn_implementation": "evil/kernel"},
    {"quantization_config": {"quant_method": "evil"}},
    {"rope_scaling": {"rope_type": "evil", "factor": "x"}},
    {"num_hidden_layers": 10**9},
    {},
)


@cases(
    "model configurations",
    raw=as_bytes(
        place_anything(st.sampled_from(EXTRAS).map(lambda more: CONFIG | more), small_values)
    ),
)
def test_model_configurations(tmp_path, raw):
    (tmp_path / "config.json").write_bytes(raw)
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    with in_a_sentence(), torch.device("meta"):
        build_model(str(tmp_path), vocab_size=300, sequence_length=16, weights=False)


KEYS = (
    *LLAMA,
    *("rms_norm_eps", "hidden_act", "rope_parameters", "tie_word_embeddings", "vocab_size"),
    *("max_position_embeddings", "model_type", "auto_map", "pad_token_id", "attention_dropout"),
    *("_attn_implementation", "dtype", "head_dim", "architectures", "layer_types"),
)


@cases(
    "model overrides",
    overrides=st.dictionaries(
        st.sampled_from(KEYS) | hostile.text,
        st.one_of(small_values.map(str), hostile.text, st.sampled_from(hostile.NESTED)),
        max_size=2,
    ),
)
def test_model_overrides(overrides):
    with in_a_sentence(), torch.device("meta"):
        build_model(
            "llama-9m", vocab_size=300, sequence_length=16, overrides={**LLAMA, **overrides}
        )
