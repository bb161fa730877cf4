"""What charts and maps of a report say is what was recorded: values, axes, shades, ages of vectors."""

from __future__ import annotations

import base64
import io
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from fake_dynamics import (
    LAYERS,
    RANK,
    VECTORS,
    drawn,
    gradient,
    rows,
    singular,
    write_dynamics,
)
from fake_trials import write_run
from PIL import Image

from spectrain.runs.report.axes import Axis, around, number
from spectrain.runs.report.chart import Chart, figure_of
from spectrain.runs.report.dynamics import SADDLE, Dynamics
from spectrain.runs.report.factors import draw_maps, spectra_maps
from spectrain.runs.report.heatmap import shades
from spectrain.runs.report.picture import POINTS
from spectrain.runs.report.series import Rug, Series

SVG = "{http://www.w3.org/2000/svg}"


def parsed(figure):
    """The figure as a tree: it is well-formed XML, too."""
    text = figure.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ')
    return ElementTree.fromstring(text.replace("&nbsp;", " "))


def points(path):
    """(n, 2) coordinates in a path's attribute d."""
    pairs = re.findall(r"([-0-9.e+]+),([-0-9.e+]+)", path.get("d"))
    return np.array(pairs, dtype=float)


def only(tree, kind):
    return next(path for path in tree.iter(f"{SVG}path") if path.get("class") == kind)


def chart(*series, **options):
    return Chart("T", "C", "step", "loss", series, **options)


def line(y, **options):
    y = np.asarray(y, dtype=float)
    return Series("a", np.arange(len(y)) * 10.0, y, 0, **options)


def test_a_line_holds_its_values():
    y = np.random.default_rng(0).normal(3, 1, 200)
    tree = parsed(figure_of(chart(line(y, low=y - 0.5, high=y + 1))))
    found = points(only(tree, "line"))
    np.testing.assert_allclose(found, np.stack([np.arange(200) * 10.0, y], 1), rtol=1e-5)
    band = points(only(tree, "band"))
    np.testing.assert_allclose(band[:200, 1], y + 1, rtol=1e-5)
    np.testing.assert_allclose(band[200:, 1], (y - 0.5)[::-1], rtol=1e-4, atol=1e-5)


def test_of_a_logarithmic_axis_powers_of_ten_are_drawn():
    y = np.array([1e-6, 0.0, 1e-3, np.nan, 5.0])
    found = points(only(parsed(figure_of(chart(line(y), logarithmic=True))), "line"))
    np.testing.assert_allclose(found, [[0, -6], [20, -3], [40, np.log10(5)]], rtol=1e-5)


def test_the_matrix_puts_values_where_ticks_say_they_are():
    tree = parsed(figure_of(chart(line([2.0, 4.0, 3.0]))))
    plane = next(g for g in tree.iter(f"{SVG}g") if g.get("class") == "plane")
    a, _, _, d, e, f = map(float, re.findall(r"[-0-9.e+]+", plane.get("transform")))
    plot = next(s for s in tree.iter(f"{SVG}svg") if s.get("class") == "plot")
    texts = {t.text: t for t in tree.iter(f"{SVG}text") if t.get("class") == "end"}
    for value in ("2", "3", "4"):
        height = float(plot.get("y")) + d * float(value) + f
        assert float(texts[value].get("y")) - 4 == pytest.approx(height, abs=0.1)
    across = [t for t in tree.iter(f"{SVG}text") if t.get("class") == "middle" and t.text == "10"]
    assert float(across[0].get("x")) == pytest.approx(float(plot.get("x")) + 10 * a + e, abs=0.1)


def test_long_lines_keep_their_extremes():
    y = np.sin(np.arange(50_000) / 999)
    y[31_234], y[40_001] = 9.0, -9.0
    found = points(only(parsed(figure_of(chart(line(y)))), "line"))
    assert len(found) <= POINTS
    assert [312_340.0, 9.0] in found.tolist()
    assert [400_010.0, -9.0] in found.tolist()
    assert found[0, 0] == 0
    assert found[-1, 0] == 499_990.0


def test_the_view_is_what_is_asked_for_and_the_rest_is_kept():
    y = np.append(90.0, np.linspace(3, 2, 50))
    figure = figure_of(chart(line(y), view=(2.0, 3.0)))
    low, high = map(float, re.search(r'data-view="\S+ \S+ (\S+) (\S+)"', figure).groups())
    assert (low, high) == pytest.approx((1.95, 3.05))
    assert points(only(parsed(figure), "line"))[0, 1] == 90


def test_nothing_to_draw_is_no_figure():
    assert figure_of(chart()) == ""
    assert figure_of(chart(line([np.nan, np.inf]))) == ""
    assert figure_of(chart(line([0.0, -1.0]), logarithmic=True)) == ""
    assert figure_of(chart(line([1.0]))) != ""


