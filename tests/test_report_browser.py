"""Reports in a real browser: nothing fails, nothing overflows, hovering, zooming and switches work."""

from __future__ import annotations

import re

import browser
import pytest
from fake_dynamics import LAYERS, drawn, singular, write_dynamics
from fake_trials import FakeTraining, plan, write_run

from spectrain.runs.compare import run_comparison
from spectrain.runs.curves import read_curve
from spectrain.runs.report import write_report

pytestmark = pytest.mark.skipif(
    browser.BROWSER is None, reason="no Chromium is installed: apt-get install chromium"
)

DRIVE = """async (page, later) => {
  const { document } = page, seen = {};
  seen.live = document.documentElement.classList.contains("live");
  const root = document.documentElement;
  seen.overflow = root.scrollWidth - root.clientWidth;
  const chart = document.querySelector("figure.chart"), svg = chart.querySelector("svg.picture");
  const plot = chart.querySelector("svg.plot");
  const told = () => [chart.querySelector(".told").textContent,
    ...[...chart.querySelectorAll(".legend output")].map((o) => o.textContent)];
  const numbers = (x) => [...chart.querySelectorAll(`.frame text.${x ? "middle" : "end"}`)]
    .map((t) => t.textContent).slice(0, x ? -2 : undefined);
  const line = () => chart.querySelector(".line").getAttribute("d");
  const at = (x, y) => {  // shares of the plot
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
    return { clientX: box.left + scale * (60 + x * plot.width.baseVal.value),
      clientY: box.top + scale * (12 + y * plot.height.baseVal.value), bubbles: true, button: 0,
      pointerType: "mouse" };
  };
  const send = (type, x, y) => svg.dispatchEvent(new page.PointerEvent(type, at(x, y)));
  const key = (name, more) => svg.dispatchEvent(new page.KeyboardEvent("keydown", { key: name, ...more }));
  const button = (text) => [...chart.querySelectorAll(".tools button")]
    .find((b) => b.textContent === text).click();
  seen.ticks = [...document.querySelectorAll("figure.chart")].map((f) =>
    [...f.querySelectorAll(".frame text.end")].map((t) => t.textContent));
  seen.texts = [...svg.querySelectorAll("text")].map((t) => t.getBoundingClientRect().height);
  send("pointermove", 0.5, 0.5);
  seen.hover = told();
  const first = line();
  key("ArrowRight");
  seen.walked = told();
  svg.dispatchEvent(new page.WheelEvent("wheel", { deltaY: -1, ctrlKey: true, ...at(0.5, 0.5) }));
  seen.wheel = numbers(true);
  key("Escape");
  seen.back = line() === first;
  send("pointerdown", 0.6, 0.5); send("pointermove", 0.9, 0.52); send("pointerup", 0.9, 0.52);
  seen.dragged = [numbers(true), numbers(false)];
  send("pointermove", 0.5, 0.5);
  seen.inside = told();
  button("reset");
  seen.reset = line() === first;
  button("all");
  seen.all = numbers(false);
  button("log");
  seen.log = numbers(false);
  button("log");
  seen.unlog = line() === first;
  chart.querySelector(".legend button").click();
  seen.hidden = chart.querySelector("g.series").style.display;
  chart.querySelector(".legend button").click();
  seen.maps = [];
  for (const map of document.querySelectorAll("figure.map")) {
    const image = map.querySelector("image"), box = image.getBoundingClientRect();
    image.dispatchEvent(new page.PointerEvent("pointermove",
      { clientX: box.left + box.width * 0.99, clientY: box.top + 1, bubbles: true }));
    seen.maps.push([map.dataset.kind, map.querySelector("h4").textContent,
      map.querySelector("output").textContent]);
  }
  for (const details of document.querySelectorAll("details")) details.open = true;
  await later(100);
  seen.opened = root.scrollWidth - root.clientWidth;
  seen.drawn = [...document.querySelectorAll("figure.chart")].every((f) =>
    f.querySelector("svg.picture").viewBox.baseVal.width
      === f.querySelector("svg.picture").clientWidth);
  return seen;
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with run.html and comparison.html."""
    root = tmp_path_factory.mktemp("pages")
    write_run(root / "sst", "sst", 4e-3, 4e-3, 0, final=3.2)
    write_dynamics(root / "sst")
    write_report(root / "sst", out=root / "run.html")

    def train(trial, directory):
        result = FakeTraining()(trial, directory)
        write_dynamics(directory)
        return result

    run_comparison(plan(), train, root / "cmp", options={}, say=lambda text: None, command="x")
    write_report(root / "cmp", out=root / "comparison.html")
    return root


