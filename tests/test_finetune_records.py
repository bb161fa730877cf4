"""Files of records, prompts and labels, read or refused in a sentence."""

from __future__ import annotations

import gzip
import itertools
import json

import pytest
import torch
from shared_data import shared_file
from tiny_base import CHAT, encoder, options, tokenizer

from spectrain.errors import UsageError
from spectrain.tasks.classify.task import TextClassification
from spectrain.tasks.classify.texts import batch_of
from spectrain.tasks.finetune.answers import ends_in_number
from spectrain.tasks.finetune.prompts import Wording
from spectrain.tasks.finetune.records import Record, divide, read_data, read_records


def write_lines(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def wording(chat=False, **values):
    return Wording(tokenizer(chat), options(**values))


# --- records --------------------------------------------------------------------------------------


def test_every_form_of_labelled_texts_is_read(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"text": "good", "label": 1}])
    (tmp_path / "b.tsv").write_text('label\ttext\r\n1\tsay "good\r\n')
    (tmp_path / "c.csv").write_text('text,label\n"good, and\nbetter",1\n')
    (tmp_path / "d.txt").write_text("1 good one\n\n0\tbad\n")
    (tmp_path / "cola.tsv").write_text("gj04\t1\t\tA sentence.\ngj04\t0\t*\tSentence a.\n")
    with gzip.open(tmp_path / "z.tsv.gz", "wt") as file:
        file.write("label\ttext\n0\tbad\n")
    found = {name: read_records(tmp_path / name) for name in ("a.jsonl", "b.tsv", "c.csv", "d.txt")}
    assert found["a.jsonl"] == [
        Record(f"{tmp_path / 'a.jsonl'} line 1", {"text": "good", "label": 1})
    ]
    assert found["b.tsv"][0].fields == {"label": "1", "text": 'say "good'}
    assert found["c.csv"][0].fields == {"text": "good, and\nbetter", "label": "1"}
    assert [r.fields["text"] for r in found["d.txt"]] == ["good one", "bad"]
    cola = read_records(tmp_path / "cola.tsv")
    assert [(r.fields["label"], r.fields["text"]) for r in cola] == [
        ("1", "A sentence."),
        ("0", "Sentence a."),
    ]
    assert read_records(tmp_path / "z.tsv.gz")[0].fields["label"] == "0"


def test_names_of_files_tell_splits(tmp_path):
    for name in ("in_domain_train.tsv", "in_domain_dev.tsv", "out_of_domain_dev.tsv"):
        (tmp_path / name).write_text(f"label\ttext\n1\t{name}\n")
    (tmp_path / "README.txt").write_text("not data")
    found = read_data(str(tmp_path))
    assert {split: len(part) for split, part in found.parts.items()} == {
        "train": 1,
        "validation": 2,
    }
    assert "README.txt" in found.notes[0]


def test_missing_splits_are_drawn_once_and_for_all():
    numbers = list(range(100))
    parts = divide({"train": numbers}, 0.1, 0.2, 7)
    assert [len(parts[s]) for s in ("train", "validation", "test")] == [70, 10, 20]
    assert sorted(itertools.chain(*parts.values())) == numbers
    assert parts == divide({"train": numbers}, 0.1, 0.2, 7)
    assert parts != divide({"train": numbers}, 0.1, 0.2, 8)
    given = divide({"train": numbers, "test": [-1]}, 0.1, 0.2, 7)
    assert given["test"] == [-1]
    assert len(given["train"]) == 90


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"text": 1', r"a.jsonl line 1 does not parse as JSON"),
        ("a.jsonl", "[1]\n", r"a.jsonl line 1 is no JSON object but list"),
        ("a.tsv", "label\ttext\n1\n", "line 2 has 1 columns, and the header 2"),
        ("a.csv", 'label,text\n1,"open\n', "is no row of a table"),
        ("a.parquet", "PAR1", "is of no known form: give .jsonl"),
        ("a.jsonl", "\n", "holds no examples"),
        ("a.jsonl.gz", "no gzip", "is no intact .gz file"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UsageError, match=said) as caught:
        read_data(str(path))
    assert "\n" not in str(caught.value)


