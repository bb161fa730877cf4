"""The task `translate`: the common loop, plain checkpoints, BLEU, the command line."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from tiny import final, rows

from spectrain import SST, FullRank, LoRA
from spectrain.cli.translate import compare_translate, train_translate, translate
from spectrain.errors import RunError, UsageError
from spectrain.runs.compare import load_comparison
from spectrain.runs.export import export
from spectrain.runs.files import read_json
from spectrain.runs.interrupt import Interrupted
from spectrain.runs.jobs import train
from spectrain.runs.options import RunOptions
from spectrain.runs.view import Silent
from spectrain.surgery import apply, parametrized
from spectrain.tasks.translate.evaluate import bleu, bleu_metric, bleu_signature
from spectrain.tasks.translate.options import TranslateOptions
from spectrain.tasks.translate.plain import load_translator
from spectrain.tasks.translate.recipes import RECIPES, recipe_for
from spectrain.tasks.translate.task import Translation

METHOD = SST(rank=2, resample_every=4, warmup=4, iterations_per_round=2)
every_geometry = pytest.mark.parametrize("geometry", ["euclidean", "hyperbolic"])


@pytest.fixture(autouse=True)
def _without_plans(request, monkeypatch):
    """Planning takes longer than these runs, and has a test of its own."""
    if "planned" not in request.node.name:
        monkeypatch.setattr("spectrain.runs.memory.plan", no_plan)


def no_plan(*args, **kwargs):
    raise UsageError("not planned here")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A corpus so small that all of it is translated in no time."""
    folder = tmp_path_factory.mktemp("words")
    words = {"eins": "one", "zwei": "two", "drei": "three", "vier": "four"}
    # All sentences of four words, their translation word by word; a twelfth is for each test.
    quads = list(itertools.product(words, repeat=4))
    pairs = [(" ".join(q), " ".join(words[word] for word in q)) for q in quads]
    held = {"val": pairs[::12], "test": pairs[6::12]}
    rest = [pair for pair in pairs if pair not in held["val"] + held["test"]]
    for split, part in {"train": rest, **held}.items():
        for side, language in enumerate(("de", "en")):
            text = "".join(f"{pair[side]}\n" for pair in part)
            (folder / f"{split}.{language}").write_text(text)
    return folder


def make_task(data, kind=Translation, **options):
    values = {"dim": 8, "heads": 2, "layers": 1, "vocab_size": 340, "dropout": 0.1, "beam": 2}
    values |= {"batch_tokens": 130, "max_length": 20, "data": str(data)}
    return kind.load(TranslateOptions(**values | options))


def make_options(**options):
    values = {"steps": 24, "lr": 0.01, "optimizer": "Adam", "exclude": "head", "log_every": 4}
    values |= {"eval_every": 8, "checkpoint_every": 8, "keep": 20, "device": "cpu"}
    return RunOptions(**values | options)


def run(directory, task, method=METHOD, **options):
    return train(task, method, make_options(**options), directory, Silent())[0]


# --- learning ----------------------------------------------------------------------------------


@every_geometry
def test_it_learns_to_translate(tmp_path, data, geometry):
    exact = {"dropout": 0.0, "attention_dropout": 0.0, "label_smoothing": 0.0}
    task = make_task(data, geometry=geometry, dim=32, batch_tokens=400, **exact)
    result = run(tmp_path / "run", task, FullRank(), steps=180, lr=0.004, eval_every=45)
    assert result["test_bleu"] > 95
    assert result["test_loss"] < 0.05
    measured = [
        row["validation_loss"] for row in rows(tmp_path / "run") if "validation_loss" in row
    ]
    assert measured[-1] < measured[0] / 4
    assert len(measured) == 4
    samples = read_json(tmp_path / "run" / "samples.json")
    assert samples["columns"] == ["de", "en", "translation"]
    assert sum(reference == found for _, reference, found in samples["rows"]) >= 10
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Samples" in report
    assert samples["rows"][0][0] in report


