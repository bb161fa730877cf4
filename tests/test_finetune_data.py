"""Fine-tuning: records, prompts, tokens and batches."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import re
from decimal import Decimal

import pytest
import torch
from shared_data import shared_file
from tiny_base import CHAT, causal, encoder, options, tokenizer, write_causal

from spectrain.errors import UsageError
from spectrain.tasks.classify.task import TextClassification
from spectrain.tasks.classify.texts import batch_of
from spectrain.tasks.finetune.answers import ends_in_number, final_number, wilson
from spectrain.tasks.finetune.base import Base
from spectrain.tasks.finetune.batches import Batches, packs, rows_of
from spectrain.tasks.finetune.builtin import problems, statements
from spectrain.tasks.finetune.encoding import encode
from spectrain.tasks.finetune.options import FinetuneOptions
from spectrain.tasks.finetune.prompts import Wording
from spectrain.tasks.finetune.records import Record, divide, read_data, read_records
from spectrain.tasks.finetune.task import FineTuning


def write_lines(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def wording(chat=False, **values):
    return Wording(tokenizer(chat), options(**values))


# --- records -----------------------------------------------------------------------------------


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


# --- prompts -----------------------------------------------------------------------------------


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


# --- tokens ------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [False, True])
def test_the_loss_is_of_the_response_and_its_end_alone(chat):
    """Against labels made slowly: −100 but for the tokens behind the prompt."""
    known = wording(chat=chat)
    pairs = [known.pair(r) for r in problems().parts["test"][:6]]
    examples = encode(pairs, known)
    rows = rows_of([[example] for example in examples], pad=7, packed=False)
    labels = torch.full_like(rows.inputs, -100)
    for row, (example, pair) in enumerate(zip(examples, pairs, strict=True)):
        text = known.tokenizer.decode(example.tokens[example.start :])
        assert text == pair.response + ("" if chat else "<|endoftext|>")
        assert known.tokenizer.decode(example.prompt) == pair.prompt
        labels[row, example.start : len(example.tokens)] = example.tokens[example.start :]
        assert (rows.inputs[row, len(example.tokens) :] == 7).all()
    found = torch.full_like(labels, -100).flatten()
    found[rows.places + 1] = rows.targets  # a place predicts the token behind it
    assert torch.equal(found.view_as(labels), labels)
    assert rows.divisor == (labels != -100).sum()


def test_special_tokens_come_once(tmp_path):
    known = wording()
    from tokenizers.processors import TemplateProcessing

    end = known.tokenizer.eos_token_id
    known.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
    )
    (example,) = encode([known.pair(Record("here", {"question": "a", "answer": "b"}))], known)
    assert (example.tokens == end).nonzero().flatten().tolist() == [0, len(example.tokens) - 1]


def test_long_examples_are_left_out_and_counted(tmp_path):
    rows = [{"question": "word " * n, "answer": "b"} for n in (1, 2, 3, 4, 100, 100)] * 3
    path = write_lines(tmp_path / "a.jsonl", rows)
    task = FineTuning.load(
        options(data=str(path), max_length=40, validation=0.2, test=0.2, batch_size=1)
    )
    assert "6 of 18 train examples are longer than 40 tokens and left out" in " ".join(task.notes)
    assert sum(map(len, task.parts.values())) == 12
    assert not task.answers
    with pytest.raises(UsageError, match="no train example is short enough for --max-length 2"):
        FineTuning.load(options(data=str(path), max_length=2))


# --- packing and batches -----------------------------------------------------------------------


def examples_of(count=40):
    known = wording()
    return encode([known.pair(r) for r in problems().parts["train"][:count]], known)


def test_packs_hold_all_and_waste_little():
    draw = random.Random(3)
    lengths = [draw.randint(1, 90) for _ in range(500)]
    groups = packs(lengths, 100)
    assert sorted(itertools.chain(*groups)) == list(range(500))
    assert all(sum(lengths[i] for i in group) <= 100 for group in groups)
    fewest = max(sum(lengths) / 100, sum(length > 50 for length in lengths))
    assert len(groups) <= 11 / 9 * fewest + 1  # its guarantee; here it is far below
    assert packs([5, 5], 5) == [[0], [1]]


@pytest.mark.parametrize("capacity", [None, 200])
def test_an_epoch_has_each_example_once(capacity):
    examples = examples_of()
    how = {"size": 2, "accumulate": 2, "pad": 0, "capacity": capacity}
    batches = Batches(examples, seed=1, **how)
    steps = round(batches.steps_per_epoch * 8)  # eight epochs have a whole number of steps
    targets = [rows.targets for s in range(steps // 8 * 8) for rows in batches.step(s)]
    assert sum(map(len, targets)) > 0
    if len(batches.groups) % 4 == 0:
        epoch = range(len(batches.groups) // 4)
        seen = sorted(t for s in epoch for rows in batches.step(s) for t in rows.targets.tolist())
        assert seen == sorted(t for e in examples for t in e.tokens[e.start :].tolist())
    again = Batches(examples, seed=1, **how)
    assert all(
        torch.equal(a.inputs, b.inputs)
        for s in (7, 0)
        for a, b in zip(batches.step(s), again.step(s), strict=True)
    )
    other = Batches(examples, seed=2, **how)
    shapes = [torch.cat([r.targets for r in b.step(0)]) for b in (batches, other)]
    assert shapes[0].shape != shapes[1].shape or not torch.equal(*shapes)


def test_passes_of_a_step_weigh_their_predictions():
    batches = Batches(examples_of(), size=2, accumulate=3, pad=0, seed=0, capacity=None)
    passes = batches.step(4)
    total = sum(len(rows.targets) for rows in passes)
    assert all(rows.divisor == pytest.approx(total / 3) for rows in passes)


@pytest.mark.parametrize("packed", [False, True])
def test_parts_of_rows_add_up(packed):
    examples = examples_of(8)
    groups = (
        [examples[i : i + 2] for i in range(0, 8, 2)] if packed else [[e] for e in examples[:4]]
    )
    rows = rows_of(groups, 0, packed)
    parts = rows.chunk(2)
    assert torch.equal(torch.cat([p.inputs for p in parts]), rows.inputs)
    assert torch.equal(torch.cat([p.targets for p in parts]), rows.targets)
    assert all(p.divisor == rows.divisor / 2 for p in parts)
    for part in parts:
        following = part.inputs.flatten()[part.places + 1]
        assert torch.equal(following, part.targets)
    if packed:
        assert torch.equal(torch.cat([p.positions for p in parts]), rows.positions)
        assert torch.equal(torch.cat([p.members for p in parts]), rows.members)


def test_too_large_a_step_is_refused():
    with pytest.raises(UsageError, match="a step takes 80 examples"):
        Batches(examples_of(), size=8, accumulate=10, pad=0, seed=0, capacity=None)


# --- labels ------------------------------------------------------------------------------------


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


# --- answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 3.\n#### 1,234", "1234"),
        ("#### $18.00 dollars, or 7", "18"),
        ("#### 3\nand then\n#### -4.5", "-4.5"),
        ("first 3, then 41.", "41"),
        ("a share of .5", "0.5"),
        ("3-2=1", "1"),
    ],
)
def test_final_numbers(text, number):
    assert final_number(text) == Decimal(number)


def test_texts_without_a_final_number():
    assert final_number("none at all") is None
    assert final_number("3 apples #### none") is None
    assert final_number("3 apples and", complete=False) is None
    assert final_number("#### 3 and", complete=False) == 3
    assert ends_in_number("so\n#### 12")
    assert not ends_in_number("so 12")
    assert not ends_in_number("#### 12 and\n#### no")


def test_the_interval_is_wilsons():
    """Its ends p solve |p̂ − p| = z √(p (1 − p)/n)."""
    z = 1.959963984540054
    for right, count in ((7, 50), (0, 20), (20, 20), (1, 3)):
        for end in wilson(right, count):
            distance = abs(right / count - end)
            assert distance == pytest.approx(z * (end * (1 - end) / count) ** 0.5, abs=1e-12)
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == 1.0


# --- what needs no data ------------------------------------------------------------------------


def test_built_in_problems_are_right_and_differ():
    parts = problems().parts
    questions = [r.fields["question"] for part in parts.values() for r in part]
    assert len(set(questions)) == len(questions) == 2400
    for record in parts["test"]:
        question, answer = record.fields["question"], record.fields["answer"]
        a, b, c = (int(n) for n in re.findall(r"\d+", question))
        kinds = {"finds": (a + b) * c, "boxes": a * b + c, "lose": a + b - c}
        (expected,) = (value for word, value in kinds.items() if word in question)
        assert ends_in_number(answer)
        assert final_number(answer) == expected


def test_built_in_statements_are_labelled_rightly():
    for record in statements().parts["test"]:
        a, _, _, relation, _, b, _ = record.fields["text"].split(" ")
        holds = int(a) > int(b) if relation == "more" else int(a) < int(b)
        assert record.fields["label"] == str(holds).lower()


# --- the base ----------------------------------------------------------------------------------


def test_a_model_is_cut_to_its_first_layers():
    whole, cut = (Base.find(options(keep_layers=n)) for n in (None, 1))
    assert "first 1 of 2 layers" in cut.describe()
    first, all_ = cut.build().state_dict(), whole.build().state_dict()
    assert {name for name in all_ if ".layers.1." not in name} == first.keys()
    assert all(torch.equal(all_[name], tensor) for name, tensor in first.items())


def test_only_what_should_train_trains():
    frozen = Base.find(options()).build()
    assert not any(p.requires_grad for p in frozen.parameters())
    every = Base.find(options(train_ordinary=True)).build()
    assert all(p.requires_grad for p in every.parameters())
    base = Base.find(options(model=encoder(), max_length=64))
    for model in (base.build(("a", "b")), base.skeleton(("a", "b"))):
        names = {n for n, p in model.named_parameters() if p.requires_grad}
        kinds = ("bert.pooler.dense", "classifier")
        assert names == {f"{kind}.{part}" for kind in kinds for part in ("weight", "bias")}


def test_a_new_head_follows_from_the_seed():
    base = Base.find(options(model=encoder(), max_length=64))
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(base.build(("a", "b")).classifier.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    before = torch.get_rng_state()
    assert all(p.is_meta for p in base.skeleton(("a", "b")).parameters())
    assert torch.equal(before, torch.get_rng_state())


def edited(folder, name, **changes):
    path = folder / name
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def test_models_that_cannot_be_tuned(tmp_path, monkeypatch):
    def refused(said, **values):
        with pytest.raises(UsageError, match=said) as caught:
            Base.find(options(**values))
        assert "\n" not in str(caught.value)

    with pytest.raises(UsageError, match="there is no model to tune; give --model"):
        FinetuneOptions()
    refused("is no transformers folder", model="nowhere")
    refused("is of 2 layers", keep_layers=3)
    refused("takes at most 256 tokens at a time, less than --max-length of 512", max_length=512)
    (tmp_path / "a.bin").write_bytes(b"")
    refused(r"a file of weights must be .gguf", model=str(tmp_path / "a.bin"))
    refused("as a pickle", model=str(tmp_path))
    (tmp_path / "empty").mkdir()
    refused("holds no weights", model=str(tmp_path / "empty"))
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "empty" / name).write_bytes(b"GGUF")
    refused("holds 2 .gguf files", model=str(tmp_path / "empty"))
    monkeypatch.setattr("spectrain.tasks.pretrained.find_spec", lambda name: None)
    refused("pip install gguf", model=str(tmp_path / "empty" / "a.gguf"))

    folder = write_causal(tmp_path / "model")
    larger = tokenizer()
    larger.add_tokens([f"<{i}>" for i in range(9)])
    larger.save_pretrained(folder)
    refused("they are not of one model", model=str(folder))
    folder = write_causal(tmp_path / "endless")
    edited(folder, "tokenizer_config.json", eos_token=None)
    refused("no padding token and no end-of-text token", model=str(folder))


def test_a_wrong_base_is_named(tmp_path):
    folder = write_causal(tmp_path / "model")
    edited(folder, "config.json", num_hidden_layers=3)
    with pytest.raises(UsageError, match="lacks the weights of 9 parameters"):
        Base.find(options(model=str(folder))).build()
    (folder / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(Exception, match=r"the weights of .* do not load") as caught:
        Base.find(options(model=str(folder))).build()
    assert "\n" not in str(caught.value)


def test_the_hash_of_the_base_knows_its_weights(tmp_path):
    folder = write_causal(tmp_path / "model")
    one = Base.find(options(model=str(folder)))
    assert one.digest == Base.find(options(model=causal())).digest
    with open(folder / "model.safetensors", "ab") as file:
        file.write(b"x")
    assert Base.find(options(model=str(folder))).digest != one.digest


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"template": "no place"}, "it must hold {prompt} once"),
        ({"classify": True, "packing": True}, "--packing is of prompts and responses"),
        ({"answer": "text"}, "allowed are auto, number, none"),
        ({"batch_size": 0}, "1 or more"),
    ],
)
def test_settings_that_cannot_be(values, said):
    with pytest.raises(UsageError, match=said):
        options(**values)


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
