"""Reports and plots of runs and comparisons, finished and partial."""

import json
import math
import re
from dataclasses import asdict
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
from fake_dynamics import LAYERS, write_dynamics
from fake_trials import FakeTraining, arm, plan, write_run
from rich.console import Console

from spectrain.errors import UsageError
from spectrain.runs.compare import load_comparison, run_comparison
from spectrain.runs.plots import plot_comparison
from spectrain.runs.report import write_report
from spectrain.runs.report.bars import EVENTS, REST, bars_of, stacked
from spectrain.runs.rows import drawn_trials
from spectrain.runs.run_plots import plot_run
from spectrain.runs.summary import summarise
from spectrain.runs.terminal import render
from spectrain.tasks.score import Score

VOID = {"meta", "img", "br"}
OURS = files("spectrain.runs.report").joinpath("report.js").read_text(encoding="utf-8")


class Checker(HTMLParser):
    """Insists that tags nest, and that nothing is fetched and nothing but our own script is run."""

    def __init__(self):
        super().__init__()
        self.open = []
        self.text = ""
        self.scripts = []

    def handle_starttag(self, tag, attrs):
        assert tag not in ("link", "iframe")
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert value.startswith(("data:image/png;base64,", "#"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.open[-1:] != ["style"]:
            self.text += data


def read(path):
    checker = Checker()
    checker.feed(path.read_text())
    assert checker.open == []
    assert "".join(checker.scripts) == OURS
    return checker.text


def compare(tmp_path, a_plan, training, **options):
    out = tmp_path / "cmp"
    return run_comparison(
        a_plan, training, out, options=options, say=lambda text: None, command="spectrain compare"
    )


def test_report_of_a_comparison(tmp_path):
    own = {"sst": arm("sst", variations=("samples the top vectors",))}
    comparison = compare(tmp_path, plan(**own), FakeTraining(), model="llama-9m")
    text = read(write_report(comparison.directory))
    summary = summarise(comparison)
    for sentence in summary.sentences + tuple(cell for row in summary.cells for cell in row):
        assert sentence in text
    for expected in ("sst every 32 steps", "sst every 200", "spectrain compare", "llama-9m"):
        assert expected in text
    assert "standard library" in text  # the corpus
    assert "samples the top vectors" in text
    assert {path.name for path in plot_comparison(comparison)} == {
        *("loss_by_step.png", "loss_by_time.png"),
        *("perplexity_by_memory.png", "spectra.png"),
    }


def test_a_comparison_tells_how_gradients_follow_those_of_full_rank(tmp_path):
    comparison = compare(tmp_path, plan(), FakeTraining())
    shown = drawn_trials(comparison)
    for key, signs in (("full", {"weight": 1}), ("sst", {"U": 1, "s": -1})):
        for trial in shown[key]:
            rows = []
            for step in range(6):
                norms = {f: 3 + sign * math.sin(step + trial.seed) for f, sign in signs.items()}
                rows.append({"step": step, "layers": {"a": {"gradient": norms}}})
            path = comparison.trial_directory(trial) / "dynamics.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = read(write_report(comparison.directory))
    assert "Correlation over training" in text
    assert re.search(r"SST\s*U\s*1\.00\s*3\s*SST\s*s\s*−1\.00\s*3", text)


@pytest.mark.parametrize("width", [80, 160])
def test_terminal_prints_what_the_report_says(tmp_path, width):
    own = {"sst": arm("sst", variations=("samples the top vectors",))}
    comparison = compare(tmp_path, plan(**own), FakeTraining())
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(comparison))
    text = re.sub(r"\s+", " ", console.export_text())
    summary = summarise(comparison)
    for sentence in summary.sentences + tuple(cell for row in summary.cells for cell in row):
        assert sentence in text
    assert "[1] SST: samples the top vectors" in text


def test_everything_is_escaped(tmp_path):
    evil = "<script>alert('x')</script>"
    own = {"sst": arm("sst", variations=(evil,))}
    comparison = compare(tmp_path, plan(**own), FakeTraining(), **{evil: {"nested": [evil]}})
    page = write_report(comparison.directory).read_text()
    assert page.count("<script") == 1
    assert "&lt;script&gt;" in page
    run = tmp_path / "<b>"
    write_run(run, evil, 1e-3, 1e-3, 0, final=3.0, failed=evil)
    page = write_report(run).read_text()
    assert page.count("<script") == 1
    assert "<b>" not in page.split("</title>")[0]


@pytest.mark.parametrize("done", [0, 1, 5, 12, 14, 16])
def test_report_of_a_partial_comparison(tmp_path, done):
    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path, plan(), FakeTraining(stop_after=done))
    text = read(write_report(tmp_path / "cmp"))
    assert f"Not finished: {done} of" in text
    assert "not done yet" in text
    # Results of the sweep are not mixed with those of other seeds.
    seeds = {0: set(), 1: set(), 5: set(), 12: {1}, 14: {1}, 16: {1}}[done]
    rows = summarise(load_comparison(tmp_path / "cmp")).rows
    assert {len(row.costs) for row in rows if row.costs} == seeds


def test_report_where_every_trial_diverged(tmp_path):
    comparison = compare(tmp_path, plan(), FakeTraining(diverges=lambda trial: True))
    text = read(write_report(comparison.directory))
    assert "LoRA diverged at every rate tried" in text


def test_report_of_a_run(tmp_path):
    write_run(tmp_path / "a", "sst", 4e-3, 4e-3, 0, final=3.2)
    text = read(write_report(tmp_path / "a"))
    assert "finished" in text
    assert "3.2000 (perplexity 24.53)" in text
    assert {path.name for path in plot_run(tmp_path / "a")} == {"loss.png", "spectra.png"}


