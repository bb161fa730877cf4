"""Where text comes from, how it is split and tokenized, and what is said when it cannot be."""

import bz2
import gzip
import json
import lzma
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from spectrain.errors import RunError, UsageError
from spectrain.tasks.lm import hub, tokenizer
from spectrain.tasks.lm.corpus import Corpus, default_cache, load_corpus
from spectrain.tasks.lm.sources import find_source
from spectrain.tasks.lm.splits import by_position

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "mats",
    "while",
    "bright",
    "ships",
    "sailed",
    "past",
    "harbours",
]


def prose(lines: int, seed: int = 0) -> str:
    words = random.Random(seed)
    return "".join(" ".join(words.choices(WORDS, k=8)) + ".\n" for _ in range(lines))


def read(data: object, **options: Any) -> tuple[dict[str, list[str]], list[str]]:
    return find_source(str(data), **options).read(lambda words: None)


def load(data: Path | str | None, cache: Path, vocab_size: int = 300, **options: Any) -> Corpus:
    name = None if data is None else str(data)
    return load_corpus(name, vocab_size=vocab_size, cache=cache, **options)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(prose(400), encoding="utf-8")
    return path


# --- sources


def test_standard_library_has_no_tests_and_nothing_installed() -> None:
    source = find_source(None)
    splits, notes = source.read(lambda words: None)
    assert source.name.startswith("python-stdlib 3.")
    assert notes == []
    text = "\n".join(text for split in splits.values() for text in split)
    assert "class JSONDecoder" in text
    assert "import torch" not in text
    assert "class TestUnicode" not in text
    sizes = {split: sum(map(len, texts)) for split, texts in splits.items()}
    assert 0.8 < sizes["train"] / sum(sizes.values()) < 0.98
    assert find_source("python-stdlib").key == source.key


def test_a_file_is_split_by_position_at_line_ends(book: Path) -> None:
    splits, notes = read(book)
    text = book.read_text()
    assert "".join(splits["train"] + splits["validation"] + splits["test"]) == text
    assert len(splits["train"][0]) == pytest.approx(0.9 * len(text), rel=0.01)
    assert all(part[0].endswith(".\n") for part in splits.values())
    assert "by position" in notes[0]


def test_many_short_documents_are_not_cut() -> None:
    documents = [f"{index}\nline" for index in range(400)]
    splits = by_position(documents)
    assert [text for split in splits.values() for text in split] == documents
    assert [len(split) for split in splits.values()] == pytest.approx([360, 20, 20], abs=3)


def test_a_text_without_line_ends_is_cut_all_the_same() -> None:
    splits = by_position(["x" * 1000])
    assert [len(split[0]) for split in splits.values()] == [900, 50, 50]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_compressed_is_the_same_text(book: Path, suffix: str) -> None:
    compress = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix]
    packed = book.with_name("packed.md" + suffix)
    packed.write_bytes(compress(book.read_bytes()))
    assert read(packed) == read(book)


def test_folder_with_named_splits(tmp_path: Path) -> None:
    (tmp_path / "train.txt.gz").write_bytes(gzip.compress(prose(50).encode()))
    (tmp_path / "dev-1.txt").write_text("held out\n")
    (tmp_path / "Test.txt").write_text("kept for the end\n")
    (tmp_path / "books.tsv").write_text("author\ttitle\n")
    (tmp_path / "trainer.txt").write_text("no split\n")
    (tmp_path / ".hidden").write_bytes(b"\0")
    splits, notes = read(tmp_path)
    assert splits == {
        "train": [prose(50)],
        "validation": ["held out\n"],
        "test": ["kept for the end\n"],
    }
    assert len(notes) == 1
    assert "books.tsv, trainer.txt" in notes[0]


