"""Saving beside training: what is kept, what is never saved, what a failure or a kill leaves."""

from __future__ import annotations

import shutil
import signal
import threading

import pytest
import torch
from safetensors.torch import load_file
from test_checkpoint import METHOD, flip, steps
from tiny import Recorder, last, make_options, make_task, rows, run, same

from spectrain import FullRank
from spectrain.cli.main import main
from spectrain.errors import RunError, UsageError
from spectrain.runs import checkpoint, jobs, snapshot
from spectrain.runs.export import export
from spectrain.runs.interrupt import Interrupted
from spectrain.runs.loop import DivergedError
from spectrain.runs.options import RunOptions
from spectrain.runs.processes import Team
from spectrain.runs.saving import Saver
from spectrain.runs.view import Silent
from spectrain.tasks.lm.task import LanguageModelling

# --- what is kept --------------------------------------------------------------------------------


def test_old_checkpoints_are_dropped_but_never_the_newest_intact_one(tmp_path):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    probe = torch.zeros(1, dtype=torch.int64), torch.zeros(1)
    rows = dict.fromkeys(checkpoint.ROWS, b"")

    def save(step, keep):
        options = RunOptions(steps=99, checkpoint_every=5, keep=keep)
        saver = Saver(tmp_path, "run", options, lambda text: None)
        saver.save(lambda: snapshot.take(step, model, optimizer, probe, {}, rows, Team()), None)
        saver.wait()

    for step in (10, 20, 30, 40):
        save(step, keep=3)
    assert sorted(path.name[-2:] for path in tmp_path.iterdir()) == ["20", "30", "40"]
    flip(tmp_path / "step-00000040")
    flip(tmp_path / "step-00000030")
    search = checkpoint.newest(tmp_path, "run")
    assert (search.found.step, len(search.passed_over)) == (20, 2)
    save(25, keep=1)  # must not count the damaged ones behind it as the ones to keep
    search = checkpoint.newest(tmp_path, "run")
    assert (search.found.step, search.passed_over) == (25, [])


class Judged(LanguageModelling):
    """Its validation losses are chosen: the best one at step 4, then at 10."""

    def evaluate(self, model, split, *, thorough, **how):
        if thorough:
            return super().evaluate(model, split, thorough=thorough, **how)
        return {"loss": {2: 5.0, 4: 3.0, 6: 4.0, 8: 3.5, 10: 2.0}[self.steps]}

    def micro_batches(self, step, seed):
        self.steps = step + 1
        return super().micro_batches(step, seed)


def test_the_best_checkpoint_is_kept_and_can_be_merged(tmp_path):
    class Stopped(Judged):
        at = 0

        def micro_batches(self, step, seed):
            if step == self.at:
                signal.raise_signal(signal.SIGINT)
            return super().micro_batches(step, seed)

    options = {"eval_every": 2, "checkpoint_every": 3, "keep": 1, "keep_best": True}
    run(tmp_path / "whole", METHOD, make_task(kind=Judged), **options)
    assert steps(tmp_path / "whole") == [10, 12]
    for stop, kept in ((4, [3, 4, 5]), (7, [4, 6, 8]), (8, [4, 9]), (10, [9, 10, 11])):
        task = make_task(kind=Stopped)
        task.at = stop
        with pytest.raises(Interrupted):
            run(tmp_path / "parts", METHOD, task, **options)
        assert steps(tmp_path / "parts") == kept
    assert last(tmp_path / "parts").state()["best"] == {"step": 10, "cost": 2.0}
    run(tmp_path / "parts", METHOD, make_task(kind=Judged), **options)
    same(tmp_path / "whole", tmp_path / "parts")
    assert steps(tmp_path / "parts") == [10, 12]

    assert export(tmp_path / "whole", tmp_path / "best", which="best").step == 10
    assert export(tmp_path / "whole", tmp_path / "ten", which=10).step == 10
    with pytest.raises(UsageError, match=r"has no checkpoint of step 3 \(there: 10, 12\)"):
        export(tmp_path / "whole", tmp_path / "three", which=3)
    run(tmp_path / "plain", METHOD)
    with pytest.raises(UsageError, match="has no best checkpoint"):
        export(tmp_path / "plain", tmp_path / "none", which="best")
    with pytest.raises(SystemExit) as caught:
        main(["merge", str(tmp_path / "plain"), "--out", "x", "--checkpoint", "worst"])
    assert caught.value.code == 2
    with pytest.raises(UsageError, match="keep_best needs validations"):
        RunOptions(keep_best=True, eval_every=0)


@pytest.mark.parametrize("stop", [False, True])
def test_numbers_that_are_lost_are_never_saved(tmp_path, stop):
    """A weight becomes NaN in the last step before a save; no loss has seen it yet."""

    class Lost(LanguageModelling):
        def micro_batches(self, step, seed):
            if step == 7 and stop:
                signal.raise_signal(signal.SIGINT)
            self.late = step == 7
            return super().micro_batches(step, seed)

        def loss(self, model, batch):
            loss = super().loss(model, batch)
            if self.late:
                loss.register_hook(lambda grad: grad * float("nan"))
            return loss

    options = {"checkpoint_every": 3 if stop else 4, "log_every": 50, "eval_every": 0}
    with pytest.raises(DivergedError, match="NaN or infinite weights at step 8") as caught:
        run(tmp_path / "run", FullRank(), make_task(kind=Lost), **options)
    good = 6 if stop else 4
    assert f"last good checkpoint: step {good}" in str(caught.value)
    tensors = load_file(last(tmp_path / "run").path / "model.safetensors")
    assert all(t.isfinite().all() for t in tensors.values())


