"""Runs that are stopped, damaged or mixed up: what was saved is continued exactly, the rest refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from cases import CASES, small
from tiny import (
    LLAMA,
    Recorder,
    make_options,
    make_task,
    prose,
    rows,
    run,
    same,
    stopped_at,
)

from spectrain import SST, FullRank, LoRA, ReLoRA
from spectrain.cli.main import main
from spectrain.errors import RunError, UsageError
from spectrain.method import registered
from spectrain.runs.files import read_json, write_json
from spectrain.runs.interrupt import Interrupted
from spectrain.runs.jobs import train
from spectrain.tasks.lm.task import LanguageModelling

# Every registered method, its events at steps 3, 6, 9 and 12, and what keeps state of other kinds.
METHODS = {key: small(cls) for key, cls in registered().items()} | {
    "relora-warm-start": ReLoRA(4, merge_every=3, warm_start=5, rewarm=2),
    **{
        name: CASES[name] for name in ("sst-residual", "sst-bf16", "sst-sequential", "lora-dropout")
    },
    **{name: CASES[name] for name in ("relora-prune-random", "galore-randomized", "galore-keep")},
}
every_kind = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


@every_kind
def test_a_run_that_is_stopped_again_and_again_ends_as_one_that_is_not(tmp_path, method):
    """Stops before, at and right after events, at the end of a phase, and within a row's steps."""
    run(tmp_path / "whole", method)
    for step in (0, 1, 2, 3, 4, 5, 7, 8):
        stopped_at(tmp_path / "parts", method, step)
    view = Recorder()
    run(tmp_path / "parts", method, view=view)
    assert view.said[0].endswith("parts from step 9")
    same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("key", ["sst", "galore", "relora-warm-start"])
def test_a_run_that_is_killed_goes_on_from_its_last_checkpoint(tmp_path, key):
    class Killed(LanguageModelling):
        def micro_batches(self, step, seed):
            if step == 10:
                raise SystemError("power cut")
            return super().micro_batches(step, seed)

    options = {"checkpoint_every": 5, "log_every": 1, "eval_every": 4}
    run(tmp_path / "whole", METHODS[key], **options)
    with pytest.raises(SystemError):
        run(tmp_path / "parts", METHODS[key], make_task(kind=Killed), **options)
    # What had not been saved is done again; so are rows beyond the checkpoint, one cut in half.
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-00000010")
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')
    (tmp_path / "parts" / "checkpoints" / ".step-00000007.new.partial").mkdir()
    (tmp_path / "parts" / ".metrics.jsonl.x7.partial").write_text("half")
    run(tmp_path / "parts", METHODS[key], **options)
    same(tmp_path / "whole", tmp_path / "parts")
    assert not list((tmp_path / "parts").rglob("*.partial"))


def test_a_stop_during_the_last_evaluation_repeats_only_that(tmp_path):
    class Stopped(LanguageModelling):
        def evaluate(self, model, split, **how):
            if split == "test":
                raise KeyboardInterrupt
            return super().evaluate(model, split, **how)

    class Untrained(LanguageModelling):
        def micro_batches(self, step, seed):
            raise AssertionError("trained again")

    run(tmp_path / "whole", FullRank())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", FullRank(), make_task(kind=Stopped))
    run(tmp_path / "parts", FullRank(), make_task(kind=Untrained))
    same(tmp_path / "whole", tmp_path / "parts")
    (tmp_path / "parts" / "result.json").unlink()  # as if stopped between the last row and it
    run(tmp_path / "parts", FullRank(), make_task(kind=Untrained))
    same(tmp_path / "whole", tmp_path / "parts")


def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    class Impatient(LanguageModelling):
        def micro_batches(self, step, seed):
            if step == 1:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            return super().micro_batches(step, seed)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(tmp_path / "run", FullRank(), make_task(kind=Impatient))
    assert not isinstance(caught.value, Interrupted)
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_run_is_not_trained_again(tmp_path):
    class Untouched(LanguageModelling):
        def build_model(self):
            raise AssertionError("built again")

    first = run(tmp_path / "run", LoRA(4))
    assert run(tmp_path / "run", LoRA(4), make_task(kind=Untouched)) == first


# --- other settings, other folders ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 13}, r"steps = 12, and this one has 13"),
        ({"lr": 0.5}, r"lr = 0.01, and this one has 0.5"),
        ({"method": SST(3, resample_every=3)}, r"rank = 4, and this one has 3"),
        ({"method": LoRA(4)}, r"method = 'sst', and this one has 'lora'"),
        ({"task": make_task(batch_size=2)}, r"batch_size = 4, and this one has 2"),
        (
            {"task": make_task(overrides={**LLAMA, "hidden_size": "64"})},
            r"model_config.hidden_size = '32', and this one has '64'",
        ),
    ],
)
def test_a_changed_option_is_refused_by_name(tmp_path, change, said):
    method = SST(4, resample_every=3)
    run(tmp_path / "run", method)
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(UsageError, match=said):
        run(tmp_path / "run", change.pop("method", method), **change)
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_another_text_is_refused(tmp_path):
    run(tmp_path / "run", FullRank())
    config = read_json(tmp_path / "run" / "config.json")
    config["corpus"]["fingerprint"] = "0" * 64
    write_json(tmp_path / "run" / "config.json", config)
    with pytest.raises(UsageError, match="corpus fingerprint = '0000"):
        run(tmp_path / "run", FullRank())


