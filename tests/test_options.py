"""Options of runs, and how flags and a TOML file become them."""

from __future__ import annotations

import math

import click
import pytest
import torch

from spectrain.cli.lm import compare_lm, train_lm
from spectrain.errors import UsageError
from spectrain.runs.options import RunOptions

# --- the rate ------------------------------------------------------------------------------------


def test_the_rate_warms_up_and_follows_a_cosine_down_to_its_end():
    options = RunOptions(steps=100, warmup=0.1, final_lr=0.2)
    rates = [options.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1.0
    middle = 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 45 / 90))
    assert rates[55] == pytest.approx(middle)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert options.rate(100) == pytest.approx(0.2)


def test_noam_peaks_at_the_end_of_the_warm_up_and_falls_with_the_root_of_the_step():
    noam = RunOptions(steps=100, warmup=0.04, schedule="noam")
    rates = [noam.rate(step) for step in (0, 3, 15, 99)]
    assert rates == pytest.approx([0.25, 1.0, 0.5, 0.2])
    factor, dim, warm = 5.0, 64, 4  # the published form, with its factor as the peak's
    peak = factor * (dim * warm) ** -0.5
    published = [
        factor * dim**-0.5 * min((step + 1) ** -0.5, (step + 1) * warm**-1.5) for step in range(100)
    ]
    assert published == pytest.approx([peak * noam.rate(step) for step in range(100)])


def test_a_constant_rate_stays_and_no_warm_up_starts_at_once():
    constant = RunOptions(steps=20, warmup=0.25, schedule="constant")
    assert [constant.rate(step) for step in (0, 4, 5, 19)] == pytest.approx([0.2, 1.0, 1.0, 1.0])
    assert RunOptions(steps=20, warmup=0.0).rate(0) == 1.0
    assert RunOptions(steps=1).rate(0) == 1.0


def test_a_run_of_warm_up_alone_ends_at_the_full_rate():
    options = RunOptions(steps=8, warmup=1.0)
    assert [options.rate(step) for step in (0, 7)] == pytest.approx([1 / 8, 1.0])


# --- optimizer, device, excluded names -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"), [("adamw", "AdamW"), ("SGD", "SGD"), ("Adam", "Adam")]
)
def test_an_optimizer_is_found_by_name_whatever_its_case(name, expected):
    group = {"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.5}
    optimizer = RunOptions(optimizer=name).build_optimizer([group])
    assert type(optimizer).__name__ == expected
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_an_unknown_optimizer_names_a_near_one():
    with pytest.raises(UsageError, match=r"no 'adamm'; did you mean Adam\?"):
        RunOptions(optimizer="adamm").build_optimizer([])
    with pytest.raises(UsageError, match=r"torch\.optim has no 'zzz'$"):
        RunOptions(optimizer="zzz").build_optimizer([])


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(UsageError, match=f"--device {device} cannot be used here"):
        RunOptions(device=device).find_device()


def test_excluded_names_may_have_spaces_around_their_commas():
    assert RunOptions(exclude=" lm_head, down_proj ,").excluded == ["lm_head", "down_proj"]


@pytest.mark.parametrize(
    ("field", "value"), [("steps", 0), ("lr", -1.0), ("schedule", "linear"), ("warmup", 1.5)]
)
def test_impossible_values_are_refused_by_name(field, value):
    with pytest.raises(UsageError, match=f"{field} is {value!r}"):
        RunOptions(**{field: value})


# --- TOML ------------------------------------------------------------------------------------------


def parse(command, arguments):
    """The values a command would be called with."""
    return command.make_context("lm", list(arguments)).params


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "run.toml"
        path.write_text(text, encoding="utf-8")
        return "--config", str(path)

    return write


def test_a_config_file_sets_options_and_flags_win(config):
    given = config(
        """
        steps = 70
        lr = 4e-3
        batch_size = 3
        compile = true
        model-config = { num_hidden_layers = 2 }
        [method]
        name = "galore"
        rank = 8
        refresh_every = 5
        """
    )
    values = parse(train_lm, [*given, "--out", "x", "--steps", "7", "--method.rank", "9"])
    assert (values["steps"], values["lr"], values["batch_size"]) == (7, 4e-3, 3)
    assert (values["method"], values["method__rank"], values["method__refresh_every"]) == (
        *("galore", 9, 5),
    )
    assert values["compile"] is True
    assert values["model_config"] == ("num_hidden_layers=2",)
    assert values["eval_every"] == RunOptions().eval_every


def test_the_order_of_flags_and_config_does_not_matter(config):
    given = config("steps = 70")
    assert parse(train_lm, ["--steps", "7", "--out", "x", *given])["steps"] == 7


def test_a_config_of_a_comparison_takes_lists_and_tables_by_method(config):
    given = config(
        """
        out = "runs/x"
        methods = ["sst", "lora"]
        sweep-lr = [1e-3, 4e-3]
        [sst]
        resample_every = 4
        sweep_lr = [2e-3]
        """
    )
    values = parse(compare_lm, given)
    assert (values["methods"], values["sweep_lr"]) == ("sst,lora", "0.001,0.004")
    assert (values["sst__resample_every"], values["sst__sweep_lr"]) == (4, "0.002")
    assert str(values["out"]) == "runs/x"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepz = 3", r"there is no option 'stepz'. Did you mean steps\?"),
        ("batchsize = 3", r"'batchsize'. Did you mean batch-size\?"),
        ("[method]\nrnk = 3", r"'method.rnk'. Did you mean method.rank\?"),
        ("zzzzzzzz = 3", r"there is no option 'zzzzzzzz'.$"),
        ("steps 3", "is no valid TOML"),
    ],
)
def test_a_wrong_config_is_refused_with_a_suggestion(config, text, said):
    with pytest.raises(click.BadParameter, match=said):
        parse(train_lm, [*config(text), "--out", "x"])


@pytest.mark.parametrize(
    ("text", "said"),
    [("steps = 'many'", "'many' is not a valid integer"), ("schedule = 'x'", "'x' is not one of")],
)
def test_values_in_a_config_are_checked_as_flags_are(config, text, said):
    with pytest.raises(click.BadParameter, match=said):
        parse(train_lm, [*config(text), "--out", "x"])


def test_a_config_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(click.BadParameter, match="is no valid TOML"):
        parse(train_lm, ["--config", str(tmp_path / "run.toml"), "--out", "x"])
    with pytest.raises(click.BadParameter, match="does not exist"):
        parse(train_lm, ["--config", str(tmp_path / "missing.toml"), "--out", "x"])
