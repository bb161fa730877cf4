"""`train image` and `compare image` as they are typed."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from spectrain.cli.image import compare_image, train_image
from spectrain.errors import UsageError
from spectrain.runs.compare import load_comparison
from spectrain.runs.files import read_json


def invoke(command, *arguments):
    result = CliRunner().invoke(command, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_command_trains_on_the_digits(tmp_path):
    arguments = ("--method", "lora", "--method.rank", "2", "--steps", "40", "--hidden", "16")
    result = invoke(train_image, *arguments, "--device", "cpu", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "digits: 8 × 8 grey pixels, 10 classes; train 1,259, validation 179" in result.output
    assert "40 steps of 64 images are 2.0 epochs" in result.output
    assert "% validation, " in result.output.split("accuracy", 1)[1]
    config = read_json(tmp_path / "run" / "config.json")
    assert config["task"] == "image"
    assert config["options"]["exclude"] == "head"


def test_the_command_compares(tmp_path):
    arguments = ("--methods", "full,lora", "--rank", "2", "--sweep-lr", "1e-3", "--seeds", "1")
    arguments += ("--extend", "0", "--steps", "6", "--hidden", "16", "--device", "cpu")
    result = invoke(compare_image, *arguments, "--out", tmp_path / "cmp")
    assert result.exit_code == 0, result.output
    again = load_comparison(tmp_path / "cmp")
    assert again.finished
    assert [score.key for score in again.plan.scores] == ["accuracy"]
    report = (tmp_path / "cmp" / "report.html").read_text()
    assert "<h2>Mistakes</h2>" in report
    assert report.count("its most confident mistakes.</figcaption>") == 2
    assert "<h2>Embeddings</h2>" not in report


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--data", "nowhere"), "there is no folder"),
        (("--hidden", "3,,4"), "give whole numbers above 0 separated by commas"),
        (("--hidden", "0"), "give whole numbers above 0 separated by commas"),
        (("--model", "vit", "--heads", "5"), "cannot be divided over 5 heads"),
        (("--model", "vit", "--patch-size", "3"), "give a --patch-size that divides both"),
        (("--batch-size", "900", "--accumulate", "2"), "a step takes 1,800 images"),
        (("--validation", "0.5", "--test", "0.5"), "nothing is left to train on"),
        (("--method.rank", "65"), "rank is 65"),
    ],
)
def test_wrong_flags_are_refused(tmp_path, arguments, said):
    given = ("--method", "lora", "--method.rank", "1", "--out", tmp_path / "run", *arguments)
    with pytest.raises(UsageError, match=said) as caught:
        invoke(train_image, *given)
    assert "\n" not in str(caught.value)