def test_bleu_is_what_sacrebleus_command_says(tmp_path, data):
    task = make_task(data, dim=32, batch_tokens=400)
    result = run(tmp_path / "run", task, FullRank(), steps=40, lr=0.01)
    assert 0 < result["test_bleu"] < 100
    files = tmp_path / "run" / "test.en", "-i", tmp_path / "run" / "translation.en"
    command = [sys.executable, "-m", "sacrebleu", *map(str, files), "-w", "10"]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert said["score"] == pytest.approx(result["test_bleu"])
    signature = read_json(tmp_path / "run" / "config.json")["corpus"]["bleu"]
    assert signature == said["signature"]


@every_geometry
def test_passes_add_up_to_one_batch(data, geometry):
    torch.manual_seed(0)
    task = make_task(data, geometry=geometry, dropout=0.0, attention_dropout=0.0, accumulate=3)
    model = task.build_model()
    parts = task.micro_batches(1, 0)
    assert len(parts) == 3
    for part in parts:
        (task.loss(model, part) / 3).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    sums, tokens = 0.0, 0
    for part in parts:
        count = int((part.targets[:, 1:] != 0).sum())
        mean = task.loss(model, type(part)(part.inputs, part.targets))
        sums, tokens = sums + mean * count, tokens + count
    (sums / tokens).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, found[name], atol=1e-5, rtol=1e-3, msg=name)


@every_geometry
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, data, geometry):
    class Stopping(Translation):
        once = True

        def micro_batches(self, step, seed):
            if step == 5 and self.once:
                self.once = False
                signal.raise_signal(signal.SIGINT)
            return super().micro_batches(step, seed)

    options = {"geometry": geometry, "accumulate": 2}
    run(tmp_path / "whole", make_task(data, **options), steps=9)
    task = make_task(data, Stopping, **options)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", task, steps=9)
    run(tmp_path / "parts", task, steps=9)
    first, second = final(tmp_path / "whole"), final(tmp_path / "parts")
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]
    for name in ("metrics.jsonl", "translation.en"):
        assert len({(tmp_path / part / name).read_text() for part in ("whole", "parts")}) == 1


def test_the_best_checkpoint_counts_where_it_is_asked_for(tmp_path, data):
    class Judged(Translation):
        steps = 0

        def micro_batches(self, step, seed):
            self.steps = step + 1
            return super().micro_batches(step, seed)

        def evaluate(self, model, split, *, thorough, **how):
            found = super().evaluate(model, split, thorough=thorough, **how)
            if not thorough:
                assert found.keys() == {"loss"}
                found["loss"] = {8: 0.5, 16: 0.3, 24: 0.4}[self.steps]
            return found

    result = run(tmp_path / "run", make_task(data, Judged), patience=24)
    assert (result["best_step"], result["stopped_early"]) == (16, False)


def test_what_a_step_takes_is_planned(tmp_path, data):
    task = make_task(data, geometry="hyperbolic", batch_tokens=600)
    memory = run(tmp_path / "run", task, LoRA(2), steps=2)["memory"]
    assert memory["planned"]["weights"] == memory["measured"]["weights"]
    assert memory["measured"]["peak"] <= 1.05 * memory["planned"]["peak"]


def test_long_pairs_are_left_out_and_said(data):
    assert make_task(data, max_length=8).notes() == []
    task = make_task(data, max_length=8, vocab_size=259)
    with pytest.raises(UsageError, match="no training pair is short enough for --max-length 8"):
        task.notes()
    task = make_task(data, max_length=14, vocab_size=264)
    assert "training pairs are longer than 14 tokens" in task.notes()[0]
    assert "source texts of test are longer than 14 tokens and cut" in task.notes()[-1]


# --- plain checkpoints -------------------------------------------------------------------------


