"""Faults as they happen, to the command itself: what is saved stays and serves, one sentence is said.

On Linux the full and the read-only disk are real ones: a small file system of the test's own.
"""

from __future__ import annotations

import functools
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from small_disk import SmallDisk
from test_checkpoint import flip, name_another_file
from tiny import LLAMA, last, prose, same

from spectrain.cli.main import main
from spectrain.runs.files import read_json
from spectrain.runs.lock import locked
from spectrain.tasks.lm.task import LanguageModelling

# Warnings go where the command says them; the tests read them there.
pytestmark = pytest.mark.filterwarnings("default::spectrain.errors.SpectrainWarning")

SST = ("--method", "sst", "--method.rank", "4", "--method.resample-every", "3")
FULL = r"No space left on device.*; free some space or make the folder writable, then start again"


class Command:
    """`spectrain train lm` on a small text, as it is typed."""

    def __init__(self, text: Path) -> None:
        self.text = text
        self.said = ""

    def __call__(self, out: Path, *more: str, method: tuple[str, ...] = SST) -> tuple[int, str]:
        """(exit code, the last line of standard error); warnings before it are in `said`."""
        config = (word for item in LLAMA.items() for word in ("--model-config", "=".join(item)))
        arguments = [
            *("train", "lm", "--data", str(self.text), "--vocab-size", "300", "--device", "cpu"),
            *(*config, "--sequence-length", "16", "--batch-size", "4", "--final-tokens", "512"),
            *("--steps", "12", "--log-every", "1", "--eval-every", "0", "--lr", "1e-2"),
            *("--checkpoint-every", "4", "--keep", "20", *method, "--out", str(out), *more),
        ]
        code = 0
        with redirect_stdout(io.StringIO()) as output, redirect_stderr(io.StringIO()) as errors:
            try:
                main(arguments)
            except SystemExit as left:
                code = left.code
        self.said = output.getvalue() + errors.getvalue()
        assert "Traceback" not in self.said
        lines = [line for line in errors.getvalue().splitlines() if line]
        others = [line for line in lines if not line.startswith("Warning: ")]
        assert len(others) == (code != 0), lines  # one sentence
        return code, others[0] if others else ""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "prose.txt").write_text(prose(), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECTRAIN_CACHE", str(folder / "cache"))
        yield folder / "prose.txt"


@pytest.fixture
def command(text):
    return Command(text)


def arrange(patch, step, happen):
    """Let `happen` be called once, in the middle of the step of that number."""
    batches, waiting = LanguageModelling.micro_batches, [happen]

    def micro_batches(self, now, seed):
        if now == step and waiting:
            waiting.pop()()
        return batches(self, now, seed)

    patch.setattr(LanguageModelling, "micro_batches", micro_batches)


@pytest.fixture
def in_step(monkeypatch):
    return functools.partial(arrange, monkeypatch)


@pytest.fixture(scope="module")
def runs(text, tmp_path_factory):
    """`whole`, a run that nothing happened to, and `parts`, the same one stopped at step 10."""
    folder = tmp_path_factory.mktemp("runs")
    assert Command(text)(folder / "whole")[0] == 0
    with pytest.MonkeyPatch.context() as patch:
        arrange(patch, 9, lambda: signal.raise_signal(signal.SIGTERM))
        assert Command(text)(folder / "parts")[0] == 130
    return folder


# --- disks ---------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    (tmp_path / "disk").mkdir()
    try:
        found = SmallDisk(tmp_path / "disk")
    except OSError as reason:
        pytest.skip(f"no file system can be mounted here: {reason}")
    yield found
    found.close()


def test_a_disk_that_is_full_at_any_point_of_a_run(disk, command, runs):
    """Each time a little more room: for nothing, the configuration, the tokenizer, a checkpoint …"""
    run, room, refused = disk.path / "run", 0, set()
    while True:
        disk.fill(room)
        code, said = command(run)
        disk.clear()
        if code == 0:
            break
        assert code == 1, said
        assert re.search(FULL, said), said
        refused.add(re.sub(r"\d+", "N", said.split(" to ")[0].split(": ")[1]))
        room = 2 * room or 4096
        assert room < 2**23
    assert len(refused) >= 4, refused
    same(runs / "whole", run)


def test_a_disk_that_fills_up_while_a_run_trains(disk, command, runs, in_step):
    saved = disk.path / "run" / "checkpoints" / "step-00000008"

    def fill():
        for _ in range(1000):
            if saved.exists():
                break
            time.sleep(0.01)
        disk.fill()

    in_step(9, fill)
    code, said = command(disk.path / "run")
    assert code == 1
    assert said.startswith("Error: could not write ")
    assert re.search(FULL, said), said
    assert last(disk.path / "run").step == 8
    disk.clear()
    assert command(disk.path / "run") == (0, "")
    assert f"continuing {disk.path / 'run'} from step 8" in command.said
    same(runs / "whole", disk.path / "run")


def test_a_folder_that_is_read_only(disk, command, runs, in_step):
    run = disk.path / "run"
    shutil.copytree(runs / "parts", run)
    disk.do("mount -o remount,ro .")
    code, said = command(run)
    assert code == 1
    assert re.fullmatch(
        r"Error: could not write \S+: Read-only file system; .* make the folder writable, .*", said
    )
    disk.do("mount -o remount,rw .")
    # So does the folder of checkpoints, from the middle of the run on.
    in_step(11, lambda: disk.do("mount -t tmpfs -o ro none run/checkpoints"))
    code, said = command(run)
    assert code == 1
    assert said.startswith("Error: could not write the checkpoint of step 12 to ")
    assert "Read-only file system" in said
    disk.do("umount run/checkpoints")
    assert last(run).step == 10
    assert command(run) == (0, "")
    same(runs / "whole", run)


# --- damage, mixed-up runs -----------------------------------------------------------------------


@pytest.mark.parametrize("damage", [flip, name_another_file])
def test_the_command_names_a_damaged_checkpoint_and_goes_on_from_the_one_before(
    tmp_path, command, runs, damage
):
    shutil.copytree(runs / "parts", tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "step-00000010")
    assert command(tmp_path / "run") == (0, "")
    assert "Warning: step-00000010 is damaged (" in command.said
    assert f"continuing {tmp_path / 'run'} from step 8" in command.said
    same(runs / "whole", tmp_path / "run")


def test_foreign_checkpoints_alone_are_left_where_they_are(tmp_path, command, runs):
    shutil.copytree(runs / "parts", tmp_path / "run")
    code, said = command(tmp_path / "other", method=("--method", "full"))
    assert code == 0
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        shutil.rmtree(folder)
    shutil.move(
        tmp_path / "other" / "checkpoints" / "step-00000008", tmp_path / "run" / "checkpoints"
    )
    code, said = command(tmp_path / "run")
    assert code == 1
    assert "step-00000008 belongs to another run" in said
    assert "move away what is there" in said
    assert (tmp_path / "run" / "checkpoints" / "step-00000008" / "manifest.json").exists()


HOLD = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


def test_a_directory_is_refused_while_another_process_works_there_and_free_when_it_is_killed(
    tmp_path, command, runs
):
    run = tmp_path / "run"
    shutil.copytree(runs / "parts", run)
    arguments = [sys.executable, "-c", HOLD, str(run / ".lock")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
            code, said = command(run)
            assert code == 2
            assert f"--out {run} is in use: another process works there" in said
            after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
            assert after == before
        finally:
            other.kill()
    assert command(run) == (0, "")
    same(runs / "whole", run)


def test_another_setting_and_another_text_are_refused_by_name_and_with_a_way_out(
    tmp_path, command, runs
):
    run, text = tmp_path / "run", command.text
    shutil.copytree(runs / "parts", run)
    code, said = command(run, "--lr", "2e-2")
    assert code == 2
    assert "lr = 0.01, and this one has 0.02;" in said
    assert f"--fork {run} and another --out" in said
    before = text.read_bytes()
    text.write_bytes(before + b"one more line.\n")
    code, said = command(run)
    text.write_bytes(before)
    assert code == 2
    assert re.search("corpus fingerprint = '[0-9a-f]+', and this one has '[0-9a-f]+';", said)
    assert f"--fork {run}" in said
    assert command(run) == (0, "")
    assert f"continuing {run} from step 10" in command.said
    same(runs / "whole", run)


# --- numbers -------------------------------------------------------------------------------------


def test_a_loss_that_explodes_ends_the_run_and_a_fork_goes_on_from_what_was_good(
    tmp_path, command, monkeypatch
):
    full = ("--method", "full")
    hot = ("--lr", "3", "--warmup", "1")  # steps of 1 from the fourth on
    code, said = command(tmp_path / "hot", *hot, method=full)
    assert code == 1
    found = re.fullmatch(
        r"Error: training diverged: loss \S+ at step \d+.*; last good checkpoint: step (\d+)\. "
        r"A lower --lr is the usual cure",
        said,
    )
    assert found, said
    assert "at step" in read_json(tmp_path / "hot" / "result.json")["failed"]
    code, said = command(tmp_path / "hot", *hot, method=full)
    assert code == 2
    assert "diverged earlier" in said
    code, said = command(tmp_path / "cool", "--fork", str(tmp_path / "hot"), method=full)
    assert (code, said) == (0, "")
    step = found[1]
    assert f"beginning {tmp_path / 'cool'} from step {step} of {tmp_path / 'hot'}" in command.said


@pytest.mark.parametrize("method", ["sst", "galore"])
def test_a_decomposition_that_does_not_converge_is_said_and_the_run_goes_on(
    tmp_path, command, monkeypatch, method
):
    def fail(*_, **__):
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    settings = {
        "sst": ("--method.resample-every", "3", "--method.iterations-per-round", "2"),
        "galore": ("--method.refresh-every", "3", "--method.projector", "svd"),
    }
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "svd", fail)
    if (
        method == "galore"
    ):  # its basis is taken from a float32 Gram matrix; the fallback's is float64
        half = lambda a: eigh(a) if a.dtype == torch.float64 else fail()  # noqa: E731
        monkeypatch.setattr(torch.linalg, "eigh", half)
    own = ("--method", method, "--method.rank", "4", *settings[method])
    assert command(tmp_path / "run", method=own) == (0, "")
    assert "Warning: the SVD of 32 × 32 failed (the algorithm failed to converge)" in command.said
    assert read_json(tmp_path / "run" / "result.json")["failed"] is None


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGTERM for others")
def test_a_signal_saves_and_a_second_one_leaves(tmp_path, command, runs, in_step):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)

    in_step(6, lambda: signal.raise_signal(signal.SIGTERM))
    stopped = "stopped at step 7 and saved; the same command continues"
    assert command(tmp_path / "run") == (130, stopped)
    in_step(7, twice)  # when no checkpoint is being written: the process would end at once
    code, said = command(tmp_path / "run")
    assert code == 130
    assert said.startswith("stopped")
    assert command(tmp_path / "run") == (0, "")
    same(runs / "whole", tmp_path / "run")


def test_what_a_killed_process_left_is_cleared_though_the_run_is_finished(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / ".loss.png.x7.partial").write_bytes(b"half")
    with locked(tmp_path):
        assert not list(tmp_path.glob("*.partial"))
