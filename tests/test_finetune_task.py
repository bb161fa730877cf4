"""Fine-tuning: losses, responses, every method in the common loop, plain checkpoints."""

from __future__ import annotations

import json
import signal

import pytest
import torch
from cases import every_default
from tiny import final, rows, same
from tiny_base import causal, encoder, options, run, write_causal
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
)

from spectrain import SST, FullRank, GaLore, LoRA
from spectrain.errors import RunError, UsageError
from spectrain.runs.export import export
from spectrain.runs.files import read_json
from spectrain.runs.interrupt import Interrupted
from spectrain.surgery import apply, parametrized
from spectrain.tasks.classify.plain import outputs
from spectrain.tasks.classify.scores import scores_of
from spectrain.tasks.classify.task import TextClassification
from spectrain.tasks.finetune.batches import rows_of
from spectrain.tasks.finetune.loss import mean_loss, response_loss
from spectrain.tasks.finetune.responding import Reply, respond
from spectrain.tasks.finetune.task import FineTuning
from spectrain.tasks.lm.evaluate import evaluate as evaluate_text
from spectrain.tasks.lm.tokenizer import tokenize

METHOD = SST(rank=4, resample_every=3, warmup=2, iterations_per_round=2)


def make_task(kind=FineTuning, **values):
    return kind.load(options(**values))


def make_labels(kind=TextClassification, **values):
    own = {"model": encoder(), "classify": True, "max_length": 32}
    return kind.load(options(**{**own, **values}))


MAKERS = {
    "responses": make_task,
    "packed": lambda *a, **v: make_task(*a, packing=True, max_length=250, **v),
}
MAKERS |= {"labels": make_labels}
every_kind = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def slow_losses(model, examples):
    """Each example alone, without filling, by transformers' own labels: sum and count."""
    total, count = 0.0, 0
    for example in examples:
        labels = example.tokens.clone()
        labels[: example.start] = -100
        loss = model(input_ids=example.tokens[None], labels=labels[None]).loss
        total, count = total + loss * example.answered, count + example.answered
    return total, count


# --- losses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [0, 7])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_the_loss_and_its_gradients_are_those_of_examples_alone(kind, packed, chunk):
    task = make_task(model=causal(kind), train_ordinary=True)
    model, examples = task.build_model(), task.parts["train"][:6]
    groups = [examples[:1], examples[1:3], examples[3:6]] if packed else [[e] for e in examples]
    loss = response_loss(model, rows_of(groups, task.base.pad, packed), chunk)
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    total, count = slow_losses(model, examples)
    (total / count).backward()
    assert loss.item() == pytest.approx((total / count).item(), rel=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, atol=1e-5, rtol=1e-3, msg=name)


def test_packed_examples_do_not_see_each_other():
    task = make_task(packing=True)
    model, (a, b, c) = task.build_model().eval(), task.parts["train"][:3]
    with torch.no_grad():
        losses = []
        for first in (a, b):
            rows = rows_of([[first, c]], 0, packed=True)
            own = rows.places >= len(first.tokens)
            kept = type(rows)(
                rows.inputs, rows.places[own], rows.targets[own], 1.0, rows.members, rows.positions
            )
            losses.append(response_loss(model, kept, 0))
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)


def test_a_model_that_mixes_packed_examples_is_refused(monkeypatch):
    task = make_task(packing=True, max_length=250)
    model = task.build_model()
    inner = type(model).forward

    def careless(self, *, attention_mask=None, position_ids=None, **rest):
        return inner(self, **rest)

    monkeypatch.setattr(type(model), "forward", careless)
    with pytest.raises(UsageError, match="does not keep packed examples apart"):
        task.loss(model, task.micro_batches(0, 0)[0])


def test_a_model_that_sees_what_it_is_to_predict_is_refused():
    task = make_task()
    config = BertConfig.from_pretrained(encoder(), vocab_size=320, max_position_embeddings=256)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UsageError, match="sees the tokens it is to predict"):
        task.loss(model, task.micro_batches(0, 0)[0])