@every_geometry
@pytest.mark.parametrize("vocabulary", ["shared", "separate"])
def test_a_merged_translator_is_plain_and_translates_the_same(tmp_path, data, geometry, vocabulary):
    task = make_task(data, geometry=geometry, vocabulary=vocabulary)
    run(tmp_path / "run", task, steps=40)
    done = export(tmp_path / "run", tmp_path / "plain", shard_size="8KB")
    assert done.difference <= 1e-4 * max(1, done.largest)
    assert len(list((tmp_path / "plain").glob("*.safetensors"))) > 1
    translator = load_translator(tmp_path / "plain")
    assert not list(parametrized(translator.model))
    found = translator(task.corpus.splits["test"][0])
    assert (
        "".join(f"{text}\n" for text in found) == (tmp_path / "run" / "translation.en").read_text()
    )
    assert translator(["", "zwei drei", " "], beam=1)[::2] == ["", ""]
    assert translator([" zwei  drei\n"]) == translator(["zwei  drei"])
    assert translator.cut(["zwei drei", "zwei " * 40]) == 1
    config = read_json(tmp_path / "plain" / "config.json")
    config["network"]["dim"] = 16
    (tmp_path / "plain" / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match="cannot be loaded"):
        load_translator(tmp_path / "plain")
    (tmp_path / "plain" / "config.json").write_text("[]")
    with pytest.raises(UsageError, match="describes no such network"):
        load_translator(tmp_path / "plain")


# --- the command line --------------------------------------------------------------------------

SMALL = (
    "--dim",
    "8",
    "--heads",
    "2",
    "--layers",
    "1",
    "--vocab-size",
    "300",
    "--batch-tokens",
    "130",
)
SMALL += ("--max-length", "20", "--steps", "8", "--eval-every", "4", "--beam", "1")


def command(cmd, *arguments, **how):
    return CliRunner().invoke(cmd, [str(a) for a in arguments], standalone_mode=False, **how)


def test_train_and_translate(tmp_path, data):
    out = tmp_path / "run"
    method = ("--method", "lora", "--method.rank", "2")
    done = command(train_translate, "--data", data, *SMALL, *method, "--out", out)
    assert not done.exception, done.output
    assert "an epoch is" in done.output
    assert f"spectrain translate {out} < text.de" in done.output.replace("\n", "")
    found = command(translate, out, input="zwei drei\n\nvier eins\n")
    assert len(found.output.split("\n")) == 4
    export(out, tmp_path / "plain")
    assert (
        command(translate, tmp_path / "plain", input="zwei drei\n\nvier eins\n").output
        == found.output
    )
    assert "no run" in str(command(translate, tmp_path / "plain", "--checkpoint", "last").exception)
    assert "is not UTF-8 text" in str(command(translate, out, input=b"\xff\xfe").exception)
    assert "is no run" in str(command(translate, tmp_path / "none", input="a").exception)


def test_a_comparison(tmp_path, data):
    out = tmp_path / "cmp"
    how = (
        "--methods",
        "full,lora",
        "--rank",
        "1,2",
        "--sweep-lr",
        "1e-2",
        "--seeds",
        "1",
        "--extend",
        "0",
    )
    done = command(compare_translate, "--data", data, *SMALL, *how, "--out", out)
    assert not done.exception, done.output
    comparison = load_comparison(out)
    assert [arm.key for arm in comparison.plan.arms] == ["full", "lora-r1", "lora-r2"]
    assert [score.title for score in comparison.plan.scores] == ["BLEU", "loss"]
    for result in comparison.results.values():
        assert 0 <= result["test_bleu"] <= 100
    words = (out / "report.html").read_text()
    assert "test BLEU" in words
    assert words.count("<details><summary>LoRA") == 2


def test_recipes_are_the_published_settings():
    warm, dim = 6000, 64
    for geometry, factor in (("euclidean", 5.0), ("hyperbolic", 2.0)):
        values = recipe_for("iwslt14", {"geometry": geometry}, False)
        options = RunOptions(**{k: values[k] for k in ("steps", "lr", "schedule", "warmup")})
        for step in (0, 100, 5999, 20_000):
            published = factor * dim**-0.5 * min((step + 1) ** -0.5, (step + 1) * warm**-1.5)
            assert options.lr * options.rate(step) == pytest.approx(published)
    given = {"geometry": "hyperbolic", "dim": 256, "steps": 20_000}
    values = recipe_for("iwslt14", given, False)
    assert values["lr"] == pytest.approx(2.0 * (256 * warm / 2) ** -0.5)
    assert "norm" not in values
    assert recipe_for("multi30k", {}, True)["lr"] == 1e-4
    assert recipe_for("multi30k", {}, False)["lr"] == 3e-4
    assert recipe_for("none", {}, False) == {}
    with pytest.raises(UsageError, match="there is none, iwslt14, multi30k, iwslt17"):
        recipe_for("wmt14", {}, False)
    for name in RECIPES:
        values = recipe_for(name, {}, False)
        fields = TranslateOptions.__dataclass_fields__, RunOptions.__dataclass_fields__
        assert all(any(key in known for known in fields) for key in values)


