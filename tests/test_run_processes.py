"""Runs of two processes: the same run as with one, saved and continued with either number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, small, some_of
from test_checkpoint import flip
from tiny import Stopping, final, make_options, make_task, rows, run, same
from torch import distributed as dist

from spectrain import SST, FullRank, LoRA, ReLoRA
from spectrain.errors import NonFiniteError, RunError, SpectrainWarning, UsageError
from spectrain.method import Method, registered
from spectrain.methods import sst
from spectrain.runs.files import read_json
from spectrain.runs.interrupt import Interrupted
from spectrain.runs.jobs import compare
from spectrain.runs.processes import OthersError
from spectrain.runs.view import Silent
from spectrain.tasks.lm.task import LanguageModelling

METHODS = {key: small(cls) for key, cls in registered().items()} | {
    "relora-warm-start": ReLoRA(4, merge_every=3, warm_start=5, rewarm=2),
    "sst-residual": CASES["sst-residual"],
}
every_kind = some_of(METHODS, ("sst", "galore"))


def joined(function: Any, *arguments: Any, **options: Any) -> Any:
    """Call `function` as torchrun would have started it; the errors of spectrain are returned."""
    place = {"WORLD_SIZE": "2", "RANK": str(dist.get_rank()), "LOCAL_RANK": str(dist.get_rank())}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in place.items():
            patch.setenv(name, value)
        try:
            return function(*arguments, **options)
        except (UsageError, RunError, OthersError, Interrupted) as error:
            return type(error).__name__, str(error)


def train(directory: Path, method: Method, task: dict[str, Any], options: dict[str, Any]) -> Any:
    return joined(run, directory, method, make_task(**task), **options)


def stop(directory: Path, method: Method, step: int, rank: int, options: dict[str, Any]) -> Any:
    task = make_task(kind=Stopping)
    task.at = step if dist.get_rank() == rank else -1
    return joined(run, directory, method, task, **options)


def close(a: Path, b: Path) -> None:
    """Rows and final tensors of two runs, to rounding; random-number states apart."""
    first, second = rows(a), rows(b)
    assert [list(row) for row in first] == [list(row) for row in second]
    for x, y in zip(first, second, strict=True):
        assert x == pytest.approx(y, rel=1e-4)
    mine, theirs = ({n: t for n, t in final(f).items() if "/rng/" not in n} for f in (a, b))
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(
            tensor,
            theirs[name],
            rtol=2e-3,
            atol=2e-4,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@every_kind
def test_two_processes_train_as_one(pair, tmp_path, method):
    """Replicated, layer-wise and sharded, with accumulation and clipping."""
    options = {"clip": 1.0, "checkpoint_every": 6}
    run(tmp_path / "one", method, make_task(accumulate=2), **options)
    results = pair.call(train, tmp_path / "ddp", method, {"accumulate": 2}, options)
    assert results[0] == results[1]
    close(tmp_path / "one", tmp_path / "ddp")
    sharded = pair.call(
        train, tmp_path / "shard", method, {"accumulate": 2}, {**options, "shard": True}
    )
    if len(method.phases(12)) > 1:
        assert sharded[0][0] == "UsageError"
        assert "changes its layers between phases" in sharded[0][1]
    else:
        close(tmp_path / "one", tmp_path / "shard")


def test_layerwise_runs_equal_others(pair, tmp_path):
    method = METHODS["sst"]
    run(tmp_path / "one", method)
    run(tmp_path / "layerwise", method, layerwise=True)
    rows_of = [rows(tmp_path / name) for name in ("one", "layerwise")]
    assert rows_of[0] == rows_of[1]
    pair.call(train, tmp_path / "two", method, {}, {"layerwise": True})
    close(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("key", ["full", "sst", "galore", "relora-warm-start", "lora"])
def test_a_run_is_continued_with_fewer_and_with_more_processes(pair, tmp_path, key):
    """One process, stopped; two, stopped by a signal to the second alone; two sharded; one again."""
    method, parts = METHODS[key], tmp_path / "parts"
    run(tmp_path / "whole", method)
    task = make_task(kind=Stopping)
    task.at = 2
    with pytest.raises(Interrupted):
        run(parts, method, task)
    answers = pair.call(stop, parts, method, 5, 1, {})
    assert {kind for kind, _ in answers} == {"Interrupted"}
    if key != "relora-warm-start":
        answers = pair.call(stop, parts, method, 7, 0, {"shard": True})
        assert {kind for kind, _ in answers} == {"Interrupted"}
    run(parts, method)
    close(tmp_path / "whole", parts)


@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_continue_bit_for_bit(pair, tmp_path, shard):
    """Each of them with its own dropout."""
    method, options = LoRA(4, dropout=0.3), {"shard": shard}
    pair.call(train, tmp_path / "whole", method, {}, options)
    for step, rank in ((1, 0), (4, 1), (5, 0)):
        pair.call(stop, tmp_path / "parts", method, step, rank, options)
    pair.call(train, tmp_path / "parts", method, {}, options)
    same(tmp_path / "whole", tmp_path / "parts")
    states = {n: t for n, t in final(tmp_path / "parts").items() if "/rng/" in n}
    assert len(states) == 2
    assert not torch.equal(*states.values())


class StoppingLate(LanguageModelling):
    """Sends one process a SIGINT while both of them evaluate."""

    def evaluate(self, model, split, **how):
        if dist.get_rank() == 1:
            signal.raise_signal(signal.SIGINT)
        return super().evaluate(model, split, **how)


def stop_late(directory: Path) -> Any:
    return joined(run, directory, LoRA(4), make_task(kind=StoppingLate))


def test_a_signal_to_one_process_while_they_measure_stops_both(pair, tmp_path):
    run(tmp_path / "whole", LoRA(4))
    answers = pair.call(stop_late, tmp_path / "parts")
    assert [kind for kind, _ in answers] == ["Interrupted", "Interrupted"]
    assert "stopped at step 6" in answers[0][1]
    run(tmp_path / "parts", LoRA(4))
    close(tmp_path / "whole", tmp_path / "parts")


def fork(old: Path, new: Path) -> Any:
    return joined(run, new, FullRank(), fork=old, steps=14, shard=True)


def test_a_sharded_run_can_be_forked(pair, tmp_path):
    run(tmp_path / "old", FullRank())
    first, second = pair.call(fork, tmp_path / "old", tmp_path / "new")
    assert first == second
    assert first["steps"] == 14


def lose_at_an_event(directory: Path) -> Any:
    def lost(layers):
        raise NonFiniteError("a weight matrix has NaN")

    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank() == 1:
            patch.setattr(sst, "redecompose", lost)
        method = SST(4, resample_every=3, iterations_per_round=1)
        return joined(run, directory, method)


def test_weights_that_one_process_finds_lost_at_an_event_end_the_run_in_both(pair, tmp_path):
    first, second = pair.call(lose_at_an_event, tmp_path)
    assert first[0] == second[0] == "DivergedError"
    assert "weights" in read_json(tmp_path / "result.json")["failed"]


def damaged(directory: Path, method: Method) -> Any:
    if dist.get_rank() == 0:
        flip(directory / "checkpoints" / "step-00000010")
        with pytest.warns(SpectrainWarning, match="step-00000010 is damaged"):
            return train(directory, method, {}, {"checkpoint_every": 5})
    return train(directory, method, {}, {"checkpoint_every": 5})


def test_both_pass_over_a_damaged_checkpoint(pair, tmp_path):
    method, options = METHODS["sst"], {"checkpoint_every": 5}
    pair.call(train, tmp_path / "whole", method, {}, options)
    pair.call(stop, tmp_path / "parts", method, 9, 0, options)
    pair.call(damaged, tmp_path / "parts", method)
    same(tmp_path / "whole", tmp_path / "parts")


def test_what_is_refused_is_said_by_the_first_process(pair, tmp_path):
    run(tmp_path / "run", FullRank())
    first, second = pair.call(train, tmp_path / "run", FullRank(), {}, {"lr": 0.5})
    assert first[0] == "UsageError"
    assert "lr = 0.01, and this one has 0.5" in first[1]
    assert second[0] == "OthersError"
    answers = pair.call(train, tmp_path / "odd", FullRank(), {"batch_size": 3}, {})
    assert all("--batch-size 3 cannot be divided over 2 processes" in said for _, said in answers)
    with pytest.raises(
        UsageError, match="--shard divides the weights over processes, and there is"
    ):
        run(tmp_path / "alone", FullRank(), shard=True)


def test_a_loss_that_is_lost_ends_both(pair, tmp_path):
    first, second = pair.call(train, tmp_path, FullRank(), {}, {"lr": 1e30})
    assert first == second
    assert first[0] == "DivergedError"
    assert "failed" in read_json(tmp_path / "result.json")


def compare_two(out: Path) -> None:
    joined(
        compare,
        make_task(),
        {"full": FullRank(), "lora": LoRA(4)},
        {"full": [1e-2], "lora": [1e-2]},
        make_options(lr=0.0),
        ordinary_rates=[None],
        report_seeds=[1],
        max_extensions=0,
        out=out,
        view=Silent(),
    )


def test_a_comparison_by_two_processes_equals_that_of_one(pair, tmp_path):
    arguments = make_task(), {"full": FullRank(), "lora": LoRA(4)}
    compare(
        *arguments,
        {"full": [1e-2], "lora": [1e-2]},
        make_options(lr=0.0),
        ordinary_rates=[None],
        report_seeds=[1],
        max_extensions=0,
        out=tmp_path / "one",
        view=Silent(),
    )
    pair.call(compare_two, tmp_path / "two")
    pair.call(compare_two, tmp_path / "two")  # nothing is left to do
    for folder in (tmp_path / "one" / "trials").iterdir():
        close(folder, tmp_path / "two" / "trials" / folder.name)
    assert (tmp_path / "two" / "results.csv").exists()
    assert (tmp_path / "two" / "report.html").exists()


# --- the command, started by torchrun ------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_process_ends_the_others_with_a_sentence_and_the_run_goes_on(tmp_path):
    """And a Ctrl-C, which the launcher passes on to processes that have it already, saves once."""
    out, log = tmp_path / "run", tmp_path / "log"
    command = [
        *("train", "lm", "--method", "sst", "--method.rank", "4", "--method.resample-every", "5"),
        *("--model", "llama-9m", "--model-config", "num_hidden_layers=1"),
        *("--model-config", "hidden_size=64", "--model-config", "intermediate_size=96"),
        *("--vocab-size", "300", "--max-bytes", "300000", "--sequence-length", "32"),
        *("--batch-size", "4", "--steps", "100000", "--checkpoint-every", "5", "--eval-every", "0"),
        *("--out", str(out)),
    ]
    several = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SPECTRAIN_CACHE": str(tmp_path / "cache")}

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*several, "-m", "spectrain", *command],
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )

    def wait_for(step: int) -> None:
        deadline = time.monotonic() + 90
        while not any(int(p.name[5:]) >= step for p in out.glob("checkpoints/step-*")):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)

    launcher = start()
    wait_for(5)
    listed = subprocess.run(
        ["ps", "--ppid", str(launcher.pid), "-o", "pid="], capture_output=True, text=True
    )
    os.kill(int(listed.stdout.split()[-1]), signal.SIGKILL)
    assert launcher.wait(60) == 1
    said = log.read_text()
    assert "another process of this run has ended, so this one cannot go on" in said
    assert 'File "' not in said.split("Traceback")[0]  # torchrun's own trace comes last

    reached = max(int(p.name[5:]) for p in out.glob("checkpoints/step-*"))
    launcher = start()
    wait_for(reached + 5)
    os.killpg(launcher.pid, signal.SIGINT)  # as a terminal does
    assert launcher.wait(60) != 0
    said = log.read_text()
    assert f"continuing {out} from step" in said
    assert said.count("stopping after this step") == 1
    assert said.count("and saved; the same command continues") == 1
