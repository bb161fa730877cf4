"""Responses and what they are judged by."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_base import causal, make_task

from spectrain import SST
from spectrain.errors import UsageError
from spectrain.surgery import apply
from spectrain.tasks.finetune.responding import Reply, respond
from spectrain.tasks.lm.evaluate import evaluate as evaluate_text
from spectrain.tasks.lm.tokenizer import tokenize

METHOD = SST(rank=4, resample_every=3, warmup=2, iterations_per_round=2)


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_responses_together_are_those_of_one_by_one_without_a_cache(kind):
    task = make_task(model=causal(kind))
    model = apply(task.build_model(), METHOD, report=None)
    prompts = [e.prompt for e in task.parts["test"][:6]]
    assert len({len(p) for p in prompts}) > 2
    how = {"pad": task.base.pad, "batch_size": 4, "max_new_tokens": 12}
    together = respond(model, task.base.tokenizer, prompts, **how)
    ends = {task.base.tokenizer.eos_token_id, model.generation_config.eos_token_id}
    model.eval()
    for prompt, reply in zip(prompts, together, strict=True):
        ids, complete = prompt[None], False
        with torch.no_grad():
            for _ in range(12):
                best = model(input_ids=ids, use_cache=False).logits[:, -1].argmax(1)
                ids = torch.cat((ids, best[:, None]), 1)
                if complete := int(best) in ends:
                    break
        new = ids[0, len(prompt) :]
        assert reply == (task.base.tokenizer.decode(new, skip_special_tokens=True), complete)


def test_a_response_ends_where_positions_do(monkeypatch):
    task = make_task()
    model, made = task.build_model(), []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **how: made.append(generate(**how)) or made[-1])
    prompt = torch.randint(4, 300, (250,))
    how = {"pad": task.base.pad, "batch_size": 1, "max_new_tokens": 50}
    respond(model, task.base.tokenizer, [prompt], **how)
    assert made[0].shape[1] <= 256


def test_exact_match_counts_right_numbers(monkeypatch):
    task = make_task(generate=5)
    answers = [e.reference for e in task.parts["test"][:5]]
    said = [answers[0], "#### " + answers[1].split("#### ")[1] + ".", "12345678", "none"]
    replies = [Reply(text, True) for text in said] + [Reply(answers[4].split("#### ")[1], False)]
    monkeypatch.setattr("spectrain.tasks.finetune.task.respond", lambda *a, **how: replies)
    found = task.evaluate(task.build_model(), "test", thorough=True, dtype=torch.float32)
    assert found["exact_match"] == 0.4
    assert found["responses"] == 5
    files = task.exhibits(task.build_model())
    lines = [json.loads(line) for line in files["responses.jsonl"].splitlines()]
    assert [line["right"] for line in lines] == [True, True, False, False, False]
    assert json.loads(files["samples.json"])["rows"][1][2] == "yes"


def test_what_is_judged_by_numbers(tmp_path):
    lines = [{"prompt": str(i), "response": f"it is {i}"} for i in range(60)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert [s.key for s in make_task(data=str(path)).scores] == ["loss"]
    assert [s.key for s in make_task(data=str(path), answer="number").scores] == [
        "loss",
        "exact_match",
    ]
    assert [s.key for s in make_task(answer="none").scores] == ["loss"]
    path.write_text(path.read_text() + '{"prompt": "a", "response": "b"}\n' * 30)
    with pytest.raises(UsageError, match=r"there is no number in the response of .*a.jsonl line"):
        make_task(data=str(path), answer="number")


def test_forgetting_is_measured_on_both_halves_of_a_second_text(tmp_path):
    path = tmp_path / "other.txt"
    path.write_text("ships sail past harbours and mats. " * 40)
    task = make_task(forgetting=str(path), forgetting_tokens=200, answer="none")
    model = task.build_model()
    tokens = tokenize(task.base.tokenizer, [path.read_text()])[:200]
    for split, half in (("validation", tokens[:100]), ("test", tokens[100:])):
        found = task.evaluate(model, split, thorough=True, dtype=torch.float32)
        assert found["other_loss"] == pytest.approx(evaluate_text(model, half, 99, 1).loss)
    assert "other_loss" not in task.evaluate(
        model, "validation", thorough=False, dtype=torch.float32
    )
    for text, said in (("", "has 0 tokens"), (None, "there is no file")):
        path.unlink() if text is None else path.write_text(text)
        with pytest.raises(UsageError, match=said):
            make_task(forgetting=str(path))