# --- prompts --------------------------------------------------------------------------------------


def test_fields_of_the_usual_forms_are_found():
    known = wording()
    forms = (
        {"prompt": "a", "response": "b"},
        {"prompt": "a", "completion": "b"},
        {"question": "a", "answer": "b"},
        {"instruction": "a", "output": "b"},
    )
    for fields in forms:
        pair = known.pair(Record("here", fields))
        assert (pair.prompt, pair.response) == ("a\n", "b")
    pair = known.pair(Record("here", {"instruction": "a", "input": "x", "output": "b"}))
    assert pair.prompt == "a\n\nx\n"
    own = wording(prompt_field="q", response_field="r", template=r"Q: {prompt}\nA: ")
    assert own.pair(Record("here", {"q": "a", "r": "b"})).prompt == "Q: a\nA: "


def test_the_chat_template_words_prompts():
    known = wording(chat=True)
    pair = known.pair(Record("here", {"question": "a", "answer": "b"}))
    assert (pair.prompt, pair.response) == ("<|user|>a<|end|>\n<|assistant|>", "b<|end|>")
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages = [{"role": role, "content": content} for role, content in turns]
    pair = known.pair(Record("here", {"messages": messages}))
    before = "<|user|>a<|end|>\n<|assistant|>b<|end|>\n<|user|>c<|end|>\n<|assistant|>"
    assert pair == ("here", before, "d<|end|>", "d")
    whole = tokenizer(True).apply_chat_template(messages, tokenize=False)
    assert pair.prompt + pair.response + "\n" == whole


@pytest.mark.parametrize(
    ("fields", "values", "said"),
    [
        ({"question": "a", "answer": " "}, {}, "the response is empty"),
        ({"question": " ", "answer": "a"}, {}, "the prompt is empty"),
        ({"answer": "a"}, {}, "has no field prompt or question or instruction.*--prompt-field"),
        ({"question": "a"}, {}, "has no field response.*--response-field"),
        ({"text": "a", "label": 1}, {}, "has a label and no prompt: give --classify"),
        ({"question": "a", "answer": 3}, {}, "the field answer holds no text but int"),
        ({"question": "a", "answer": "\ud800"}, {}, "half a surrogate pair"),
        ({"question": "a"}, {"response_field": "x"}, "has no field x"),
        ({"messages": [{"role": "user", "content": "a"}]}, {}, "a list of two or more"),
        ({"messages": "abc"}, {}, "a list of two or more"),
        ({"messages": [{"role": "user"}, {"role": "assistant"}]}, {}, "role and content"),
        (
            {"messages": [{"role": r, "content": "a"} for r in ("assistant", "user")]},
            {},
            "the last message is by 'user'",
        ),
    ],
)
def test_bad_records_are_named(fields, values, said):
    with pytest.raises(UsageError, match=f"^here.*{said}") as caught:
        wording(chat=True, **values).pair(Record("here", fields))
    assert "\n" not in str(caught.value)


def test_chats_need_a_template():
    messages = [{"role": r, "content": "a"} for r in ("user", "assistant")]
    for known, said in (
        (wording(), "the tokenizer has no chat template"),
        (wording(chat=True, template="{prompt}"), "--template words single prompts"),
    ):
        with pytest.raises(UsageError, match=said):
            known.pair(Record("here", {"messages": messages}))


def test_a_template_that_words_prompts_otherwise_is_refused():
    known = wording(chat=True)
    known.tokenizer.chat_template = "{{ messages | length }}" + CHAT
    with pytest.raises(UsageError, match="give --template"):
        known.pair(Record("here", {"question": "a", "answer": "b"}))
    known.tokenizer.chat_template = "{{ raise_exception('no such turn') }}"
    with pytest.raises(UsageError, match="does not take it: no such turn"):
        known.pair(Record("here", {"question": "a", "answer": "b"}))


# --- labels ---------------------------------------------------------------------------------------