def test_report_of_an_unfinished_run(tmp_path):
    write_run(tmp_path / "a", "sst", 4e-3, 4e-3, 0, final=3.2, finished=False)
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 410, "lo')  # being written
    text = read(write_report(tmp_path / "a"))
    assert "not finished: recorded up to step 400" in text


def test_report_of_a_run_that_has_not_begun(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "Nothing recorded yet" in read(write_report(tmp_path))


def test_no_report_without_a_run(tmp_path):
    with pytest.raises(UsageError, match="no run and no comparison"):
        write_report(tmp_path)


def test_report_of_a_run_with_dynamics(tmp_path):
    write_run(tmp_path / "a", "sst", 4e-3, 4e-3, 0, final=3.2)
    write_dynamics(tmp_path / "a")
    text = read(write_report(tmp_path / "a"))
    for shown in ("Gradient norms", "Update-to-weight ratios", "Orthogonality drift", *LAYERS):
        assert shown in text
    for event in ("resample", "redecompose", "saddle alarm"):
        assert event in text
    assert "Gradients of these layers stayed near zero" in text
    (tmp_path / "a" / "dynamics.jsonl").unlink()  # of an older run
    text = read(write_report(tmp_path / "a"))
    assert "Gradient norms" not in text
    assert "Singular values, start and end" in text


def test_report_of_a_run_that_is_being_written(tmp_path):
    write_run(tmp_path / "a", "sst", 4e-3, 4e-3, 0, final=3.2, finished=False)
    write_dynamics(tmp_path / "a")
    for name in ("metrics", "timing", "dynamics"):
        path = tmp_path / "a" / f"{name}.jsonl"
        whole = path.read_bytes()
        for cut in (0, 1, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:cut])
            read(write_report(tmp_path / "a"))
        path.write_bytes(whole)
    # Spectra of the end are taken from what was recorded so far.
    (tmp_path / "a" / "spectra.json").unlink()
    assert "Singular values, start and end" in read(write_report(tmp_path / "a"))


def test_a_running_trial_says_how_far_it_is(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path, plan(), FakeTraining(stop_after=3))
    found = load_comparison(tmp_path / "cmp")
    waiting = next(trial for trial in found.progress.trials if trial not in found.results)
    write_run(found.trial_directory(waiting), "sst", 1e-3, 1e-3, 0, final=3.0, finished=False)
    assert "at step 400" in read(write_report(tmp_path / "cmp"))


def test_several_runs_are_laid_over_each_other(tmp_path):
    compare(tmp_path, plan(keys=("full", "lora")), FakeTraining())
    for name, final in (("first/sst", 3.2), ("second/sst", 3.3)):
        write_run(tmp_path / name, "sst", 4e-3, 4e-3, 0, final=final)
    write_run(tmp_path / "going", "lora", 4e-3, 4e-3, 0, final=3.4, finished=False)
    runs = [tmp_path / name for name in ("first/sst", "second/sst", "going", "cmp")]
    page = write_report(*runs, out=tmp_path / "all.html")
    assert page == tmp_path / "all.html"
    text = read(page)
    for name in ("first/sst", "second/sst", "going", "cmp: full rank", "cmp: LoRA"):
        assert name in text
    assert "3.2000 (perplexity 24.53)" in text
    assert "not finished: recorded up to step 400" in text
    chart = page.read_text().split('<figure class="chart"')[1]
    assert chart.count('data-note="training"') == 5
    read(write_report(*runs[:3], out=page))


def test_where_the_report_of_several_goes(tmp_path, monkeypatch):
    for name in ("a", "b"):
        write_run(tmp_path / name, "sst", 4e-3, 4e-3, 0, final=3.2)
    monkeypatch.chdir(tmp_path)
    assert write_report(tmp_path / "a", tmp_path / "b") == Path("spectrain-report.html")
    assert not (tmp_path / "a" / "report.html").exists()


def test_runs_that_cannot_be_laid_over_each_other(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, "sst", 4e-3, 4e-3, 0, final=3.2)
    with pytest.raises(UsageError, match="the same directory is given twice"):
        write_report(tmp_path / "a", tmp_path / "b" / ".." / "a")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    config["scores"] = [asdict(Score("f1", "F1", "points", True))]
    (tmp_path / "b" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UsageError, match="a by loss, perplexity and b by F1: make a report of each"
    ):
        write_report(tmp_path / "a", tmp_path / "b")


def test_a_long_run_has_a_small_report(tmp_path):
    write_run(tmp_path, "sst", 4e-3, 4e-3, 0, final=3.2, steps=200_000)
    assert write_report(tmp_path).stat().st_size < 250_000


def test_the_memory_of_a_run_by_category():
    sizes = {"weights": 30, "gradients": 10, "optimizer": 20}
    memory = {
        "planned": {**sizes, "peak": 100, "with_events": 130},
        "measured": {**sizes, "peak": 110},
    }
    measured, planned = bars_of("run", {"bytes": sizes, "memory": memory})
    assert measured.name == "run, measured"
    assert measured.sizes == {**sizes, REST: 50}
    assert planned.sizes == {**sizes, REST: 40, EVENTS: 30}
    assert [bar.sizes for bar in bars_of("run", {"bytes": sizes})] == [sizes]
    assert bars_of("run", {}) == []
    text = stacked([measured, planned])
    assert text.count('style="width:') == 9
    assert 'style="width:23.08%"' in text  # 30 of 130
