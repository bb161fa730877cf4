"""Runs of fine-tuning, and the plain checkpoints that come of them."""

from __future__ import annotations

import signal

import pytest
import torch
from cases import DEFAULTS, KINDS, some_of
from tiny import final, rows, same
from tiny_base import every_kind, make_labels, make_task, run, write_causal
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from spectrain import SST, FullRank, GaLore, LoRA
from spectrain.errors import RunError
from spectrain.runs.export import export
from spectrain.runs.files import read_json
from spectrain.runs.interrupt import Interrupted
from spectrain.surgery import parametrized
from spectrain.tasks.classify.plain import outputs
from spectrain.tasks.classify.task import TextClassification
from spectrain.tasks.finetune.task import FineTuning

METHOD = SST(rank=4, resample_every=3, warmup=2, iterations_per_round=2)


# --- the loop -------------------------------------------------------------------------------------


@every_kind
@some_of(DEFAULTS, KINDS)
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


# --- plain checkpoints ----------------------------------------------------------------------------


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
