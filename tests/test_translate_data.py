"""Parallel text from every form it comes in, its vocabularies, and the order of batches."""

from __future__ import annotations

import gzip
import json

import pytest
import torch

from spectrain.errors import RunError, UsageError
from spectrain.tasks.translate.batches import Batches
from spectrain.tasks.translate.builtin import PAIRS, english, german, numerals
from spectrain.tasks.translate.corpus import load_corpus
from spectrain.tasks.translate.options import TranslateOptions
from spectrain.tasks.translate.vocabulary import END, PAD, START, Vocabularies


def texts(count, word):
    return [f"{word} {i} {'x' * (i % 5)}".strip() for i in range(count)]


def lines(path, content, pack=bytes):
    path.write_bytes(pack("".join(f"{line}\n" for line in content).encode()))


def folder(path, splits=("train", "val", "test"), pack=bytes, end=""):
    path.mkdir()
    for split in splits:
        lines(path / f"{split}.de{end}", texts(60, f"{split} Katze"), pack)
        lines(path / f"{split}.en{end}", texts(60, f"{split} cat"), pack)
    return path


def load(path, **options):
    return load_corpus(TranslateOptions(data=str(path), **options))


# --- corpora -----------------------------------------------------------------------------------


def test_a_folder_of_splits(tmp_path):
    corpus = load(folder(tmp_path / "captions"))
    assert (corpus.name, list(corpus.splits)) == ("captions", ["train", "validation", "test"])
    assert corpus.splits["validation"][0][3] == "val Katze 3 xxx"
    assert corpus.splits["validation"][1][3] == "val cat 3 xxx"
    assert corpus.notes == ()
    turned = load(tmp_path / "captions", source="en", target="de")
    assert turned.splits["test"] == corpus.splits["test"][::-1]
    assert turned.fingerprint != corpus.fingerprint


def test_a_folder_of_compressed_files_with_named_tests(tmp_path):
    splits = "train", "val", "test_2017", "test_2016"
    path = folder(tmp_path / "multi", splits, gzip.compress, ".gz")
    corpus = load(path)
    assert corpus.splits["test"][0][0] == "test_2016 Katze 0"
    assert corpus.notes == ("test data: test_2016",)
    assert load(path, test_set="test_2017").splits["test"][0][0] == "test_2017 Katze 0"
    with pytest.raises(UsageError, match="has test_2016, test_2017 in both languages"):
        load(path, test_set="test_2018")


def test_what_has_no_splits_is_divided_the_same_each_time(tmp_path):
    lines(tmp_path / "corpus.de", texts(60, "Katze"))
    lines(tmp_path / "corpus.en", texts(60, "cat"))
    corpus = load(tmp_path / "corpus")
    sizes = {split: len(pairs[0]) for split, pairs in corpus.splits.items()}
    assert sizes == {"train": 54, "validation": 3, "test": 3}
    together = [text for pairs in corpus.splits.values() for text in pairs[0]]
    assert sorted(together) == sorted(texts(60, "Katze"))
    for a, b in corpus.splits.values():
        assert [text.replace("Katze", "cat") for text in a] == b
    assert load(tmp_path / "corpus") == corpus
    assert load(tmp_path / "corpus", split_seed=1) != corpus
    lines(tmp_path / "few.de", texts(9, "Katze"))
    lines(tmp_path / "few.en", texts(9, "cat"))
    with pytest.raises(UsageError, match="too few to divide"):
        load(tmp_path / "few")


def test_a_folder_without_a_split_has_it_divided_off_training(tmp_path):
    corpus = load(folder(tmp_path / "part", ("train", "test")))
    assert {s: len(p[0]) for s, p in corpus.splits.items()} == {
        "train": 57,
        "validation": 3,
        "test": 60,
    }
    assert "divided off" in corpus.notes[0]


def test_tables_and_records(tmp_path):
    pairs = list(zip(texts(40, "Katze"), texts(40, "cat"), strict=True))
    lines(tmp_path / "c.tsv", ["\t".join(pair) for pair in pairs])
    records = [{"de": a, "en": b} for a, b in pairs]
    lines(tmp_path / "c.jsonl", [json.dumps(record) for record in records])
    lines(tmp_path / "hub.jsonl", [json.dumps({"translation": record}) for record in records])
    found = [load(tmp_path / name).splits for name in ("c.tsv", "c.jsonl", "hub.jsonl")]
    assert found[0] == found[1] == found[2]


def test_a_plain_file_counts_before_a_compressed_one(tmp_path):
    path = folder(tmp_path / "c")
    lines(path / "train.de.gz", texts(60, "alt"), gzip.compress)
    assert load(path).splits["train"][0][0] == "train Katze 0"