def test_a_missing_split_is_cut_from_training(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(prose(200))
    (tmp_path / "test.txt").write_text("kept for the end\n")
    splits, notes = read(tmp_path)
    assert splits["test"] == ["kept for the end\n"]
    assert splits["train"][0] + splits["validation"][0] == prose(200)
    assert "no validation file" in notes[0]


def test_folder_without_named_splits_is_split_by_file(tmp_path: Path) -> None:
    for index in range(200):
        folder = tmp_path / str(index % 3)
        folder.mkdir(exist_ok=True)
        (folder / f"{index}.txt").write_text(f"document {index}\n")
    before, _ = read(tmp_path)
    assert sum(map(len, before.values())) == 200
    (tmp_path / "more.txt").write_text("one more\n")
    after, _ = read(tmp_path)
    assert all(set(before[split]) <= set(after[split]) for split in before)


def test_json_lines_and_their_field(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    records = [{"question": f"how many are {n}?", "answer": f"{n}\n"} for n in range(300)]
    path.write_text("\n".join(map(json.dumps, records)) + "\n\n")
    splits, _ = read(path, text_field="question")
    assert len(splits["train"]) == pytest.approx(270, abs=3)
    assert splits["train"][7] == "how many are 7?"
    with pytest.raises(UsageError, match=r'line 1 has no field "text" or "content".*answer, quest'):
        read(path)


def test_max_bytes_bounds_the_text(book: Path) -> None:
    splits, _ = read(book, max_bytes=5000)
    assert sum(len(text) for split in splits.values() for text in split) == 5000
    assert find_source(str(book), max_bytes=5000).key != find_source(str(book)).key


def test_a_key_follows_the_content_not_the_place(book: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "book.txt"
    copy.write_bytes(book.read_bytes())
    assert find_source(str(copy)).key == find_source(str(book)).key
    copy.write_text(prose(400, seed=1))
    assert find_source(str(copy)).key != find_source(str(book)).key


# --- what cannot be used


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n\n", "holds no text"),
        ("a.txt", b"fine until \xff here", r"a\.txt is not UTF-8 text .*at byte 11\)"),
        ("a.txt", b"zero \0 byte", r"a\.txt is not UTF-8 text \(zero byte at byte 5\)"),
        ("a.gz", b"not compressed", r"a\.gz is no intact \.gz file"),
        ("a.gz", gzip.compress(b"cut off" * 99, mtime=0)[:-9], r"a\.gz is no intact \.gz file"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a\.jsonl line 2 does not parse as JSON"),
        ("a.jsonl", b'["x"]', r"line 1 is no JSON object but list"),
        ("a.jsonl", b'{"text": 3}', 'the field "text" holds no text but int'),
        ("a.jsonl", b'{"text": "\\ud800"}', "half a surrogate pair"),
    ],
)
def test_a_file_that_cannot_be_read(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=sentence):
        read(tmp_path / name)


def test_a_missing_file_is_told_apart(book: Path) -> None:
    with pytest.raises(UsageError, match=r"no file or folder .*did you mean .*book\.txt"):
        find_source(str(book.with_name("boook.txt")))
    with pytest.raises(UsageError, match="not even a folder"):
        find_source(str(book.parent / "nowhere" / "book.txt"))


def test_too_short_for_three_splits(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.txt").write_text("one line\n")
    with pytest.raises(UsageError, match="too short: nothing is left for validation and test"):
        load(tmp_path / "a.txt", cache)


def test_vocabulary_below_the_bytes(book: Path, cache: Path) -> None:
    with pytest.raises(UsageError, match=r"vocab_size is 256; .* at least 257"):
        load(book, cache, vocab_size=256)


# --- hub data sets; no test goes over the network


def test_an_unreachable_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ConnectionError("no route to host\nlong explanation")

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", fail)
    with pytest.raises(RunError, match=r"no file or folder 'org/set:en', .*\(no route to host\)"):
        read("org/set:en")


def test_a_hub_data_set_is_streamed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    real = datasets.load_dataset
    for split, count in (("train", 1000), ("validation", 200)):
        lines = [json.dumps({"text": f"{split} text {n:04}", "id": n}) for n in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))

    def load_dataset(name: str, config: str | None, streaming: bool) -> Any:
        assert (name, config, streaming) == ("org/set", "en", True)
        files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")}
        return real("json", data_files=files, streaming=True)

    monkeypatch.setattr(hub, "_unreachable", lambda name, kind: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    splits, notes = read("org/set:en", max_bytes=8000)
    lengths = {split: sum(map(len, texts)) for split, texts in splits.items()}
    assert lengths["train"] + lengths["test"] == 8000
    assert lengths["validation"] == 800
    assert splits["validation"][0] == "validation text 0000"
    assert len(notes) == 2
    with pytest.raises(UsageError, match='has no field "body"; its fields are id, text'):
        read("org/set:en", text_field="body")


# --- tokens


def test_decoding_gives_the_text_back(book: Path, cache: Path) -> None:
    corpus = load(book, cache)
    text = corpus.tokenizer.decode(corpus.splits["train"])
    end = corpus.tokenizer.eos_token
    assert end == "<|endoftext|>"
    assert text == read(book)[0]["train"][0] + end
    assert corpus.splits["train"].dtype == torch.int32
    assert corpus.bytes["train"] == len(text) - len(end)
    assert corpus.vocab_size == 300


def test_pieces_change_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "def f(x):\n\n    return  [x,\t'ä', 1234]  # naïve\r\n" * 50 + "x" * 300
    bpe = tokenizer.train_bpe([text], 300)
    whole = bpe.backend_tokenizer.encode(text).ids
    monkeypatch.setattr(tokenizer, "_PIECE", 20)
    monkeypatch.setattr(tokenizer, "_BATCH", 50)
    pieces = tokenizer.tokenize(bpe, [text[:-300], text])
    assert "".join(tokenizer._pieces(text)) == text
    ends = (pieces == bpe.eos_token_id).nonzero().flatten().tolist()
    assert len(ends) == 2
    assert pieces[: ends[0]].tolist() == bpe.backend_tokenizer.encode(text[:-300]).ids
    # A run of 300 letters without white space has to be cut somewhere.
    assert len(pieces) - ends[0] - 2 == pytest.approx(len(whole), rel=0.05)


def test_long_texts_are_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "TRAINING_CHARACTERS", 1000)
    documents = [f"{index:09} " for index in range(1000)]
    sample = list(tokenizer._sample(documents))
    assert len(sample) == 100
    assert [int(text) // 100 for text in sample[5::10]] == list(range(10))


def test_a_short_text_gives_a_small_vocabulary(book: Path, cache: Path) -> None:
    corpus = load(book, cache, vocab_size=5000)
    assert 257 < corpus.vocab_size < 500
    assert any(f"no more than {corpus.vocab_size} tokens" in note for note in corpus.notes)


def test_a_given_tokenizer(book: Path, tmp_path: Path, cache: Path) -> None:
    trained = load(book, cache)
    trained.tokenizer.save_pretrained(tmp_path / "tokenizer")
    for _ in range(2):  # prepared, then from the cache
        corpus = load(book, cache, vocab_size=999, tokenizer=str(tmp_path / "tokenizer"))
        assert corpus.fingerprint == trained.fingerprint
    with pytest.raises(UsageError, match="holds no tokenizer"):
        load(book, cache, tokenizer=str(cache))


# --- the cache


def test_the_same_text_gives_the_same_bytes(book: Path, tmp_path: Path) -> None:
    first, second = (load(book, tmp_path / name) for name in ("one", "two"))
    assert first.fingerprint == second.fingerprint
    files = [sorted(path for path in (tmp_path / n).rglob("*.*")) for n in ("one", "two")]
    assert [path.name for path in files[0]] == [
        "corpus.json",
        "tokenizer.json",
        "tokens.safetensors",
    ]
    for one, two in zip(*files, strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_a_prepared_corpus_is_not_prepared_again(book: Path, cache: Path) -> None:
    first = load(book, cache)
    said: list[str] = []
    again = load(book, cache, progress=said.append)
    assert said == []
    assert again.summary() == first.summary()
    assert all(torch.equal(again.splits[name], first.splits[name]) for name in first.splits)
    load(book, cache, vocab_size=310, progress=said.append)
    assert any("learning a byte-level BPE of 310 tokens" in words for words in said)
    assert said[-1].endswith("100%")


@pytest.mark.parametrize("file", ["corpus.json", "tokenizer.json", "tokens.safetensors"])
@pytest.mark.parametrize("harm", ["missing", "cut", "altered"])
def test_a_damaged_cache_is_rebuilt(book: Path, cache: Path, file: str, harm: str) -> None:
    first = load(book, cache)
    (path,) = cache.rglob(file)
    content = path.read_bytes()
    if harm == "missing":
        path.unlink()
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + (b"7" * 30 + content[middle + 30 :]) * (harm != "cut"))
    assert load(book, cache).summary() == first.summary()
    assert path.read_bytes() == content
    assert len(list(cache.iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_only_noted(book: Path, tmp_path: Path) -> None:
    corpus = load(book, book)  # a file where the folder should be
    assert "prepared anew each time" in corpus.notes[-1]
    assert corpus.fingerprint == load(book, tmp_path / "cache").fingerprint


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPECTRAIN_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("SPECTRAIN_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert default_cache() == tmp_path / "x" / "spectrain"
