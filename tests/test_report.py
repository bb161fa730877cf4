"""Reports and plots of runs and comparisons, finished and partial."""

import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from fake_trials import FakeTraining, arm, plan, write_run
from rich.console import Console

from spectrain.errors import UsageError
from spectrain.runs.compare import load_comparison, run_comparison
from spectrain.runs.plots import plot_comparison
from spectrain.runs.report import write_report
from spectrain.runs.run_plots import plot_run
from spectrain.runs.summary import summarise
from spectrain.runs.terminal import render

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