@pytest.fixture(scope="module")
def found(folder):
    frames = [(f"{name}.html", width) for name in ("run", "comparison") for width in (1280, 390)]
    results, complaints = browser.drive(folder, frames, DRIVE)
    assert complaints == []
    return {(entry["page"].removesuffix(".html"), entry["width"]): entry for entry in results}


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("page", ["run", "comparison"])
def test_the_page_works(found, page, width):
    entry = found[page, width]
    assert entry["errors"] == []
    seen = entry["seen"]
    assert seen["live"]
    assert seen["overflow"] == 0
    assert seen["opened"] == 0
    assert seen["drawn"]  # in pixels of the screen, also what was folded
    for done in ("back", "reset", "unlog"):
        assert seen[done], done
    assert seen["hidden"] == "none"
    assert len(seen["log"]) > 1
    assert seen["log"] != seen["all"]


def test_hovering_tells_the_values_of_the_nearest_step(found, folder):
    seen = found["run", 1280]["seen"]
    curve = read_curve(folder / "sst")
    step, told = seen["hover"]
    middle = (curve.steps[0] + curve.steps[-1]) / 2
    assert step.startswith("step ")
    at = float(step.removeprefix("step ").split(" ")[0])
    assert abs(at - middle) <= 10
    loss = curve.loss[curve.steps == at][0]
    training, validation = told.removeprefix("training ").split(" · validation ")
    assert float(training) == pytest.approx(loss, rel=1e-4)
    assert float(validation.split(" ")[0]) == pytest.approx(curve.validation[1], rel=1e-4)
    assert float(seen["walked"][0].split(" ")[1]) == at + 10


def test_zooming_narrows_the_axes(found):
    seen = found["run", 1280]["seen"]
    across, down = seen["dragged"]
    assert all(240 <= float(text) <= 370 for text in across)
    assert all(2.9 < float(text) < 3.5 for text in down)  # fitted to what is in view
    assert 250 < float(seen["inside"][0].split(" ")[1]) < 350
    assert max(map(float, seen["wheel"])) < 390
    assert max(map(float, seen["all"])) >= 6  # the steep beginning


def test_both_drawings_have_the_same_ticks(found, folder):
    """Those of y, which do not depend on the width; the script's are shown once it is live."""
    for page in ("run", "comparison"):
        charts = (folder / f"{page}.html").read_text().split('<figure class="chart"')[1:]
        frames = [chart.split('<svg class="plot"')[0] for chart in charts]
        still = [re.findall(r'class="end">([^<]*)<', frame) for frame in frames]
        shown = [
            (a, b) for a, b in zip(still, found[page, 1280]["seen"]["ticks"], strict=True) if a != b
        ]
        assert shown == []


def test_the_legend_of_a_comparison_tells_every_method(found):
    for width in (1280, 390):
        assert all("validation" in told for told in found["comparison", width]["seen"]["hover"][1:])
        assert len(found["comparison", width]["seen"]["hover"]) == 5


def test_maps_tell_singular_values_and_draws(found):
    maps = found["run", 390]["seen"]["maps"]
    assert len([m for m in maps if m[0] == "spectra"]) == len(LAYERS)
    kind, layer, told = maps[0]
    assert (kind, layer) == ("spectra", LAYERS[0])
    place, value = told.split(": ")
    assert place == "step 400, index 1"
    value, times = value.removesuffix(" × the first").split(", ")
    assert float(value) == pytest.approx(singular(400, 0, 0), rel=1e-3)
    assert float(times) == pytest.approx(singular(400, 0, 0) / singular(0, 0, 0), rel=5e-3)
    draws = [m for m in maps if m[0] == "draws"]
    # The last column but the one of the end, where nothing trains on: from step 360.
    assert [m[1] for m in draws] == list(LAYERS[:2])
    assert draws[0][2].startswith("from step 360, vector 1: ")
    assert draws[0][2].endswith("trains") == (0 in drawn(360))


def test_text_stays_legible_on_a_phone(found):
    assert min(found["run", 390]["seen"]["texts"]) >= 12


def test_the_page_prints(folder):
    browser.run(
        "--no-pdf-header-footer",
        f"--print-to-pdf={folder / 'run.pdf'}",
        (folder / "run.html").as_uri(),
        profile=folder / "profile",
    )
    assert (folder / "run.pdf").read_bytes().startswith(b"%PDF")


def test_the_browser_is_driven_at_all(folder):
    """A page that fails is noticed."""
    (folder / "bad.html").write_text("<script>nowhere()</script>")
    found, complaints = browser.drive(folder, [("bad.html", 400)], "() => { throw new Error('x') }")
    assert found[0]["errors"] == ["Error: x"]
    assert any("nowhere is not defined" in line for line in complaints)
