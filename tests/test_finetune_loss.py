"""Losses of responses and labels, beside those of one example at a time."""

from __future__ import annotations

import pytest
import torch
from tiny_base import causal, encoder, make_labels, make_task
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
)

from spectrain import LoRA
from spectrain.errors import UsageError
from spectrain.surgery import apply
from spectrain.tasks.classify.scores import scores_of
from spectrain.tasks.finetune.batches import rows_of
from spectrain.tasks.finetune.loss import mean_loss, response_loss


def slow_losses(model, examples):
    """Each example alone, without filling, by transformers' own labels: sum and count."""
    total, count = 0.0, 0
    for example in examples:
        labels = example.tokens.clone()
        labels[: example.start] = -100
        loss = model(input_ids=example.tokens[None], labels=labels[None]).loss
        total, count = total + loss * example.answered, count + example.answered
    return total, count


# --- losses ---------------------------------------------------------------------------------------


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


# --- labels ---------------------------------------------------------------------------------------


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


# --- shares of several processes ------------------------------------------------------------------


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