def test_a_text_is_one_line(tmp_path):
    records = [{"de": f"Katze {i}\nund Hund", "en": f"cat\r\n{i}\u2028and dog"} for i in range(40)]
    lines(tmp_path / "c.jsonl", [json.dumps(record) for record in records])
    corpus = load(tmp_path / "c.jsonl")
    for a, b in corpus.splits.values():
        assert all(len(text.splitlines()) == 1 for text in (*a, *b))
    assert corpus.splits["train"][1][0].endswith("and dog")


def test_what_is_held_out_is_not_learned_from(tmp_path):
    for side in ("de", "en"):
        lines(tmp_path / f"c.{side}", [f"{side} {i % 50}" for i in range(400)])
    corpus = load(tmp_path / "c")
    held = {*corpus.splits["test"][0], *corpus.splits["validation"][0]}
    assert not held & {*corpus.splits["train"][0]}
    assert "pairs with the same source text are left out" in corpus.notes[0]
    with pytest.raises(UsageError, match="is no folder of splits"):
        load(tmp_path / "c", test_set="test")


def test_empty_sides_and_lower_case(tmp_path):
    path = folder(tmp_path / "c")
    lines(path / "train.de", ["Eine Katze", " ", "Hund", *texts(57, "Katze")])
    lines(path / "test.de", ["", *texts(59, "Katze")])
    corpus = load(path, lowercase=True)
    assert corpus.splits["train"][0][:2] == ["eine katze", "hund"]
    assert corpus.notes == ("1 pairs of train have an empty side and are left out",)
    assert corpus.splits["test"][0][0] == ""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "there is neither"),
        (lambda p: p.mkdir(), r"has no train\.de beside train\.en .* its files are for nothing"),
        (lambda p: p.write_text("a"), "is one file, and neither"),
        (lambda p: folder(p, ("test",)), "its files are for test: check"),
        (lambda p: lines(folder(p) / "train.en", ["a"]), "has 60 lines and .* 1; line i"),
        (lambda p: (folder(p) / "train.en").write_bytes(b"\xff\xfe"), "is not UTF-8 text"),
        (lambda p: lines(folder(p) / "test.de", []), "has 0 lines and .* 60"),
        (lambda p: [lines(folder(p) / f"val.{s}", [""]) for s in ("de",)], "has 1 lines and"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, make, message):
    make(tmp_path / "data")
    with pytest.raises(UsageError, match=message):
        load(tmp_path / "data")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.tsv", "a\tb\nc\n", "line 2 has 1 columns; two are expected"),
        ("c.jsonl", "{\n", "line 1 does not parse as JSON"),
        ("c.jsonl", '{"de": "a"}\n', "line 1 has no text under 'en'"),
        ("c.jsonl", "[1]\n", "line 1 has no text under 'de'"),
        ("c.jsonl", '{"de": "a", "en": 3}\n', "line 1 has no text under 'en'"),
    ],
)
def test_damaged_lines_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        load(tmp_path / name)


def test_empty_splits_are_refused(tmp_path):
    path = folder(tmp_path / "c")
    for side in ("de", "en"):
        lines(path / f"val.{side}", ["", ""])
    with pytest.raises(UsageError, match="its validation split holds no pair"):
        load(path)


# --- numbers in words --------------------------------------------------------------------------


def test_numbers_in_words():
    expected = {
        0: ("null", "zero"),
        1: ("eins", "one"),
        17: ("siebzehn", "seventeen"),
        21: ("einundzwanzig", "twenty-one"),
        30: ("dreißig", "thirty"),
        101: ("einhunderteins", "one hundred and one"),
        1001: ("eintausendeins", "one thousand and one"),
        2016: ("zweitausendsechzehn", "two thousand and sixteen"),
        42_107: (
            "zweiundvierzigtausendeinhundertsieben",
            "forty-two thousand one hundred and seven",
        ),
        999_999: (
            "neunhundertneunundneunzigtausendneunhundertneunundneunzig",
            "nine hundred and ninety-nine thousand nine hundred and ninety-nine",
        ),
    }
    assert {n: (german(n), english(n)) for n in expected} == expected
    assert len({german(n) for n in range(3000)}) == len({english(n) for n in range(3000)}) == 3000


def test_the_built_in_text_has_each_number_once():
    splits = numerals("de", "en")
    assert {split: len(pairs[0]) for split, pairs in splits.items()} == PAIRS
    together = [text for pairs in splits.values() for text in pairs[0]]
    assert len(set(together)) == len(together)
    assert numerals("en", "de")["test"] == splits["test"][::-1]
    with pytest.raises(UsageError, match="not 'fr'; give --data"):
        numerals("fr", "en")


