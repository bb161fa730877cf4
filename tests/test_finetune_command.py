"""`train finetune` and `compare finetune` as they are typed."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from tiny_base import causal, encoder

from spectrain.cli.finetune import compare_finetune, train_finetune
from spectrain.errors import UsageError
from spectrain.runs.compare import load_comparison
from spectrain.runs.files import read_json

FEW = ("--steps", "4", "--device", "cpu", "--max-length", "160", "--final-examples", "8")
FEW += ("--eval-examples", "8", "--batch-size", "4")
SHORT = ("--generate", "4", "--max-new-tokens", "4")


def invoke(command, *arguments):
    result = CliRunner().invoke(command, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_command_tunes_responses(tmp_path):
    arguments = ("--model", causal(), "--method", "lora", "--method.rank", "2", *FEW, *SHORT)
    result = invoke(train_finetune, *arguments, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "the rest is frozen (--train-ordinary trains it, too)" in result.output
    assert "built-in word problems: train 2,000, validation 200, test 200" in result.output
    line = next(x for x in result.output.splitlines() if x.startswith("exact match on test"))
    assert "→" in line
    assert "95 % interval" in line
    assert line.endswith("4 responses)")
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Samples" in report
    again = invoke(train_finetune, *arguments, "--out", tmp_path / "run")
    assert again.output.splitlines()[-9:] == result.output.splitlines()[-9:]


def test_the_command_tunes_labels(tmp_path):
    arguments = ("--model", encoder(), "--classify", "--method", "sst", "--method.rank", "2", *FEW)
    arguments += ("--max-length", "32")
    result = invoke(train_finetune, *arguments, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "2 labels, of which" in result.output
    for title in ("accuracy", "F1", "Matthews correlation"):
        assert f"\n{title} " in result.output
    assert read_json(tmp_path / "run" / "config.json")["task"] == "classify"


@pytest.mark.parametrize("classify", [False, True])
def test_the_command_compares(tmp_path, classify):
    kind = ("--model", causal(), "--answer", "none", "--no-before")
    if classify:
        kind = ("--model", encoder(), "--classify", "--metric", "matthews", "--max-length", "32")
    few = ("--methods", "full,lora", "--rank", "2", "--sweep-lr", "1e-3", "--seeds", "1")
    result = invoke(compare_finetune, *FEW, *kind, *few, "--extend", "0", "--out", tmp_path / "cmp")
    assert result.exit_code == 0, result.output
    again = load_comparison(tmp_path / "cmp")
    assert again.finished
    first = "matthews" if classify else "loss"
    assert again.plan.scores[0].key == first


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "there is no model to tune; give --model"),
        (("--model", "nowhere"), "is no transformers folder"),
        (("--model", "@"), "there is no file or folder"),
        (("--model", "@", "--keep-layers", "9"), "is of 2 layers"),
        (("--model", "@", "--max-length", "999"), "takes at most 256 tokens"),
        (("--model", "@", "--forgetting", "nowhere"), "there is no file"),
        (("--model", "@", "--template", "x"), "must hold {prompt} once"),
        (("--model", "@", "--batch-size", "3000"), "a step takes 3,000 examples"),
        (("--model", "@", "--method.rank", "99"), "rank is 99"),
    ],
)
def test_wrong_flags_are_refused(tmp_path, arguments, said):
    given = [causal() if a == "@" else a for a in arguments]
    if "there is no file or folder" in said:
        given += ["--data", "nowhere"]
    base = ("--method", "lora", "--method.rank", "1", "--max-length", "160")
    with pytest.raises(UsageError, match=said) as caught:
        invoke(train_finetune, *base, "--out", tmp_path / "run", *given)
    assert "\n" not in str(caught.value)
