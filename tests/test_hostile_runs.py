"""Malformed files in run directories: a report, or one sentence; and nothing written elsewhere."""

from __future__ import annotations

import functools
import json
import shutil
import warnings

import hostile
import pytest
from fake_dynamics import write_dynamics
from fake_trials import FakeTraining, plan, write_run
from hostile import as_bytes, cases, in_a_sentence, place_anything
from hypothesis import strategies as st
from rich.console import Console

from spectrain.errors import RunError
from spectrain.runs.compare import load_comparison, run_comparison
from spectrain.runs.curves import column, mean_curve, read_curve
from spectrain.runs.files import read_rows
from spectrain.runs.records import PLAN, SPECTRA, read_config, read_record, read_result
from spectrain.runs.report import write_report
from spectrain.runs.run_plots import plot_run
from spectrain.runs.terminal import render
from spectrain.runs.trials import Arm, Plan, planned

FILES = (
    *("config.json", "result.json", "spectra.json"),
    *("metrics.jsonl", "timing.jsonl", "dynamics.jsonl"),
)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A finished run and a finished comparison with plausible numbers."""
    folder = tmp_path_factory.mktemp("original")
    write_run(folder / "run", "sst", 4e-3, 4e-3, 0, final=3.2)
    write_dynamics(folder / "run")
    result = json.loads((folder / "run" / "result.json").read_text())
    sizes = {"peak": 9, "weights": 3, "gradients": 3, "optimizer": 3}
    result["memory"] = {
        "planned": {**sizes, "with_events": 10},
        "measured": sizes,
        "error_percent": 1.5,
        "note": None,
    }
    (folder / "run" / "result.json").write_text(json.dumps(result))
    few = {"layers.0": {"initial": [3, 2, 1], "final": [4, 2, 1]}}
    (folder / "run" / "spectra.json").write_text(json.dumps(few))
    small = plan(keys=("full", "lora"), report_seeds=(1,), max_extensions=1)
    run_comparison(
        small, FakeTraining(), folder / "cmp", options={"a": 1}, say=print, command="spectrain"
    )
    for path in folder.rglob("*.jsonl"):  # a few rows will do
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:6]))
    return folder


VALID = {}  # the contents of a run's files


def content(name):
    """The JSON of a valid run's file, read when it is first asked for."""
    return st.deferred(lambda: st.just(VALID[name]))


@pytest.fixture(scope="module", autouse=True)
def _valid(original):
    for name in FILES:
        raw = (original / "run" / name).read_text()
        rows = raw.splitlines() if name.endswith("l") else [raw]
        VALID[name] = [json.loads(row) for row in rows]
        VALID[name] = VALID[name] if name.endswith("l") else VALID[name][0]
    VALID["comparison"] = json.loads((original / "cmp" / "config.json").read_text())


@functools.cache  # hypothesis takes long to make acquaintance with a strategy
def damaged(name):
    """The bytes of the file, damaged somehow."""
    if name.endswith("l"):
        rows = st.lists(place_anything(content(name).flatmap(st.sampled_from)), max_size=5)
        lines = rows.map(lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode())
        return st.one_of(lines, lines, as_bytes(content(name)))
    return as_bytes(place_anything(content(name)))


@functools.cache
def named(name):
    """(name, bytes)."""
    return st.tuples(st.just(name), damaged(name))


SHAPES = {
    "config.json": read_config,
    "comparison": lambda folder: read_record(folder / "config.json", {"plan": PLAN}),
    "result.json": read_result,
    "spectra.json": lambda folder: read_record(folder / "spectra.json", SPECTRA),
}


@cases(
    "records",
    drawn=st.sampled_from(list(SHAPES)).flatmap(named),
)
def test_json_of_run_directories(tmp_path, drawn):
    name, raw = drawn
    path = tmp_path / ("config.json" if name == "comparison" else name)
    path.write_bytes(raw)
    with in_a_sentence():
        assert isinstance(SHAPES[name](tmp_path), dict)
    path.unlink()