# --- vocabularies ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned():
    options = TranslateOptions(vocab_size=400)
    return Vocabularies.learn(load_corpus(options), options)


def test_text_comes_back_whatever_it_is(learned, tmp_path):
    words = ["forty-two thousand", "naïve café – 漢字 🙂", "</s> is <pad> text"]
    encoded = learned.encode_target(words, 200)
    assert [learned.decode(ids.tolist()) for ids in encoded] == words
    for ids in encoded:
        assert (ids[0], ids[-1]) == (START, END)
        assert not {START, END, PAD} & set(ids[1:-1].tolist())
    learned.save(tmp_path)
    again = Vocabularies.load(tmp_path)
    assert all(map(torch.equal, again.encode_target(words, 200), encoded))
    (tmp_path / "target.json").write_text("{}")
    with pytest.raises(RunError, match=r"target\.json is no vocabulary"):
        Vocabularies.load(tmp_path)


def test_long_text_is_cut_before_its_end(learned):
    (source,) = learned.encode_source(["forty-two thousand one hundred and seven"], 5)
    assert (len(source), source[-1]) == (5, END)
    (target,) = learned.encode_target(["forty-two thousand one hundred and seven"], 5)
    assert (len(target), target[0], target[-1]) == (6, START, END)


def test_vocabularies_are_shared_or_not(learned):
    assert learned.source is learned.target
    options = TranslateOptions(vocab_size=300, vocabulary="separate")
    apart = Vocabularies.learn(load_corpus(options), options)
    assert apart.source.to_str() != apart.target.to_str()
    with pytest.raises(UsageError, match="at least 259"):
        Vocabularies.learn(load_corpus(options), TranslateOptions(vocab_size=100))


# --- batches -----------------------------------------------------------------------------------


def some_pairs(count=97):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 12, (2, count), generator=generator).tolist()
    # A pair is known by its first source token.
    source = [torch.tensor([100 + i, *[5] * (n - 1)]) for i, n in enumerate(lengths[0])]
    target = [torch.tensor([START, *[6] * n, END]) for n in lengths[1]]
    return source, target


def batches(accumulate=1, seed=0, tokens=60, size=0):
    return Batches(*some_pairs(), tokens=tokens, size=size, accumulate=accumulate, seed=seed)


@pytest.mark.parametrize("size", [0, 10])
def test_an_epoch_has_each_pair_once_in_another_order(size):
    made = batches(size=size)
    epochs = [[made.step(epoch * len(made) + i)[0] for i in range(len(made))] for epoch in range(2)]
    firsts = [[row for b in epoch for row in b.inputs[:, 0].tolist()] for epoch in epochs]
    assert sorted(firsts[0]) == sorted(firsts[1]) == list(range(100, 197))
    assert firsts[0] != firsts[1]
    for epoch in epochs:
        for b in epoch:
            longest = max(b.inputs.shape[1], b.targets.shape[1] - 1)
            assert len(b.inputs) <= size if size else len(b.inputs) * longest <= 60
            assert b.weight == pytest.approx(1.0)
    again = batches(size=size).step(len(made) + 3)[0]
    assert torch.equal(again.inputs, epochs[1][3].inputs)
    other = batches(size=size, seed=1).step(3)[0]
    assert not torch.equal(other.inputs[:, 0], epochs[0][3].inputs[:, 0])


def test_weights_make_a_mean_over_the_tokens_of_a_step():
    for b in batches(accumulate=3).step(1), batches(accumulate=3).step(9):
        counts = [int((part.targets[:, 1:] != PAD).sum()) for part in b]
        means = torch.rand(3)
        over_tokens = sum(m * c for m, c in zip(means, counts, strict=True)) / sum(counts)
        by_weights = sum(p.weight * m for p, m in zip(b, means, strict=True)) / 3
        assert by_weights == pytest.approx(float(over_tokens))


def test_padding_is_on_the_right():
    (b,) = batches(tokens=200).step(2)
    for rows in (b.inputs, b.targets):
        is_token = rows != PAD
        assert (is_token.int().diff(dim=1) <= 0).all()
        assert is_token[:, 0].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 30, "heads": 4}, "4 heads cannot divide dim 30"),
        ({"dim": 4, "heads": 4}, "parts of at least 2"),
        ({"source": "en"}, "source and target are both 'en'"),
        ({"geometry": "hyperbolic", "norm": "post"}, "has no LayerNorm"),
        ({"batch_tokens": 100}, "give at least 129"),
        ({"curvature": 0.0}, "curvature"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        TranslateOptions(**options)