# --- writing beside training ---------------------------------------------------------------------


@pytest.fixture
def slow(monkeypatch):
    """Writing waits until the event is set."""
    gate, write = threading.Event(), snapshot.write

    def waiting(*arguments):
        gate.wait(60)
        return write(*arguments)

    monkeypatch.setattr(snapshot, "write", waiting)
    yield gate
    gate.set()


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, slow):
    class Counted(LanguageModelling):
        def micro_batches(self, step, seed):
            if step == 8:  # the write of step 5 is still held
                assert not steps(tmp_path / "run")
                slow.set()
            return super().micro_batches(step, seed)

    view = Recorder()
    run(tmp_path / "run", METHOD, make_task(kind=Counted), view, checkpoint_every=5)
    assert steps(tmp_path / "run") == [5, 10, 12]
    sentence = next(s for s in view.said if s.startswith("checkpoint at step 5"))
    assert "MiB, training waited 0." in sentence
    assert "written in" in sentence
    slow.set()
    run(tmp_path / "whole", METHOD, checkpoint_every=5)
    same(tmp_path / "whole", tmp_path / "run")


def test_a_stop_and_a_failure_wait_for_the_write_and_a_second_signal_does_not(tmp_path, slow):
    class Impatient(LanguageModelling):
        def micro_batches(self, step, seed):
            if step == 7:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            return super().micro_batches(step, seed)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", METHOD, make_task(kind=Impatient), checkpoint_every=5)
    assert not steps(tmp_path / "run")  # it left while the write was held
    for thread in threading.enumerate():
        if thread.name == "spectrain checkpoint":
            slow.set()
            thread.join()

    class Failing(LanguageModelling):
        def micro_batches(self, step, seed):
            if step == 7:
                slow.set()
                raise SystemError("power cut")
            return super().micro_batches(step, seed)

    shutil.rmtree(tmp_path / "run" / "checkpoints")
    slow.clear()
    view = Recorder()
    with pytest.raises(SystemError):
        run(tmp_path / "run", METHOD, make_task(kind=Failing), view, checkpoint_every=5)
    assert steps(tmp_path / "run") == [5]
    assert view.alerts == ["finishing the checkpoint of step 5; Ctrl-C leaves at once"]


def test_a_checkpoint_that_cannot_be_written_is_said_and_the_old_one_stays(tmp_path, monkeypatch):
    class Full(LanguageModelling):
        def micro_batches(self, step, seed):
            if step == 9:
                monkeypatch.setattr(snapshot, "save_file", refuse)
            return super().micro_batches(step, seed)

    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    with pytest.raises(
        RunError, match=r"of step 10 .*No space left on device; free some"
    ) as caught:
        run(tmp_path / "run", METHOD, make_task(kind=Full), checkpoint_every=5)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000005"]
    run(tmp_path / "whole", METHOD, checkpoint_every=5)
    run(tmp_path / "run", METHOD, checkpoint_every=5)
    same(tmp_path / "whole", tmp_path / "run")


def named(part):
    return lambda path, *rest: part in path.name


KILLS = {  # the function that is not left alive, and of which call
    "in the tensors": (snapshot, "save_file", lambda tensors, path, *rest: path.name[0] == "p"),
    "in state.json": (snapshot, "write_atomic", named("state.json")),
    "in the manifest": (snapshot, "write_json", named("manifest")),
    "before the rename": (snapshot, "_sync_folder", named(".partial")),
    "after the rename": (snapshot, "_sync_folder", named("checkpoints")),
    "before dropping": (checkpoint, "discard", named("step-00000004")),
    "in dropping": (
        checkpoint,
        "remove",
        lambda path: ".step-00000004" in path.name and path.exists(),
    ),
}


@pytest.mark.parametrize(("module", "name", "when"), KILLS.values(), ids=KILLS.keys())
def test_a_kill_anywhere_in_a_write_costs_at_most_that_checkpoint(
    tmp_path, monkeypatch, module, name, when
):
    """The thread that writes dies at the given line and the run with it, as by SIGKILL."""

    class KilledError(BaseException):
        pass

    dead = []

    def dying(*arguments):
        if not dead and armed and when(*arguments):
            dead.append(True)
            raise KilledError
        return original(*arguments)

    armed, original, remove = [], getattr(module, name), checkpoint.remove

    class Arming(LanguageModelling):
        def micro_batches(self, step, seed):
            if step == 7:
                armed.append(True)
            return super().micro_batches(step, seed)

    options = {"checkpoint_every": 4, "log_every": 1, "keep": 1}
    run(tmp_path / "whole", METHOD, **options)
    with monkeypatch.context() as patch:
        # Nothing tidies up after a kill.
        patch.setattr(checkpoint, "remove", lambda path: None if dead else remove(path))
        patch.setattr(module, name, dying)
        with pytest.raises(KilledError):
            run(tmp_path / "parts", METHOD, make_task(kind=Arming), **options)
    assert len(rows(tmp_path / "parts")) >= 8
    run(tmp_path / "parts", METHOD, **options)
    same(tmp_path / "whole", tmp_path / "parts")
    assert steps(tmp_path / "parts") == [12]
    assert not list((tmp_path / "parts").rglob("*.partial"))


def test_a_report_that_cannot_be_written_is_said_and_written_the_next_time(tmp_path, monkeypatch):
    def refuse(directory):
        raise OSError(28, "No space left on device")

    asked = make_task(), FullRank(), make_options(), tmp_path / "run", Silent()
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "write_report", refuse)
        with pytest.raises(RunError, match=r"all results are in .*No space left on device; free"):
            jobs.train(*asked)
    _, report = jobs.train(*asked)
    assert report.exists()
