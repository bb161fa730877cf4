"""`spectrain plan`: tables, JSON, what fits, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner
from tiny import causal_model

from spectrain import UsageError
from spectrain.cli.main import cli
from spectrain.method import registered

SMALL = (
    *("--model", "llama-9m", "--model-config", "hidden_size=32", "--vocab-size", "300"),
    *("--model-config", "intermediate_size=48", "--model-config", "num_attention_heads=2"),
    *("--model-config", "num_key_value_heads=2", "--model-config", "num_hidden_layers=1"),
    *("--sequence-length", "16", "--batch-size", "2"),
)


def command(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["plan", *SMALL, *arguments])


def test_the_command_prints_a_table():
    result = command("--method", "sst", "--method.rank", "4")
    assert result.exit_code == 0, result.output
    for text in ("SST", "optimizer state", "exact", "≈", "peak of a step", "Next to switch on"):
        assert text in result.output


def test_the_command_prints_json_for_several_methods():
    keys = ",".join(registered())
    result = command("--methods", keys, "--rank", "4", "--sst.rank", "5", "--json")
    assert result.exit_code == 0, result.output
    found = {plan["method"]["name"]: plan for plan in json.loads(result.stdout)}
    assert list(found) == list(registered())
    assert found["sst"]["method"]["rank"] == 5
    assert found["lora"]["method"]["rank"] == 4
    assert found["sst"]["setting"]["model"] == "llama-9m"


def test_weights_in_a_folder_are_not_read(tmp_path):
    model = causal_model()
    model.save_pretrained(tmp_path)
    (weights,) = tmp_path.glob("*.safetensors")
    weights.write_bytes(b"no weights at all")
    arguments = ["plan", "--model", str(tmp_path), "--sequence-length", "16", "--method", "full"]
    result = CliRunner().invoke(cli, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)[0]["parts"]["weights"]["bytes"]
    assert found == sum(p.nbytes for p in model.parameters())


def test_switches_lower_the_plan():
    def peak(*flags: str) -> int:
        result = command("--method", "lora", "--method.rank", "4", "--json", *flags)
        assert result.exit_code == 0, result.output
        size: int = json.loads(result.stdout)[0]["peak"]
        return size

    whole = peak("--batch-size", "32", "--loss-chunk", "0")
    chunked = peak("--batch-size", "32", "--loss-chunk", "32")
    both = peak("--batch-size", "32", "--loss-chunk", "32", "--gradient-checkpointing")
    assert whole > chunked > both


def test_the_command_says_what_fits():
    arguments = ("--methods", "full,sst", "--rank", "4", "--memory", "2MiB", "--json")
    full, sst = json.loads(command(*arguments).stdout)
    assert full["fits"]["batch_size"] > 1
    assert full["fits"]["batch_peak"] <= 2 * 2**20
    assert 1 <= sst["fits"]["rank"] <= sst["fits"]["largest_rank"] == 32
    shown = command("--method", "full", "--memory", "10KiB").output
    assert "not even a batch of 1 fits" in shown
    assert "next to switch on" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "ssst"), "did you mean 'sst'"),
        (("--method", "sst"), "--method.rank"),
        (("--method", "sst", "--methods", "full"), "not both"),
        (("--methods", "full,full"), "once"),
        (("--methods", "sst", "--method.rank", "3"), "--rank"),
        (("--method", "full", "--memory", "much"), "24GiB"),
        (("--method", "full", "--memory", "0"), "24GiB"),
        (("--method", "full", "--optimizer", "AdamX"), "torch.optim has no"),
        (("--method", "full", "--model", "llama-8b"), "did you mean"),
        (("--method", "sst", "--method.rank", "64"), "choose 1"),
    ],
)
def test_wrong_input_gets_a_sentence(arguments, message):
    result = command(*arguments)
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)


def test_a_small_method_is_planned_by_the_installed_command():
    words = ["plan", *SMALL, "--method", "full", "--json"]
    run = [sys.executable, "-m", "spectrain", *words]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["peak"] > 0