def test_a_mean_over_batches_is_one_over_predictions():
    task = make_task()
    model, examples = task.build_model(), task.parts["validation"][:7]
    how = {"size": 3, "pad": task.base.pad, "chunk": 64, "dtype": torch.float32}
    with torch.no_grad():
        total, count = slow_losses(model.eval(), examples)
    assert mean_loss(model, examples, **how) == pytest.approx((total / count).item(), rel=1e-5)


def test_accumulated_passes_are_one_larger_batch():
    gradients = []
    for size, accumulate in ((2, 3), (6, 1)):
        task = make_task(batch_size=size, accumulate=accumulate, train_ordinary=True)
        model = task.build_model()
        passes = task.micro_batches(1, 0)
        for part in passes:
            (task.loss(model, part) / len(passes)).backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_gradient_checkpointing_still_trains_the_factors():
    gradients = []
    for switched in (False, True):
        task = make_task(gradient_checkpointing=switched)
        torch.manual_seed(0)
        model = apply(task.build_model(), LoRA(4), report=None)
        task.loss(model, task.micro_batches(0, 0)[0]).backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(torch.any(g != 0) for g in gradients[0][1::2])  # B; A's begin at zero
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


# --- responses ---------------------------------------------------------------------------------


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


# --- labels ------------------------------------------------------------------------------------


def test_scores_are_sklearns():
    from sklearn import metrics

    generator = torch.Generator().manual_seed(0)
    for classes in (2, 4):
        true = torch.randint(classes, (50,), generator=generator)
        taken = torch.randint(classes, (50,), generator=generator)
        taken[:20] = true[:20]
        table = torch.zeros(classes, classes)
        for a, b in zip(true, taken, strict=True):
            table[a, b] += 1
        found = scores_of(table)
        assert found["accuracy"] == pytest.approx(metrics.accuracy_score(true, taken))
        average = "binary" if classes == 2 else "macro"
        assert found["f1"] == pytest.approx(metrics.f1_score(true, taken, average=average))
        assert found["matthews"] == pytest.approx(metrics.matthews_corrcoef(true, taken))
    constant = torch.tensor([[3.0, 0.0], [4.0, 0.0]])
    assert scores_of(constant) == pytest.approx({"accuracy": 3 / 7, "f1": 0.0, "matthews": 0.0})


def test_filling_does_not_change_logits():
    task = make_labels()
    model = task.build_model()
    for batch, logits in task._logits(model, task.parts["test"][:40], torch.float32):
        for ids, mask, own in zip(batch.inputs, batch.mask, logits, strict=True):
            with torch.no_grad():
                alone = model.eval()(input_ids=ids[mask.bool()][None]).logits[0]
            torch.testing.assert_close(alone, own, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews"])
def test_the_metric_that_decides_stands_first(metric):
    assert make_labels(metric=metric).scores[0].key == metric


def test_a_causal_model_tells_labels_too():
    """Its padding token is the end of text, and the last token before it gives the label."""
    task = make_labels(model=causal())
    model = task.build_model()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"score.weight"}
    assert model.config.pad_token_id == task.base.tokenizer.eos_token_id
    batch = task.micro_batches(0, 0)[0]
    with torch.no_grad():
        logits = model.eval()(**batch.arguments).logits
        for ids, mask, own in zip(batch.inputs, batch.mask, logits, strict=True):
            hidden = model.model(input_ids=ids[mask.bool()][None]).last_hidden_state[0, -1]
            torch.testing.assert_close(model.score(hidden), own, atol=1e-5, rtol=1e-4)


# --- shares of several processes ----------------------------------------------------------------


class Part:
    """One of three processes that keeps what it would average."""

    size = 3

    def __init__(self, rank):
        self.rank, self.sums = rank, None

    def mean(self, tensor):
        self.sums = tensor.clone()