def test_a_mistake_before_the_first_step_can_be_corrected_in_place(tmp_path):
    with pytest.raises(UsageError, match="rank is 40"):
        run(tmp_path / "run", SST(40))
    with pytest.raises(UsageError, match="did you mean"):
        run(tmp_path / "run", LoRA(4), optimizer="adamm")
    run(tmp_path / "run", LoRA(4))
    run(tmp_path / "fresh", LoRA(4))
    same(tmp_path / "fresh", tmp_path / "run")


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "photo.jpg").write_text("")
    with pytest.raises(UsageError, match=r"is not empty and has no config\.json"):
        run(tmp_path, FullRank())
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_comparison_is_no_run(tmp_path):
    write_json(tmp_path / "config.json", {"format": 1, "kind": "comparison"})
    with pytest.raises(UsageError, match="holds a comparison, not a run"):
        run(tmp_path, FullRank())


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot be made: .*/file is no folder"):
        run(tmp_path / "file", FullRank())
    with pytest.raises(UsageError, match=r"cannot be made: .*/file is no folder"):
        run(tmp_path / "file" / "deeper" / "run", FullRank())


def test_what_is_left_of_a_directory_whose_making_was_cut_short_is_no_hindrance(tmp_path):
    (tmp_path / ".config.json.x7a9").write_text('{"for')
    run(tmp_path, FullRank())
    assert (tmp_path / "result.json").exists()


def test_a_damaged_or_lost_config_is_said(tmp_path):
    run(tmp_path, FullRank())
    (tmp_path / "config.json").write_text('{"format": 1, "opt')
    with pytest.raises(RunError, match=r"config.json is damaged \(it is not JSON\)"):
        run(tmp_path, FullRank())
    (tmp_path / "config.json").write_text('{"format": 99, "method": {}}')
    with pytest.raises(RunError, match="has format 99, and this version reads 1"):
        run(tmp_path, FullRank())
    (tmp_path / "config.json").unlink()
    with pytest.raises(UsageError, match=r"has no config\.json"):
        run(tmp_path, FullRank())


def test_a_diverged_run_is_not_begun_again_unasked(tmp_path):
    run(tmp_path / "run", FullRank())
    result = read_json(tmp_path / "run" / "result.json") | {"failed": "loss nan at step 3"}
    write_json(tmp_path / "run" / "result.json", result)
    task = make_task()
    found, _ = train(task, FullRank(), make_options(), tmp_path / "run", Recorder())
    assert found["failed"] == "loss nan at step 3"


# --- the command, stopped by a real signal -------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "method"),
    [
        (signal.SIGINT, ["sst", "--method.resample-every", "7"]),
        pytest.param(
            signal.SIGTERM,
            ["relora", "--method.merge-every", "7", "--method.warm-start", "20"],
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.skipif(os.name != "posix", reason="signals to another process are POSIX's")
def test_the_command_continues_after_a_signal(tmp_path, monkeypatch, capsys, number, method):
    (tmp_path / "prose.txt").write_text(prose(), encoding="utf-8")
    monkeypatch.setenv("SPECTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = [
        *("train", "lm", "--data", str(tmp_path / "prose.txt"), "--vocab-size", "300"),
        *(part for item in LLAMA.items() for part in ("--model-config", "=".join(item))),
        *("--sequence-length", "16", "--batch-size", "4", "--steps", "200", "--log-every", "5"),
        *("--eval-every", "0", "--checkpoint-every", "0", "--final-tokens", "512"),
        *("--device", "cpu", "--method", method[0], "--method.rank", "4", *method[1:]),
    ]
    parts = tmp_path / "parts"
    program = [sys.executable, "-m", "spectrain", *command, "--out", str(parts)]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(rows(parts)) < 6 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    said = errors.strip()  # click begins a new line behind the ^C
    assert re.fullmatch(r"stopped at step \d+ and saved; the same command continues", said)
    assert not (parts / "result.json").exists()

    main([*command, "--out", str(parts)])
    assert f"continuing {parts} from step {said.split()[3]}\n" in capsys.readouterr().out
    main([*command, "--out", str(tmp_path / "whole")])
    same(tmp_path / "whole", parts)
    assert json.loads((parts / "result.json").read_text())["steps"] == 200