def test_the_table_of_data_holds_values_of_both_kinds():
    dots = Series("a", np.array([100.0, 190.0]), np.array([7.5, 6.25]), 0, dots=True, note="v")
    figure = figure_of(chart(line(np.linspace(9, 8, 20), note="t"), dots))
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", figure)]
    assert cells[1:] == [["100", "8.4737", "7.5"], ["190", "8", "6.25"]]
    assert "<th>a, t</th><th>a, v</th>" in figure


def test_series_are_told_apart_without_colour():
    many = [Series(f"m{i}", np.arange(3.0), np.arange(3.0) + i, i) for i in range(30)]
    groups = re.findall(
        r'<g class="series (c\d)".*?data-glyph="(.*?)".*?</g>', figure_of(chart(*many))
    )
    assert len(groups) == 30
    dashes = re.findall(
        r'class="line" d="M[^"]*L[^"]*"( stroke-dasharray="[^"]*")?', figure_of(chart(*many))
    )
    looks = {(glyph, dash) for (_, glyph), dash in zip(groups, dashes, strict=True)}
    assert len(looks) == 10
    assert (
        len({(c, *look) for (c, g), d in zip(groups, dashes, strict=True) for look in [(g, d)]})
        == 30
    )


def test_events_stand_at_their_steps():
    tree = parsed(figure_of(chart(line([1, 2, 3]), rugs=[Rug("merge", np.array([5.0, 15.0]), 0)])))
    assert points(only(tree, "ticks"))[::2, 0].tolist() == [5, 15]
    assert any(text.text == "merge" for text in tree.iter(f"{SVG}text"))


@pytest.mark.parametrize(
    ("low", "high", "log", "texts"),
    [
        (2.3, 7.1, False, ["3", "4", "5", "6", "7"]),
        (0, 12_000, False, ["0", "2,000", "4,000", "6,000", "8,000", "10,000", "12,000"]),
        (-5, -1, True, ["1e-5", "1e-4", "0.001", "0.01", "0.1"]),
        (0, 1.2, True, ["1", "2", "5", "10"]),
        (-8e-4, 6e-4, False, ["-5e-4", "0", "5e-4"]),
    ],
)
def test_ticks(low, high, log, texts):
    found = [text for _, text in Axis(low, high, log).ticks()]
    assert [text for text in texts if text in found] == texts
    assert len(found) <= 9


def test_ticks_never_fail_and_are_few():
    draw = np.random.default_rng(0)
    for _ in range(500):
        low, width = draw.normal() * 10 ** draw.uniform(-30, 30), 10 ** draw.uniform(-30, 30)
        for axis in (Axis(low, low + width), Axis(draw.uniform(-30, 30), 31.0, True)):
            assert len(axis.ticks()) <= 16
    assert around([]).ticks()
    assert around([np.array([3.0, 3.0])]).low < 3 < around([np.array([3.0, 3.0])]).high


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0"), (1234.5, "1,234.5"), (1e-5, "1e-5"), (0.00123456, "0.0012346"), (-2.5, "−2.5")),
        *((12345678, "1.235e7"), (float("nan"), "–"), (100.0, "100"), (0.1 + 0.2, "0.3")),
    ],
)
def test_numbers_in_words(value, text):
    assert number(value) == text


def test_shades_are_one_hue_in_even_steps_of_lightness():
    rgb = shades(64) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    lightness = 116 * np.cbrt(luminance) - 16  # of CIELAB, above 8
    steps = np.diff(lightness)
    assert (steps < 0).all()
    np.testing.assert_allclose(steps, steps.mean(), atol=0.45)
    assert (rgb[:, 2] >= rgb[:, 0]).all()  # blue throughout


# --- dynamics.jsonl --------------------------------------------------------------------------------


@pytest.fixture
def dynamics(tmp_path):
    write_dynamics(tmp_path)
    return Dynamics(tmp_path)


def test_median_and_range_over_layers(dynamics):
    found = dynamics.by_factor("gradient")
    assert list(found) == ["U", "s", "V"]
    places = range(len(LAYERS))
    for factor, spread in found.items():
        assert spread.steps.tolist() == list(range(20, 401, 20))
        values = np.array([[gradient(int(t), p, factor) for p in places] for t in spread.steps])
        np.testing.assert_allclose(spread.median, np.median(values, 1))
        np.testing.assert_allclose(spread.low, values.min(1))
        np.testing.assert_allclose(spread.high, values.max(1))
    assert dynamics.drift().high[-1] == pytest.approx(1e-7 * (1 + 400 * len(LAYERS)))


def test_events_and_alarms(dynamics):
    events = dynamics.events()
    assert events["redecompose"].tolist() == [200, 400]
    assert events["resample"].tolist() == list(range(40, 401, 40))
    assert events[SADDLE].tolist() == [140, 160]
    assert dynamics.saddles() == {LAYERS[3]: [140, 160]}


def test_ages_of_singular_vectors(dynamics):
    draws = dynamics.draws()[LAYERS[0]]
    assert draws.size == VECTORS
    assert (draws.drawn.sum(1) == RANK).all()
    ages, known = draws.ages(), [None] * VECTORS
    for row, step in enumerate(range(0, 401, 40)):
        for vector in drawn(step):
            known[vector] = row
        expected = [-1 if last is None else row - last for last in known]
        assert ages[row].tolist() == expected


