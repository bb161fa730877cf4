"""A run shows its plan beside what an early step took, and comes out the same for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cases import every_default
from click.testing import CliRunner
from tiny import final, make_options, make_task, rows, run

from spectrain import SST, FullRank, ReLoRA
from spectrain.cli.main import cli
from spectrain.runs.memory import RunMemory, beside
from spectrain.runs.report import write_report


@every_default
def test_plan_and_measurement_agree(tmp_path, method):
    memory = run(tmp_path, method, steps=9)["memory"]
    planned, measured = memory["planned"], memory["measured"]
    for part in ("weights", "gradients", "optimizer"):
        assert planned[part] == measured[part]
    assert planned["peak"] == pytest.approx(measured["peak"], rel=0.05)
    assert memory["error_percent"] == 100 * (planned["peak"] / measured["peak"] - 1)
    assert memory["note"] is None
    assert planned["with_events"] >= planned["peak"]


@pytest.mark.parametrize(
    "how", [{"accumulate": 2}, {"gradient_checkpointing": True}, {"loss_chunk": 8}], ids=str
)
def test_the_tasks_own_switches_are_planned(tmp_path, how):
    memory = run(tmp_path, SST(4), make_task(**how), steps=3, dtype="bfloat16")["memory"]
    assert memory["planned"]["peak"] == pytest.approx(memory["measured"]["peak"], rel=0.05)


@every_default
def test_layerwise_steps_are_planned_with_fewer_gradients(tmp_path, method):
    found = []
    for layerwise in (False, True):
        memory = run(tmp_path / str(layerwise), method, steps=9, layerwise=layerwise)["memory"]
        planned, measured = memory["planned"], memory["measured"]
        assert planned["gradients"] == measured["gradients"]
        assert planned["peak"] == pytest.approx(measured["peak"], rel=0.05)
        found.append(planned)
    assert found[1]["gradients"] < found[0]["gradients"]
    assert found[1]["peak"] <= found[0]["peak"]


def test_measuring_changes_no_number(tmp_path, monkeypatch):
    run(tmp_path / "watched", SST(4), steps=6)
    monkeypatch.setattr(RunMemory, "_reason_not_to_measure", lambda self: "not wanted")
    result = run(tmp_path / "plain", SST(4), steps=6)
    assert result["memory"]["measured"] is None
    assert rows(tmp_path / "watched") == rows(tmp_path / "plain")
    watched, plain = final(tmp_path / "watched"), final(tmp_path / "plain")
    assert watched.keys() == plain.keys()
    assert all(watched[name].equal(plain[name]) for name in watched)


def test_one_step_is_measured_and_kept_for_the_rest_of_the_run(tmp_path):
    run(tmp_path, SST(4), steps=6, checkpoint_every=4)
    state = json.loads(Path(tmp_path, "checkpoints", "step-00000004", "state.json").read_text())
    assert state["memory"]["0"]["measured"]["peak"] > 0


def test_the_largest_phase_is_shown(tmp_path):
    relora = run(tmp_path / "relora", ReLoRA(2, warm_start=4), steps=8)["memory"]
    full = run(tmp_path / "full", FullRank(), steps=8)["memory"]
    assert relora["measured"] == full["measured"]


def test_under_torch_compile_it_says_why_there_is_no_measurement():
    memory = RunMemory(make_task(), make_options(compile=True), make_options().find_device())
    memory.begin(0, FullRank(), make_task().build_model())
    found = memory.result()
    assert found["measured"] is None
    assert "torch.compile" in found["note"]
    assert found["planned"]["peak"] > 0


def test_report_and_terminal_show_both(tmp_path):
    result = run(tmp_path, SST(4), steps=4)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    for what, text in beside(result):
        assert what in page
        assert text in page
    peak = dict(beside(result))["peak of a step"]
    assert "planned" in peak
    assert "measured (plan +0.0 %)" in peak


def test_plan_is_in_the_help_of_the_command_line():
    assert "plan" in CliRunner().invoke(cli, ["--help"]).output