def test_shares_of_processes_add_up():
    task = make_labels(final_examples=20)
    model = task.build_model()
    whole = task.evaluate(model, "test", thorough=True, dtype=torch.float32)
    parts = [Part(rank) for rank in range(3)]
    for part in parts:
        task.evaluate(model, "test", thorough=True, dtype=torch.float32, processes=part)
    sums = sum(part.sums for part in parts)
    assert scores_of(sums[:-1].view(2, 2))["accuracy"] == pytest.approx(whole["accuracy"])
    assert sums[:-1].sum() == 20
    assert sums[-1] / 20 == pytest.approx(whole["loss"])
    task = make_task()
    model, examples = task.build_model(), task.parts["test"][:10]
    how = {"size": 2, "pad": 0, "chunk": 64, "dtype": torch.float32}
    for part in parts:
        mean_loss(model, examples, **how, processes=part)
    sums = sum(part.sums for part in parts)
    assert sums[0] / sums[1] == pytest.approx(mean_loss(model, examples, **how))


# --- the loop ----------------------------------------------------------------------------------


@every_kind
@every_default
def test_every_method_trains_and_plans(tmp_path, make, method):
    task = make(answer="none", before=False)
    start = task.evaluate(task.build_model(), "test", thorough=True, dtype=torch.float32)
    result = run(tmp_path / "run", method, task, steps=6, eval_every=0, checkpoint_every=0)
    assert result["failed"] is None
    assert result["test_loss"] != start["loss"]
    memory = result["memory"]
    assert memory["planned"] is not None, memory["note"]
    for part in ("weights", "gradients", "optimizer"):
        assert memory["planned"][part] == memory["measured"][part]


@every_kind
def test_learning_happens_and_the_rest_is_frozen(tmp_path, make):
    data = None
    if make is make_labels:
        data = str(tmp_path / "words.txt")
        (tmp_path / "words.txt").write_text("0 pens are\n1 keys than\n" * 60)
    task = make(data=data, answer="none", before=False)
    result = run(tmp_path / "run", LoRA(4), task, steps=40, lr=2e-2, checkpoint_every=0)
    losses = [row["loss"] for row in rows(tmp_path / "run") if "loss" in row]
    assert losses[-1] < losses[0] - 0.3
    torch.manual_seed(0)
    before = task.build_model().state_dict()
    after = final(tmp_path / "run")
    frozen = [n for n in before if f"model/{n}" in after and "classifier" not in n]
    frozen = [n for n in frozen if "pooler" not in n]
    assert frozen
    assert all(torch.equal(before[n], after[f"model/{n}"]) for n in frozen)
    assert result["frozen_parameters"] > result["trainable_parameters"] / 4


@every_kind
@pytest.mark.parametrize("method", [METHOD, GaLore(4, refresh_every=3)], ids=["sst", "galore"])
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, make, method):
    stops = {"left": 1}

    def stopping(kind):
        class Stopping(kind):
            def micro_batches(self, step, seed):
                if step == 5 and stops["left"]:
                    stops["left"] = 0
                    signal.raise_signal(signal.SIGINT)
                return super().micro_batches(step, seed)

        return Stopping

    plain = TextClassification if make is make_labels else FineTuning
    quick = {"answer": "none", "before": False}
    run(tmp_path / "whole", method, make(plain, **quick))
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", method, make(stopping(plain), **quick))
    run(tmp_path / "parts", method, make(plain, **quick))
    same(tmp_path / "whole", tmp_path / "parts")


def test_before_and_after_are_kept(tmp_path):
    task = make_task()
    result = run(tmp_path / "run", LoRA(4), task)
    before = read_json(tmp_path / "run" / "before.json")
    start = task.evaluate(task.build_model(), "test", thorough=True, dtype=torch.float32)
    assert before == {f"test_{key}": value for key, value in start.items()}
    assert before.keys() <= result.keys()
    assert before["test_loss"] != result["test_loss"]
    config = read_json(tmp_path / "run" / "config.json")
    assert config["corpus"]["base_sha256"] == task.base.digest
    assert [score["key"] for score in config["scores"]] == ["loss", "exact_match"]