@pytest.mark.parametrize(
    ("name", "place", "value", "said"),
    [
        ("result.json", ["bytes", "gradients"], "x", "'gradients' is not a whole number"),
        ("result.json", ["lr"], float("inf"), "'lr' is not a finite number"),
        ("config.json", ["method"], [], "'method' is not an object"),
        (
            "comparison",
            ["plan", "report_seeds"],
            [1, 1.5],
            "item 1 of 'report_seeds' is not a whole",
        ),
        ("comparison", ["plan", "arms"], None, "'arms' is not a list"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, place, value, said):
    bad = json.loads(json.dumps(VALID[name]))
    inner = bad
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (tmp_path / name.replace("comparison", "config.json")).write_text(json.dumps(bad))
    with pytest.raises(RunError, match=said):
        SHAPES[name](tmp_path)


rows = st.one_of(damaged("metrics.jsonl"), damaged("timing.jsonl"))


@cases("rows", raw=rows)
def test_rows(tmp_path, raw):
    (tmp_path / "metrics.jsonl").write_bytes(raw)
    with in_a_sentence():
        found = read_rows(tmp_path / "metrics.jsonl")
        assert all(isinstance(row, dict) for row in found)
        steps, values = column(found, "loss")
        assert len(steps) == len(values)
        assert (steps[1:] > steps[:-1]).all()


@cases("curves", metrics=st.lists(damaged("metrics.jsonl"), min_size=1, max_size=3), timing=rows)
def test_curves(tmp_path, metrics, timing):
    curves = []
    with in_a_sentence():
        for raw in metrics:
            (tmp_path / "metrics.jsonl").write_bytes(raw)
            (tmp_path / "timing.jsonl").write_bytes(timing)
            curves += [read_curve(tmp_path)]
        if known := [curve for curve in curves if curve is not None]:
            mean_curve(known)


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def report_of(folder, page):
    """Write the report in `folder/work`; nothing beside it may change."""
    before = snapshot(folder)
    with in_a_sentence():
        write_report(page)
    changed = {path for path, time in snapshot(folder).items() if before.get(path) != time}
    assert all(page in path.parents or path == page for path in changed)


def some_files(names):
    pairs = st.sampled_from(names).flatmap(named)
    return st.lists(pairs, min_size=1, max_size=2).map(dict)


@cases("report of a run", files=some_files(FILES))
def test_reports_of_damaged_runs(tmp_path, original, files):
    _spoilt(original / "run", tmp_path / "work", files)
    report_of(tmp_path, tmp_path / "work")


def _spoilt(source, target, files):
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    for name, raw in files.items():
        (target / name).write_bytes(raw)


comparison_files = st.one_of(
    damaged("comparison").map(lambda raw: {"config.json": raw}),
    st.tuples(st.integers(0, 3), some_files(FILES)).map(
        lambda at: {(at[0], name): raw for name, raw in at[1].items()}
    ),
)


def _spoil_comparison(original, work, files):
    """Damage config.json or the file of one trial."""
    _spoilt(original / "cmp", work, {})
    trials = sorted((work / "trials").iterdir())
    for place, raw in files.items():
        path = work / place if isinstance(place, str) else trials[place[0]] / place[1]
        path.write_bytes(raw)


@cases("report of a comparison", files=comparison_files)
def test_reports_of_damaged_comparisons(tmp_path, original, files):
    _spoil_comparison(original, tmp_path / "work", files)
    report_of(tmp_path, tmp_path / "work")
    with in_a_sentence(), open("/dev/null", "w") as nowhere:
        Console(file=nowhere).print(render(load_comparison(tmp_path / "work")))


@cases("pictures", files=some_files(("spectra.json", "metrics.jsonl", "timing.jsonl")))
def test_pictures(tmp_path, original, files):
    _spoilt(original / "run", tmp_path / "work", files)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that no font has
        with in_a_sentence():
            plot_run(tmp_path / "work")


finite = st.floats(allow_nan=False, allow_infinity=False) | hostile.whole
names = st.sampled_from(("sst", "lora", "../x", "a b", "", "x/y", "full"))
arms = st.builds(
    Arm,
    key=names,
    title=hostile.text,
    variations=st.lists(hostile.text, max_size=2).map(tuple),
    schedule=hostile.text,
    paper_schedule=hostile.text,
    learning_rates=st.lists(
        st.sampled_from((1e-3, 2e-3, 4e-3, 1e-300, 5e-324, 1e99)) | finite, max_size=3
    ).map(tuple),
)
results = st.dictionaries(
    st.sampled_from(("validation_loss", "test_loss", "failed")), hostile.scalar, max_size=3
)


@cases(
    "plans",
    chosen=st.lists(arms, max_size=2).map(tuple),
    ordinary=st.lists(st.none() | finite, max_size=2).map(tuple),
    seeds=st.lists(hostile.whole, max_size=3).map(tuple),
    extensions=hostile.whole,
    result=results,
)
def test_plans(chosen, ordinary, seeds, extensions, result):
    with in_a_sentence():
        made = Plan(chosen, ordinary, 0, seeds, extensions)
        known = {}
        while pending := [t for t in planned(made, known).trials if t not in known]:
            for trial in pending:
                known[trial] = result
                assert "/" not in trial.slug
                assert ".." not in trial.slug
        assert len(known) < 500
