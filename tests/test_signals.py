"""Ctrl-C and SIGTERM at any time: a sentence, the right exit code, no traceback, nothing lost."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from tiny import Recorder, make_task, run, same

from spectrain import SST, FullRank
from spectrain.cli.main import main
from spectrain.errors import RunError
from spectrain.runs.interrupt import Interrupted
from spectrain.tasks.lm import task as task_module
from spectrain.tasks.lm.task import LanguageModelling

SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@SIGNALS
def test_a_stop_is_answered_at_once_and_comes_after_the_step_and_its_measurements(tmp_path, number):
    class Measured(LanguageModelling):
        def evaluate(self, model, split, **how):
            if split == "validation" and not how["thorough"]:
                signal.raise_signal(number)
                assert view.alerts == ["stopping after this step; again to leave now"]
            return super().evaluate(model, split, **how)

    view = Recorder()
    with pytest.raises(Interrupted, match="stopped at step 6 and saved"):
        run(tmp_path / "parts", FullRank(), make_task(kind=Measured), view)
    run(tmp_path / "parts", FullRank())
    run(tmp_path / "whole", FullRank())
    same(tmp_path / "whole", tmp_path / "parts")


@SIGNALS
@pytest.mark.parametrize("when", ["build_model", "save_assets", "probe", "evaluate"])
def test_a_signal_outside_the_steps(tmp_path, when, number):
    """While the model is built, assets are written, a checkpoint is copied, the end is measured."""

    class Signalled(LanguageModelling):
        pass

    def raising(self, *arguments, **named):
        signal.raise_signal(number)
        return getattr(LanguageModelling, when)(self, *arguments, **named)

    setattr(Signalled, when, raising)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(tmp_path / "parts", FullRank(), make_task(kind=Signalled), eval_every=0)
    assert isinstance(caught.value, Interrupted) == (when == "probe")
    run(tmp_path / "parts", FullRank(), eval_every=0)
    run(tmp_path / "whole", FullRank(), eval_every=0)
    same(tmp_path / "whole", tmp_path / "parts")


@SIGNALS
def test_the_program_leaves_with_130_and_a_sentence_wherever_it_is(
    tmp_path, monkeypatch, capsys, number
):
    def interrupted(*arguments, **named):
        signal.raise_signal(number)
        raise AssertionError("went on")

    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(task_module, "load_corpus", interrupted)
    for arguments in (["train", "lm"], ["compare", "lm"]):
        with pytest.raises(SystemExit) as caught:
            main([*arguments, *(["--method.rank", "4"] * (arguments[0] == "train")), "--out", "x"])
        assert caught.value.code == 130
        said = capsys.readouterr().err.strip()
        assert said == "stopped; what was saved is kept, and the same command continues"
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_leaving_now_does_not_wait_for_a_write(monkeypatch, capsys):
    """os._exit, since a thread in native code would abort the interpreter's ordinary end."""

    class LeftError(BaseException):
        pass

    def leave(code):
        raise LeftError(code)

    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    gate = threading.Event()
    writer = threading.Thread(
        target=gate.wait, args=(60,), name="spectrain checkpoint", daemon=True
    )
    writer.start()
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(task_module, "load_corpus", interrupted)
    with pytest.raises(LeftError) as caught:
        main(["train", "lm", "--method.rank", "4", "--out", "x"])
    gate.set()
    writer.join()
    assert caught.value.args == (130,)
    assert "stopped" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), Exception("No space left")]
)
def test_a_full_disk_at_the_beginning_is_one_sentence(tmp_path, monkeypatch, error):
    def refuse(*arguments):
        raise error

    task = make_task()
    monkeypatch.setattr(type(task), "save_assets", refuse)
    with pytest.raises(RunError, match=r"could not write tokenizer .*No space left") as caught:
        run(tmp_path / "run", SST(4), task)
    assert caught.value.exit_code == 1
    monkeypatch.undo()
    run(tmp_path / "run", SST(4))