def test_full_rank_trains_the_same_matrices(tmp_path):
    """Unless asked for more: the tied embedding and the norms stay as they are."""
    counts = {}
    for ordinary in (False, True):
        task = make_task(train_ordinary=ordinary, answer="none", before=False)
        result = run(tmp_path / str(ordinary), FullRank(), task, steps=2, checkpoint_every=0)
        counts[ordinary] = result["trainable_parameters"], result["frozen_parameters"]
    matrices = 2 * (4 * 16 * 16 + 3 * 16 * 24)
    assert counts[False] == (matrices, 320 * 16 + 5 * 16)
    assert counts[True] == (sum(counts[False]), 0)


# --- plain checkpoints -------------------------------------------------------------------------


@pytest.mark.parametrize("method", [METHOD, LoRA(4), FullRank()], ids=lambda m: m.title)
def test_a_merged_model_loads_with_transformers_alone(tmp_path, method):
    task = make_task(keep_layers=1, answer="none", before=False)
    result = run(tmp_path / "run", method, task)
    done = export(tmp_path / "run", tmp_path / "plain")
    assert done.loader == "transformers.AutoModelForCausalLM.from_pretrained"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert model.config.num_hidden_layers == 1
    assert read_json(tmp_path / "plain" / "config.json")["architectures"] == ["LlamaForCausalLM"]
    known = AutoTokenizer.from_pretrained(tmp_path / "plain")
    assert known("3 pens")["input_ids"] == task.base.tokenizer("3 pens")["input_ids"]
    found = task.evaluate(model, "test", thorough=True, dtype=torch.float32)
    assert found["loss"] == pytest.approx(result["test_loss"], rel=1e-4)
    again = make_task(model=str(tmp_path / "plain"))  # and is a model to tune further
    assert again.base.layers == 1


@pytest.mark.parametrize("method", [METHOD, LoRA(4), FullRank()], ids=lambda m: m.title)
def test_a_merged_classifier_loads_with_transformers_alone(tmp_path, method):
    task = make_labels()
    result = run(tmp_path / "run", method, task)
    done = export(tmp_path / "run", tmp_path / "plain")
    assert done.loader == "transformers.AutoModelForSequenceClassification.from_pretrained"
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
    assert model.config.id2label == {0: "false", 1: "true"}
    assert not list(parametrized(model))
    found = task.evaluate(model, "test", thorough=True, dtype=torch.float32)
    assert found["loss"] == pytest.approx(result["test_loss"], rel=1e-4)
    with pytest.raises(RunError, match="no input of this model"):
        outputs(tmp_path / "plain", torch.full((1, 3), 9999))


def test_the_chat_template_comes_along(tmp_path):
    folder = write_causal(tmp_path / "base", chat=True)
    task = make_task(model=str(folder), answer="none", before=False)
    run(tmp_path / "run", LoRA(4), task, steps=2)
    export(tmp_path / "run", tmp_path / "plain")
    assert AutoTokenizer.from_pretrained(tmp_path / "plain").chat_template


def test_bfloat16_follows_float32(tmp_path):
    losses = []
    for dtype in ("float32", "bfloat16"):
        task = make_task(answer="none", before=False)
        result = run(tmp_path / dtype, LoRA(4), task, dtype=dtype, checkpoint_every=0)
        losses.append(result["test_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_model_without_weights_of_its_own_is_not_needed_for_a_skeleton():
    task = make_task()
    whole = {name: (p.shape, p.requires_grad) for name, p in task.build_model().named_parameters()}
    skeleton = task.skeleton()
    assert {n: (p.shape, p.requires_grad) for n, p in skeleton.named_parameters()} == whole
    assert all(p.is_meta for p in skeleton.parameters())


def test_losses_in_a_batch_of_labels_are_means():
    task = make_labels()
    model, batch = task.build_model().eval(), task.micro_batches(0, 0)[0]
    logits = model(**batch.arguments).logits
    assert task.loss(model, batch).item() == pytest.approx(
        F.cross_entropy(logits, batch.targets).item()
    )
