"""Forks begin where another run is; one directory has one process at a time."""

from __future__ import annotations

import shutil

import pytest
from tiny import Recorder, last, make_options, make_task, rows, run, same, stopped_at

from spectrain import SST, FullRank, LoRA, ReLoRA
from spectrain.errors import RunError, UsageError
from spectrain.runs import checkpoint, snapshot
from spectrain.runs.directory import has_begun
from spectrain.runs.files import read_json
from spectrain.runs.jobs import compare
from spectrain.runs.lock import locked
from spectrain.runs.view import Silent

METHOD = SST(4, resample_every=3)
OPTIONS = {"checkpoint_every": 6}


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    directory = tmp_path_factory.mktemp("old") / "run"
    run(directory, METHOD, **OPTIONS)
    return directory


def test_a_fork_goes_on_with_other_settings_and_is_a_run_of_its_own(tmp_path, old):
    changed = {"steps": 20, "lr": 5e-3, "lr_ordinary": 1e-3, **OPTIONS}
    view = Recorder()
    result = run(tmp_path / "new", METHOD, make_task(batch_size=2), view, fork=old, **changed)
    assert view.said[0] == f"beginning {tmp_path / 'new'} from step 12 of {old}"
    assert result["steps"] == 20
    found, before = rows(tmp_path / "new"), rows(old)
    assert found[: len(before) - 1] == before[:-1]  # but for the last one, with the test loss
    assert [row["step"] for row in found[len(before) - 1 :]] == [16, 18, 18, 20, 20]
    assert found[-2]["lr_ordinary"] < found[-2]["lr"] < 5e-3
    fork = read_json(tmp_path / "new" / "config.json")["fork"]
    assert (fork["run"], fork["step"]) == (str(old), 12)
    first, begun = read_json(old / "spectra.json"), read_json(tmp_path / "new" / "spectra.json")
    assert all(begun[name]["initial"] == first[name]["initial"] for name in first)

    # Stopped, and its origin gone: the same command continues it, as does one without --fork.
    shutil.copytree(old, tmp_path / "old")
    task = {"fork": tmp_path / "old", **changed}
    stopped_at(tmp_path / "parts", METHOD, 14, **task)
    shutil.rmtree(tmp_path / "old")
    stopped_at(tmp_path / "parts", METHOD, 17, **task)
    run(tmp_path / "parts", METHOD, **changed)
    whole = run(tmp_path / "whole", METHOD, fork=old, **changed)
    assert whole["steps"] == 20
    same(tmp_path / "whole", tmp_path / "parts")
    with pytest.raises(UsageError, match="was not forked from"):
        run(tmp_path / "parts", METHOD, fork=tmp_path / "new", **changed)


def test_a_fork_that_changes_nothing_ends_as_the_run_itself(tmp_path, old):
    shutil.copytree(old, tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "step-00000012")
    run(tmp_path / "new", METHOD, fork=tmp_path / "half", **OPTIONS)
    assert rows(tmp_path / "new") == rows(old)
    own, other = (
        checkpoint.Checkpoint(path / "checkpoints" / "step-00000012", 12)
        for path in (tmp_path / "new", old)
    )
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (own.path / name).read_bytes() == (other.path / name).read_bytes()
    # A checkpoint of one is foreign to the other all the same.
    assert last(tmp_path / "new").step == 12
    shutil.copytree(own.path, tmp_path / "half" / "checkpoints" / own.path.name)
    assert last(tmp_path / "half").step == 6


@pytest.mark.parametrize(
    ("method", "changes", "said"),
    [
        (METHOD, {"steps": 12}, "it is at step 12 already, and --steps is 12: give more"),
        (LoRA(4), {}, "is missing"),
        (SST(3, resample_every=3), {}, r"U_active is float32 \[4, 32\].*needs float32 \[3, 32\]"),
        (METHOD, {"optimizer": "SGD"}, "where SGD keeps"),
        (METHOD, {"exclude": "lm_head,down_proj"}, "is missing"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path, old, method, changes, said
):
    options = {"steps": 20, **OPTIONS, **changes}
    with pytest.raises(UsageError, match=f"cannot go on with these settings: .*{said}") as caught:
        run(tmp_path / "new", method, fork=old, **options)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".lock"]


def test_places_to_fork_from_that_are_none(tmp_path, old):
    with pytest.raises(UsageError, match="needs another --out"):
        run(tmp_path / "new", METHOD, fork=tmp_path / "new")
    with pytest.raises(UsageError, match="is no run of spectrain"):
        run(tmp_path / "new", METHOD, fork=tmp_path / "nothing")
    shutil.copytree(old, tmp_path / "empty")
    shutil.rmtree(tmp_path / "empty" / "checkpoints")
    with pytest.raises(RunError, match="that run has no intact checkpoint"):
        run(tmp_path / "new", METHOD, fork=tmp_path / "empty", steps=20)
    with pytest.raises(UsageError, match=f"--fork {old} and another --out"):
        run(old, METHOD, **OPTIONS, lr=0.5)


def test_phases_must_agree(tmp_path):
    """A warm start may end later if it has not ended yet; what has been done stays done."""
    relora = {"rank": 4, "merge_every": 3, "rewarm": 2}
    stopped_at(tmp_path / "warm", ReLoRA(warm_start=5, **relora), 3)
    stopped_at(tmp_path / "low", ReLoRA(warm_start=5, **relora), 6)
    result = run(tmp_path / "a", ReLoRA(warm_start=8, **relora), fork=tmp_path / "warm", steps=14)
    assert result["steps"] == 14
    longer = run(tmp_path / "b", ReLoRA(warm_start=5, **relora), fork=tmp_path / "low", steps=14)
    assert longer["steps"] == 14
    with pytest.raises(
        UsageError, match=r"in phase 2, and this run would be in phase 1 \(Full rank"
    ):
        run(tmp_path / "c", ReLoRA(warm_start=8, **relora), fork=tmp_path / "low", steps=14)


def test_a_fork_that_was_killed_before_it_was_saved_begins_again(tmp_path, old, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "write", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path / "new", METHOD, fork=old, steps=20)
    assert not has_begun(tmp_path / "new")  # so that the other run may have moved on by then
    run(tmp_path / "new", METHOD, fork=old, steps=20)
    run(tmp_path / "whole", METHOD, fork=old, steps=20)
    same(tmp_path / "whole", tmp_path / "new")


def test_one_directory_has_one_process(tmp_path):
    with locked(tmp_path / "run"):
        with pytest.raises(UsageError, match="is in use: another process works there"):
            run(tmp_path / "run", FullRank())
        with pytest.raises(UsageError, match="is in use"):
            compare(
                make_task(),
                {"full": FullRank()},
                {"full": [1e-3]},
                make_options(),
                ordinary_rates=[None],
                report_seeds=[1],
                max_extensions=0,
                out=tmp_path / "run",
                view=Silent(),
            )
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    run(tmp_path / "run", FullRank())
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "photo.jpg").write_text("")
    with pytest.raises(UsageError, match="is not empty"), locked(tmp_path / "photos"):
        pass
    assert len(list((tmp_path / "photos").iterdir())) == 1