def labelled(tmp_path, rows):
    path = write_lines(tmp_path / "a.jsonl", rows)
    return TextClassification.load(
        options(model=encoder(), classify=True, data=str(path), max_length=8, batch_size=2)
    )


def test_labels_are_ordered_and_pairs_read_together(tmp_path):
    rows = [{"text": "3 pens", "hypothesis": "9 pens", "label": label} for label in (10, 9, 2)] * 20
    task = labelled(tmp_path, rows)
    assert task.classes == ("2", "9", "10")
    assert "each text is read together with its hypothesis" in task.notes
    alone = labelled(tmp_path, [{"text": "3 pens", "label": bool(i % 2)} for i in range(60)])
    assert alone.classes == ("false", "true")
    assert len(alone.parts["train"][0].tokens) < len(task.parts["train"][0].tokens)


def test_long_texts_are_cut_and_counted(tmp_path):
    rows = [{"text": "3 pens " * (1 + 9 * (i < 5)), "label": i % 2} for i in range(60)]
    task = labelled(tmp_path, rows)
    cut = [note for note in task.notes if "longer than 8 tokens and cut" in note]
    assert sum(int(note.split()[0]) for note in cut) == 5
    assert all(len(text.tokens) <= 8 for part in task.parts.values() for text in part)


def test_texts_in_a_batch_are_filled_up(tmp_path):
    rows = [{"text": "3 pens " * (1 + i % 3), "label": i % 2} for i in range(60)]
    texts = labelled(tmp_path, rows).parts["train"][:5]
    batch = batch_of(texts, pad=0)
    for row, text in enumerate(texts):
        assert torch.equal(batch.inputs[row][batch.mask[row].bool()], text.tokens)
    assert batch.targets.tolist() == [text.label for text in texts]
    parts = batch.chunk(2)
    assert torch.equal(torch.cat([p.inputs for p in parts]), batch.inputs)
    assert torch.equal(torch.cat([p.targets for p in parts]), batch.targets)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": "a", "label": 1}] * 60, "there are 1 labels to learn"),
        ([{"text": "a"}] * 60, "has no field label or class or sentiment.*--label-field"),
        ([{"label": i % 2} for i in range(60)], "has no field text.*--text-field"),
        ([{"text": " ", "label": i % 2} for i in range(60)], "the text is empty"),
        ([{"text": "a", "label": 0.5}] * 60, "the label '0.5' is no text and no number"),
        ([{"text": "a", "label": i % 2} for i in range(3)], "too few examples to divide"),
    ],
)
def test_bad_labelled_records_are_named(tmp_path, rows, said):
    with pytest.raises(UsageError, match=said) as caught:
        labelled(tmp_path, rows)
    assert "\n" not in str(caught.value)


def test_a_label_that_training_lacks_is_named(tmp_path):
    write_lines(tmp_path / "train.jsonl", [{"text": "a", "label": i % 2} for i in range(60)])
    write_lines(tmp_path / "test.jsonl", [{"text": "a", "label": 7}])
    with pytest.raises(UsageError, match=r"test.jsonl line 1 has the label '7'"):
        TextClassification.load(
            options(model=encoder(), classify=True, data=str(tmp_path), max_length=8)
        )


# --- real data, where they lie beside the checkout ------------------------------------------------


@pytest.mark.parametrize(
    ("name", "counts", "labels"),
    [
        ("gsm8k", {"train": 7473, "test": 1319}, None),
        ("sst2", {"train": 6920, "validation": 872, "test": 1821}, {"0", "1"}),
        ("cola", {"train": 8551, "validation": 1043}, {"0", "1"}),
        ("rte", {"train": 4167}, {"0", "1"}),
        ("sentence_polarity", {"train": 10662}, {"0", "1"}),
    ],
)
def test_known_sets_are_read_whole(name, counts, labels):
    found = read_data(str(shared_file(name)))
    assert {split: len(part) for split, part in found.parts.items()} == counts
    for part in found.parts.values():
        if labels is None:
            assert all(ends_in_number(r.fields["answer"]) for r in part)
        else:
            assert {r.fields["label"] for r in part} == labels
            assert all(r.fields["text"] for r in part)