def pictures(html):
    """(title, levels) of each map, from its picture."""
    for figure in html.split('<figure class="map"')[1:]:
        title = re.search(r"<h4>(.*?)</h4>", figure)[1]
        data = re.search(r'href="data:image/png;base64,([^"]*)"', figure)[1]
        yield title, np.array(Image.open(io.BytesIO(base64.b64decode(data))))


def test_a_map_of_spectra_has_the_shades_of_its_values(dynamics):
    found = dict(pictures(spectra_maps(dynamics)))
    assert list(found) == list(LAYERS)
    values = [
        [singular(t, place, i) for i in range(VECTORS) for t in range(0, 401, 50)]
        for place in range(len(LAYERS))
    ]
    low, high = np.log10(np.quantile(values, 0.05)), np.log10(np.max(values))
    for place, layer in enumerate(LAYERS):
        levels = found[layer]
        assert levels.shape[0] == VECTORS
        for row in (0, 5, VECTORS - 1):
            for column, step in ((0, 0), (-1, 400), (80, 200)):
                share = (np.log10(singular(step, place, row)) - low) / (high - low)
                assert levels[row, column] == pytest.approx(63 * max(0, share), abs=0.6)


def test_a_map_of_draws_is_darkest_where_a_vector_trains(dynamics):
    html = draw_maps(dynamics, 400.0)
    levels = dict(pictures(html))[LAYERS[0]]
    assert levels.shape[0] == VECTORS
    middle = levels[:, levels.shape[1] * 110 // 400]  # at step 110: drawn at 80, trains until 120
    assert np.flatnonzero(middle == 7).tolist() == drawn(80)
    before = set(drawn(40)) - set(drawn(80))
    assert set(np.flatnonzero(middle == 6)) == before
    never = set(range(VECTORS)) - set(drawn(0)) - set(drawn(40)) - set(drawn(80))
    assert set(np.flatnonzero(middle == 0)) == never
    counts = np.zeros(VECTORS, dtype=int)
    for step in range(0, 401, 40):
        counts[drawn(step)] += 1
    assert f"<td>{counts.mean():.2f} ({counts.min()}–{counts.max()})</td>" in html


def test_rows_that_say_nothing_are_passed_over(tmp_path):
    odd = [
        *({"step": "x", "event": "a"}, {"step": -1, "event": "b"}, {"event": "c"}, {"step": 5}),
        *({"step": 1, "unheard": {"of": 1}}, {"step": 1, "layers": 24, "event": "merge"}),
        {"step": 2, "layers": {"a": {"gradient": {"U": float("nan"), "V": "x"}, "drift": None}}},
        {"step": 3, "spectra": {"a": [1, "x"], "b": [], "c": 4, "d": [2.0, 1.0]}},
        {"step": 4, "spectra": {"d": [3.0]}},
        {"step": 4, "sampled": {"a": "zz", "b": "ff", "c": "1", "d": 3}, "of": {"a": 8, "b": 4}},
    ]
    text = "".join(json.dumps(row) + "\n" for row in odd)
    (tmp_path / "dynamics.jsonl").write_text(text + '{"step": 9, "ev')
    found = Dynamics(tmp_path)
    assert {name: steps.tolist() for name, steps in found.events().items()} == {"merge": [1]}
    assert found.by_factor("gradient") == {}
    assert found.gradients()[-1] == {"step": 2, "layers": {"a": {"gradient": {}}}}
    assert found.drift() is None
    assert {layer: s.values.tolist() for layer, s in found.spectra().items()} == {"d": [[2, 1]]}
    assert found.draws() == {}


def test_without_the_file_there_is_nothing(tmp_path):
    found = Dynamics(tmp_path)
    assert not found.rows
    assert spectra_maps(found) == draw_maps(found, 0.0) == ""


def test_rows_are_in_the_form_that_training_writes():
    """The contract, in words: what the fixture has and no more is relied on."""
    kinds = {frozenset(row) - {"step"} for row in rows()}
    assert kinds == {
        *map(frozenset, ({"layers"}, {"spectra", "of"}, {"event", "layers"}, {"sampled", "of"}))
    }


def test_many_vectors_and_draws_stay_small(tmp_path):
    draw = np.random.default_rng(0)
    write_run(tmp_path, "sst", 1e-3, 1e-3, 0, final=3.0)
    with (tmp_path / "dynamics.jsonl").open("w") as file:
        for step in range(0, 100_000, 250):
            masks = {}
            for layer in range(8):
                bits = draw.permutation(2048)[:128].tolist()
                masks[f"l{layer}"] = f"{sum(1 << bit for bit in bits):x}"
            row = {"step": step, "sampled": masks, "of": dict.fromkeys(masks, 2048)}
            file.write(json.dumps(row) + "\n")
    html = draw_maps(Dynamics(tmp_path), 1e5)
    assert len(html) < 500_000
    assert len(list(pictures(html))) == 8