def test_a_recipe_gives_way_to_flags(tmp_path, data):
    out = tmp_path / "run"
    flags = (*SMALL, "--source", "de", "--target", "en", "--accumulate", "1", "--feedforward", "16")
    recipe = ("--recipe", "iwslt14", "--method", "full")
    done = command(train_translate, "--data", data, *flags, *recipe, "--out", out)
    assert not done.exception, done.output
    options = read_json(out / "config.json")["options"]
    assert (options["dim"], options["steps"], options["schedule"]) == (8, 8, "noam")
    assert options["lr"] == pytest.approx(5.0 * (8 * 0.15 * 8) ** -0.5)
    assert options["norm"] == "pre"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "lora", "--method.rank", "99"], "rank"),
        (["--source", "fr"], r"has no train\.fr beside train\.en"),
        (["--test-set", "test_9"], "--test-set test_9"),
        (["--vocab-size", "10"], "at least 259"),
        (["--heads", "3"], "cannot divide dim"),
        (["--recipe", "wmt"], "there is none"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(tmp_path, data, arguments, message):
    method = [] if "--method" in arguments else ["--method", "full"]
    done = command(
        train_translate, "--data", data, *SMALL, *method, *arguments, "--out", tmp_path / "r"
    )
    assert isinstance(done.exception, UsageError), done.output
    assert re.search(message, str(done.exception))
    assert "\n" not in str(done.exception).strip()


def test_layers_of_a_translator_are_all_found(data):
    task = make_task(data, geometry="hyperbolic")
    model = apply(task.skeleton(), LoRA(2), exclude=("head",), report=None)
    names = [name for name, _ in parametrized(model)]
    assert "source.place.dense" in names
    assert "decoder.0.across.key.dense" in names


def test_a_tie_of_bleu_is_decided_by_the_loss(tmp_path, data):
    how = ("--methods", "full", "--sweep-lr", "1e-5,1e-3", "--seeds", "0", "--extend", "0")
    done = command(
        compare_translate, "--data", data, *SMALL[:-6], "--steps", "4", "--beam", "1", *how,
        "--eval-every", "4", "--out", tmp_path / "cmp",
    )  # fmt: skip
    assert not done.exception, done.output
    comparison = load_comparison(tmp_path / "cmp")
    scores = {
        t.lr: (r["validation_bleu"], r["validation_loss"]) for t, r in comparison.results.items()
    }
    assert scores[1e-5][0] == scores[1e-3][0] == 0
    assert scores[1e-3][1] < scores[1e-5][1]
    assert comparison.progress.best["full"].lr == 1e-3


@pytest.mark.parametrize(
    ("target", "lowercase", "signature"),
    [
        ("en", False, "case:mixed|eff:no|tok:13a"),
        ("pt-br", True, "case:lc|eff:no|tok:13a"),
        ("zh_CN", False, "case:mixed|eff:no|tok:zh"),
        ("ja", False, "case:mixed|eff:no|tok:char"),
    ],
)
def test_bleu_counts_what_the_language_calls_words(target, lowercase, signature):
    metric = bleu_metric(target, lowercase)
    assert signature in bleu_signature(metric)
    if target == "zh_CN":
        texts = ["这是一个很好的测试句子"] * 3, ["这是一个很好的测试例子"] * 3
        assert bleu(*texts, metric) == pytest.approx(80.7, abs=0.1)
