"""Reports of runs whose every name and text is hostile: the page has its own elements and no others."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import shutil
import warnings
from html.parser import HTMLParser
from importlib.resources import files

import hostile
import pytest
from fake_trials import FakeTraining, plan, write_run
from hostile import cases
from hypothesis import strategies as st

from spectrain.runs.compare import Arm, load_comparison, run_comparison
from spectrain.runs.plots import plot_comparison
from spectrain.runs.report import write_report
from spectrain.runs.run_plots import plot_run

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


# Attributes that hold names; what would be wrong with them shows in the elements around.
TEXTS = ("aria-label", "data-name", "alt")


class Structure(HTMLParser):
    """The elements of a page with their attributes, but for names and the bytes of its pictures."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, [(name, masked(name, str(value))) for name, value in attrs]))

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


def masked(name, value):
    if name in TEXTS:
        return "text"
    return "picture" if value.startswith("data:image/png;base64,") else value


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


def dynamics_with(layer, event):
    """Rows of every kind in which layers, factors and events have hostile names."""
    factors = {f"{event}{place}": 0.1 for place in range(2)}
    look = {"gradient": factors, "update": factors, "drift": 1e-7, "saddle": True}
    for step in (0, 100):
        yield {"step": step, "layers": {layer: look}}
        yield {"step": step, "spectra": {layer: [3, 2, 1]}}
        yield {"step": step, "event": event, "layers": 1}
        yield {"step": step, "sampled": {layer: "5"}, "of": {layer: 8}}


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
    few = {f"{next(new)}{place}": values for place in range(2)}
    (folder / "spectra.json").write_text(json.dumps(few | spectra))
    (folder / "dynamics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in dynamics_with(next(new), next(new)))
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
def plain(tmp_path):
    """The structure of the same pages with harmless names, made once for all cases."""
    return (
        run_with(tmp_path / "plain run", ["x", "xy"]),
        comparison_with(tmp_path / "plain comparison", ["x", "xy"]),
    )


names = st.lists(name, min_size=1, max_size=6)


@cases("pages of runs", names=names)
def test_a_run_of_hostile_names(tmp_path, plain, names):
    assert run_with(tmp_path / "run", names) == plain[0]


@cases("pages of comparisons", names=names)
def test_a_comparison_of_hostile_names(tmp_path, plain, names):
    folder = tmp_path / "cmp"
    shutil.rmtree(folder, ignore_errors=True)
    assert comparison_with(folder, names) == plain[1]


def test_hostile_names_in_pictures(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # glyphs that no font has
        hostile_names = [f"x{text}" for text in NAMES]
        run_with(tmp_path / "a", hostile_names)
        assert [path.name for path in plot_run(tmp_path / "a")] == ["loss.png", "spectra.png"]
        comparison_with(tmp_path / "b", hostile_names)
        assert len(plot_comparison(load_comparison(tmp_path / "b"))) == 4


@pytest.mark.parametrize("folder", ["<b>", "x' onload='y", '"><script>', "a&amp;b"])
def test_a_hostile_folder(tmp_path, folder):
    found = run_with(tmp_path / folder, ["x", "xy"])
    assert found == run_with(tmp_path / "plain", ["x", "xy"])


def test_the_page_fetches_nothing_and_runs_our_script_alone(tmp_path):
    new = itertools.cycle([f"x{text}" for text in NAMES])
    found = [*run_with(tmp_path / "run", new), *comparison_with(tmp_path / "cmp", new)]
    elements = [element for element in found if isinstance(element, tuple)]
    for tag, attributes in elements:
        assert tag not in (
            "link",
            "iframe",
            "object",
            "embed",
            "base",
            "form",
            "use",
            "foreignobject",
        )
        for key, value in attributes:
            assert not key.startswith("on")
            if key in ("src", "href", "xlink:href"):
                assert value == "picture" or re.fullmatch("#[a-z]+", value)
            if key == "style":
                assert re.fullmatch(r"width:[0-9.]+%", value)
    assert [attributes for tag, attributes in elements if tag == "script"] == [[], []]
    policies = [
        dict(a)["content"]
        for tag, a in elements
        if ("name", "viewport") not in a and tag == "meta" and "content" in dict(a)
    ]
    script = files("spectrain.runs.report").joinpath("report.js").read_bytes()
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    assert all("default-src 'none'" in p and f"script-src 'sha256-{digest}'" in p for p in policies)
    assert len(policies) == 2
