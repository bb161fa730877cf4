"""One training run: what it writes, that it learns, and that what it reports is so."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from cases import every_default
from safetensors.torch import load_file
from tiny import LLAMA, OPT, Recorder, final, make_options, make_task, rows, run

import spectrain
from spectrain import SST, FullRank, LoRA, ReLoRA
from spectrain.runs.files import read_json
from spectrain.runs.health import is_lost
from spectrain.runs.jobs import train
from spectrain.runs.loop import DivergedError
from spectrain.runs.view import Silent
from spectrain.tasks.lm.evaluate import evaluate
from spectrain.tasks.lm.task import LanguageModelling

FILES = {
    *(".lock", "config.json", "metrics.jsonl", "timing.jsonl", "result.json", "spectra.json"),
    *(
        "dynamics.jsonl",
        "checkpoints",
        "tokenizer",
        "model",
        "report.html",
        "loss.png",
        "spectra.png",
    ),
}


def test_a_run_leaves_a_directory_that_says_everything(tmp_path):
    method = SST(4, resample_every=3)
    task, options = make_task(), make_options(checkpoint_every=5, seed=7)
    result, report = train(task, method, options, tmp_path / "run", Silent())
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    assert report == tmp_path / "run" / "report.html"
    assert "Training with sst" in report.read_text(encoding="utf-8")

    config = read_json(tmp_path / "run" / "config.json")
    assert (config["format"], config["task"]) == (1, "lm")
    assert config["method"] == json.loads(json.dumps(method.settings()))
    assert config["options"]["seed"] == 7
    assert config["options"]["model_config"] == LLAMA
    assert (
        config["corpus"]["fingerprint"] == task.corpus.fingerprint == result["corpus_fingerprint"]
    )
    assert {"python", "torch", "threads", "platform"} <= set(config["environment"])

    found = rows(tmp_path / "run")
    assert [row["step"] for row in found if "loss" in row] == [4, 5, 6, 8, 10, 12]
    assert [row["step"] for row in found if "validation_loss" in row] == [6, 12]
    assert [row["step"] for row in found] == sorted(row["step"] for row in found)
    names = {name for row in found for name in row}
    assert names == {"step", "loss", "lr", "lr_ordinary", "validation_loss", "test_loss"}
    assert found[0]["lr"] == pytest.approx(options.lr * options.rate(3))

    timing = [
        json.loads(line) for line in (tmp_path / "run" / "timing.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in timing] == [4, 5, 6, 8, 10, 12]
    assert timing[-1]["seconds"] == pytest.approx(result["seconds"], abs=1e-3)
    assert timing == sorted(timing, key=lambda row: row["seconds"])
    assert result["seconds_per_step"] > 0

    spectra = read_json(tmp_path / "run" / "spectra.json")
    assert len(spectra) == 4
    assert all(len(values["initial"]) == len(values["final"]) == 32 for values in spectra.values())
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == [
        *("step-00000005", "step-00000010", "step-00000012"),
    ]
    assert (result["steps"], result["tokens"], result["seed"]) == (12, 12 * 4 * 16, 7)
    assert result["failed"] is None
    assert result["method"] == config["method"]


@every_default
def test_every_method_learns_and_reports_its_numbers(tmp_path, method):
    result = run(tmp_path / "run", method, steps=30, lr=2e-2, eval_every=0)
    found = [row["loss"] for row in rows(tmp_path / "run") if "loss" in row]
    assert found[0] < math.log(300) + 0.3
    assert found[-1] < found[0] - 0.5
    assert result["test_loss"] < found[0]

    # The numbers of result.json, counted anew from the tensors of the checkpoint.
    tensors = final(tmp_path / "run")
    task = make_task()
    model = spectrain.apply(task.build_model(), method, report=None)
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert result["trainable_parameters"] == sum(p.numel() for p in trainable.values())
    assert result["frozen_parameters"] == sum(p.numel() for p in frozen)
    rotary = sum(
        b.nbytes for n, b in model.named_buffers() if f"model/{n}" not in tensors
    )  # buffers that a state dict leaves out
    weights = sum(t.nbytes for name, t in tensors.items() if name.startswith("model/"))
    state = {n: t for n, t in tensors.items() if n.startswith("optimizer/") and "rng" not in n}
    assert result["bytes"]["weights"] == weights + rotary
    assert result["bytes"]["optimizer"] == sum(t.nbytes for t in state.values())
    assert result["bytes"]["gradients"] == sum(p.nbytes for p in trainable.values())


def test_tied_weights_are_counted_once(tmp_path):
    result = run(tmp_path / "run", LoRA(4), make_task("opt-125m", OPT))
    model = make_task("opt-125m", OPT).build_model()
    assert model.lm_head.weight is model.model.decoder.embed_tokens.weight
    total = result["trainable_parameters"] + result["frozen_parameters"]
    factors = 4 * (4 * (32 + 32) + 2 * (32 + 48))
    assert total == sum(p.numel() for p in model.parameters()) + factors


@every_default
def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path, method):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(tmp_path / name, method, seed=seed)
    a, b, c = ((tmp_path / n / "metrics.jsonl").read_text() for n in "abc")
    assert a == b != c
    tensors, others = final(tmp_path / "a"), final(tmp_path / "b")
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)


def test_measuring_and_saving_change_nothing(tmp_path):
    method = SST(4, resample_every=3)
    run(tmp_path / "a", method, eval_every=0, log_every=12)
    run(tmp_path / "b", method, eval_every=3, log_every=1, checkpoint_every=2)
    a, b = final(tmp_path / "a"), final(tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_accumulated_gradients_are_those_of_the_larger_batch(tmp_path):
    whole = make_task(batch_size=8)
    parts = make_task(batch_size=2, accumulate=4)
    assert whole.units_per_step == parts.units_per_step
    assert torch.equal(whole.micro_batches(5, 0)[0], torch.cat(parts.micro_batches(5, 0)))
    for name, task in (("whole", whole), ("parts", parts)):
        run(tmp_path / name, FullRank(), task, optimizer="sgd", lr=0.5, eval_every=0)
    expected = [row["loss"] for row in rows(tmp_path / "whole") if "loss" in row]
    found = [row["loss"] for row in rows(tmp_path / "parts") if "loss" in row]
    assert found == pytest.approx(expected, rel=1e-5)  # sums of float32 in another order
    assert expected[-1] < expected[0]


def test_the_two_learning_rates_go_where_they_should(tmp_path):
    run(tmp_path / "run", FullRank(), lr=0.0, lr_ordinary=1e-2, eval_every=0)
    torch.manual_seed(0)
    start = make_task().build_model().state_dict()
    moved = {
        name.removeprefix("model/")
        for name, t in final(tmp_path / "run").items()
        if name.startswith("model/") and not torch.equal(t, start.get(name[6:], t))
    }
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= moved
    assert not [name for name in moved if "proj" in name]
    assert rows(tmp_path / "run")[0]["lr"] == 0.0
    assert rows(tmp_path / "run")[0]["lr_ordinary"] > 0.0


def test_a_warm_start_is_a_phase_of_its_own(tmp_path):
    view = Recorder()
    method = ReLoRA(4, merge_every=3, warm_start=5, rewarm=2)
    result = run(tmp_path / "run", method, view=view, checkpoint_every=2)
    assert view.titles == ["Full rank", "ReLoRA*"]
    assert [s.split(" on ")[0] for s in view.said if " on 7 layers" in s] == [
        "Full rank",
        "ReLoRA*",
    ]
    assert [row["step"] for row in rows(tmp_path / "run") if "loss" in row] == [
        2,
        4,
        5,
        6,
        8,
        10,
        12,
    ]

    def names(step):
        folder = tmp_path / "run" / "checkpoints" / f"step-{step:08d}"
        return set(load_file(folder / "model.safetensors"))

    assert not [name for name in names(4) if name.endswith(".A")]
    assert len([name for name in names(6) if name.endswith(".A")]) == 7
    assert result["frozen_parameters"] > 0
    # Sizes are those of the full-rank phase, the larger one.
    assert result["bytes"]["gradients"] > 4 * result["trainable_parameters"]
    # The method is kept whole: not as what its last phase is.
    assert result["method"]["warm_start"] == 5


def test_evaluation_is_of_the_held_out_parts_and_as_long_as_asked(tmp_path):
    task = make_task(eval_tokens=200, final_tokens=10**6)
    result = run(tmp_path / "run", FullRank(), task, checkpoint_every=6)

    def measure(step, split, tokens):
        model = task.build_model()
        folder = tmp_path / "run" / "checkpoints" / f"step-{step:08d}"
        state = load_file(folder / "model.safetensors")
        model.load_state_dict(
            {n: t for n, t in state.items() if not n.endswith((".clock", ".seed"))}
        )
        return evaluate(model, task.corpus.splits[split], 16, 4, max_tokens=tokens).loss

    early = next(row for row in rows(tmp_path / "run") if "validation_loss" in row)
    assert early["validation_loss"] == pytest.approx(measure(6, "validation", 200), rel=1e-6)
    assert result["validation_loss"] == pytest.approx(measure(12, "validation", None), rel=1e-6)
    assert result["test_loss"] == pytest.approx(measure(12, "test", None), rel=1e-6)
    last = rows(tmp_path / "run")[-1]
    assert last == {"step": 12, **{k: result[k] for k in ("validation_loss", "test_loss")}}


def test_bfloat16_arithmetic_keeps_float32_weights(tmp_path):
    method = SST(4, resample_every=3)
    low = run(tmp_path / "low", method, dtype="bfloat16", steps=30)
    full = run(tmp_path / "full", method, steps=30)
    tensors = [t for n, t in final(tmp_path / "low").items() if n.startswith("model/")]
    assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float32}
    assert low["test_loss"] != full["test_loss"]
    assert low["test_loss"] == pytest.approx(full["test_loss"], rel=0.02)


def test_clipping_bounds_the_update(tmp_path):
    options = {"optimizer": "sgd", "lr": 1.0, "warmup": 0.0, "steps": 1, "eval_every": 0}
    run(tmp_path / "run", FullRank(), clip=1e-3, **options)
    torch.manual_seed(0)
    start = make_task().build_model().state_dict()
    after = final(tmp_path / "run")
    change = sum((after[f"model/{n}"] - t).square().sum() for n, t in start.items())
    assert change.sqrt().item() == pytest.approx(1e-3, rel=1e-3)


class Exploding(LanguageModelling):
    """From step 6 on, the loss is many times what it was."""

    factor = math.nan

    def micro_batches(self, step, seed):
        self.late = step >= 6
        return super().micro_batches(step, seed)

    def loss(self, model, batch):
        return super().loss(model, batch) * (self.factor if self.late else 1.0)


@pytest.mark.parametrize(("factor", "said"), [(math.nan, "loss nan"), (10.0, r"loss [345]\d")])
def test_a_loss_that_is_lost_ends_the_run_in_one_sentence(tmp_path, factor, said, monkeypatch):
    monkeypatch.setattr(Exploding, "factor", factor)
    task = make_task(kind=Exploding)
    with pytest.raises(DivergedError, match=f"^training diverged: {said}.* at step 8") as caught:
        run(tmp_path / "run", FullRank(), task, checkpoint_every=5, log_every=2)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert "last good checkpoint: step 5" in str(caught.value)
    assert ("first non-finite parameter" in str(caught.value)) == math.isnan(factor)
    result = read_json(tmp_path / "run" / "result.json")
    assert re.search(said, result["failed"])
    assert result["steps"] == 8
    assert "test_loss" not in result
    assert all(math.isfinite(row.get("loss", 0.0)) for row in rows(tmp_path / "run"))


def test_an_infinite_first_loss_is_no_measure_for_later_ones():
    assert is_lost(math.inf, None)
    assert is_lost(math.nan, 2.0)
    assert not is_lost(5.9, 2.0)
    assert is_lost(6.1, 2.0)


def test_events_that_the_run_is_too_short_for_are_named(tmp_path):
    with pytest.warns(spectrain.errors.SpectrainWarning, match="no re-SVD will happen in 12 steps"):
        run(tmp_path / "run", SST(4, resample_every=3, iterations_per_round=5))


def test_weights_that_are_lost_before_the_loss_is_looked_at_end_the_run_too(tmp_path):
    with pytest.raises(DivergedError, match="NaN or infinite weights at step"):
        run(tmp_path / "run", SST(4, resample_every=2, iterations_per_round=1), lr=1e38)
    assert "weights" in read_json(tmp_path / "run" / "result.json")["failed"]


def test_the_size_of_a_run_is_that_of_its_largest_phase(tmp_path):
    full = run(tmp_path / "full", FullRank())
    relora = run(tmp_path / "relora", ReLoRA(2, merge_every=3, warm_start=4))
    assert relora["bytes"] == full["bytes"]
