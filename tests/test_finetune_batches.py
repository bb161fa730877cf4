"""Tokens of examples, packed and padded rows, batches."""

from __future__ import annotations

import itertools
import json
import random

import pytest
import torch
from tiny_base import options, tokenizer

from spectrain.errors import UsageError
from spectrain.tasks.finetune.batches import Batches, packs, rows_of
from spectrain.tasks.finetune.builtin import problems
from spectrain.tasks.finetune.encoding import encode
from spectrain.tasks.finetune.prompts import Wording
from spectrain.tasks.finetune.records import Record
from spectrain.tasks.finetune.task import FineTuning


def write_lines(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def wording(chat=False, **values):
    return Wording(tokenizer(chat), options(**values))


# --- tokens ---------------------------------------------------------------------------------------


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


# --- packing and batches --------------------------------------------------------------------------


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
