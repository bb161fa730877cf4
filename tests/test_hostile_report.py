"""Reports of runs whose every name and text is hostile: the page has its own elements and no others."""

from __future__ import annotations

import itertools
import json
import shutil
import warnings
from html.parser import HTMLParser

import hostile
import pytest
from fake_trials import FakeTraining, plan, write_run
from hostile import cases
from hypothesis import strategies as st

from spectrain.runs import report
from spectrain.runs.compare import Arm, run_comparison
from spectrain.runs.report import write_report

NAMES = (
    *(
        "<script>alert(1)</script>",
        "</script><script src=//x>",
        "</style><style>*{}",
        "</title><b>",
    ),
    *("\"'><img src=x onerror=alert(1)>", "' onload='x", "javascript:alert(1)", "&lt;b&gt;&#60;b>"),
    *("<!--", "-->", "<![CDATA[", "]]>", "<?php", "</table></div></body></html>", "{{x}}", "${x}"),
    *("<svg/onload=x>", "\x00<b>", "\ud800<b>", "\u2028<b>", "$\\frac$", "$<b>$", "=cmd|'x'!A1"),
)
name = st.one_of(
    st.sampled_from(NAMES),
    st.tuples(st.sampled_from(NAMES), hostile.text).map("".join),
    hostile.text,
).map(lambda text: f"x{text}")  # what is empty is left out, and so is its place


class Structure(HTMLParser):
    """The elements of a page with their attributes, but for the bytes of its pictures."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.found = []

    def handle_starttag(self, tag, attrs):
        attrs = [
            (k, "picture" if str(v).startswith("data:image/png;base64,") else v) for k, v in attrs
        ]
        self.found.append((tag, attrs))

    def handle_endtag(self, tag):
        self.found.append(f"/{tag}")

    def handle_comment(self, data):
        self.found.append("comment")

    def handle_decl(self, decl):
        self.found.append(decl)

    def unknown_decl(self, data):
        self.found.append("declaration")

    def handle_pi(self, data):
        self.found.append("instruction")


def structure(path):
    parser = Structure()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    return parser.found


def renamed(content, new):
    """JSON with each text and each free name in it exchanged, in order."""
    if isinstance(content, dict):
        return {f"{next(new)}{n}": renamed(v, new) for n, v in enumerate(content.values())}
    if isinstance(content, list):
        return [renamed(value, new) for value in content]
    return next(new) if isinstance(content, str) else content


FREE = {"model": "m", "notes": ["a", "b"], "model_config": {"k": "v"}, "none": None, "n": 3}


def run_with(folder, names, finished=True):
    """A run whose texts are `names`, again and again; its report's structure."""
    new = itertools.cycle(names)
    write_run(folder, "sst", 1e-3, 1e-3, 0, final=3.0, failed=next(new) if finished else None)
    config = json.loads((folder / "config.json").read_text())
    for part in ("options", "corpus", "environment"):
        config[part] = renamed(FREE, new)
    config |= {"method": {"name": next(new), **renamed(FREE, new)}, "command": next(new)}
    (folder / "config.json").write_text(json.dumps(config))
    spectra = json.loads((folder / "spectra.json").read_text())
    values = {"initial": [3, 2, 1], "final": [4, 2, 1]}
    (folder / "spectra.json").write_text(
        json.dumps({next(new): values, next(new): values} | spectra)
    )
    result = json.loads((folder / "result.json").read_text())
    sizes = {"peak": 9, "weights": 3, "gradients": 3, "optimizer": 3}
    planned = {**sizes, "with_events": 10}
    result["memory"] = {
        "planned": planned,
        "measured": sizes,
        "error_percent": 1,
        "note": next(new),
    }
    result["bytes"][f"a{next(new)}"] = 7
    result["corpus_fingerprint"] = next(new)
    (folder / "result.json").write_text(json.dumps(result))
    return structure(write_report(folder))


def comparison_with(folder, names):
    """The same of a comparison: titles, notes, schedules, options, reasons of failure."""
    new = itertools.cycle(names)
    arms = {
        key: Arm(key, next(new), (next(new), next(new)), next(new), next(new), (1e-3, 2e-3))
        for key in ("full", "sst", "lora")
    }
    asked = plan(keys=("full", "sst", "lora"), report_seeds=(1,), max_extensions=0, **arms)
    reason = next(new)
    training = FakeTraining(diverges=lambda trial: trial.arm == "lora" and trial.lr == 1e-3)

    def train(trial, directory):
        result = training(trial, directory)
        if result["failed"]:
            result["failed"] = reason
            (directory / "result.json").write_text(json.dumps(result))
        config = json.loads((directory / "config.json").read_text())
        config |= {part: renamed(FREE, iter(several)) for part in ("corpus", "environment")}
        (directory / "config.json").write_text(json.dumps(config))
        return result

    several = [next(new) for _ in range(20)]
    options = renamed(FREE, new)
    out = run_comparison(
        asked, train, folder, options=options, say=lambda text: None, command=next(new)
    )
    return structure(write_report(out.directory))


@pytest.fixture
def unpainted(monkeypatch):
    monkeypatch.setattr(report, "plot_run", lambda directory: [])
    monkeypatch.setattr(report, "plot_comparison", lambda comparison: [])


@pytest.fixture
def plain(tmp_path, unpainted):
    """The structure of the same pages with harmless names, made once for all cases."""
    return (
        run_with(tmp_path / "plain run", ["x", "xy"]),
        comparison_with(tmp_path / "plain comparison", ["x", "xy"]),
    )


names = st.lists(name, min_size=1, max_size=6)


@cases("pages of runs", names=names)
def test_a_run_of_hostile_names(tmp_path, unpainted, plain, names):
    assert run_with(tmp_path / "run", names) == plain[0]


@cases("pages of comparisons", names=names)
def test_a_comparison_of_hostile_names(tmp_path, unpainted, plain, names):
    folder = tmp_path / "cmp"
    shutil.rmtree(folder, ignore_errors=True)
    assert comparison_with(folder, names) == plain[1]


def test_hostile_names_in_pictures(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # glyphs that no font has
        hostile_names = [f"x{text}" for text in NAMES]
        assert run_with(tmp_path / "a", hostile_names) == run_with(tmp_path / "b", ["x", "xy"])
        found = comparison_with(tmp_path / "c", hostile_names)
        assert found == comparison_with(tmp_path / "d", ["x", "xy"])
    assert sum(tag == "img" for tag, *_ in found) == 4


@pytest.mark.parametrize("folder", ["<b>", "x' onload='y", '"><script>', "a&amp;b"])
def test_a_hostile_folder(tmp_path, unpainted, folder):
    found = run_with(tmp_path / folder, ["x", "xy"])
    assert found == run_with(tmp_path / "plain", ["x", "xy"])


def test_the_page_fetches_and_runs_nothing(tmp_path):
    allowed = {"html", "lang", "charset", "name", "content", "class", "tabindex", "alt", "src"}
    for tag, attributes in filter(lambda e: isinstance(e, tuple), comparison_with(tmp_path, ["x"])):
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form", "a")
        for key, value in attributes:
            assert key in allowed
            assert key != "src" or value == "picture"
