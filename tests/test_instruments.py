"""What is watched in training, beside the same numbers worked out by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch
from cases import every_default
from tiny import Recorder, make_task, run, stopped_at
from torch import nn

import spectrain
from spectrain import SST, FullRank, GaLore, LoRA, ReLoRA
from spectrain.cli.options import built
from spectrain.diagnostics.dynamics import SaddleAlarm, ages, gradient_correlation, gradient_norms
from spectrain.errors import UsageError
from spectrain.linalg import orthogonality_error
from spectrain.runs.files import read_rows
from spectrain.runs.instruments import VALUES, Instruments
from spectrain.runs.options import RunOptions
from spectrain.surgery import parametrized

NAME = "model.layers.0.self_attn.q_proj"


def seen(directory, kind):
    """The rows of dynamics.jsonl that have the field `kind`."""
    rows = read_rows(directory / "dynamics.jsonl")
    return [row for row in rows if kind in row and (kind != "layers" or "event" not in row)]


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(12, 20), nn.Linear(20, 6)

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(x)))


def steps(method, count, lr=0.05, optimizer=torch.optim.SGD, change=None, **options):
    """So many steps of a small model under instruments with a look in each but the first.

    Returns its rows, what was alarmed, and by step the factors before and after, and their gradients.
    """
    torch.manual_seed(0)
    model = spectrain.apply(Small(), method, report=None)
    chosen = optimizer(spectrain.param_groups(model, lr=lr))
    spectrain.attach(model, chosen)
    rows, alerts, history = [], [], {}
    settings = RunOptions(**{"steps": count, "look_every": 1, **options})
    instruments = Instruments(
        model, settings, 0, lambda **row: rows.append(row), [], alerts.append, True
    )
    for step in range(count):
        if change:
            change(model, step)
        model(torch.randn(8, 12)).square().mean().backward()
        layers = dict(parametrized(model))
        found = {(n, f): p for n, m in layers.items() for f, p in m.factors().items()}
        before = {key: (p.detach().clone(), p.grad.clone()) for key, p in found.items()}
        instruments.before_update(step)
        chosen.step()
        instruments.after_update(step + 1)
        history[step + 1] = {key: (*before[key], p.detach().clone()) for key, p in found.items()}
        chosen.zero_grad()
    return rows, alerts, history, model


# --- looks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [FullRank(), LoRA(2), SST(3)], ids=lambda m: m.title)
def test_a_look_tells_norms_and_changes(method):
    rows, _, history, _ = steps(method, 4)
    looks = [row for row in rows if isinstance(row.get("layers"), dict)]
    assert [row["step"] for row in looks] == [2, 3, 4]
    for row in looks:
        for (name, factor), (old, gradient, new) in history[row["step"]].items():
            values = row["layers"][name]
            close = {"rel": 1e-3, "abs": 1e-12}
            assert values["gradient"][factor] == pytest.approx(float(gradient.norm()), **close)
            assert values["norm"][factor] == pytest.approx(float(old.norm()), **close)
            change = float((new - old).norm() / old.norm())
            assert values["update"].get(factor, 0.0) == pytest.approx(change, **close)
            assert ("drift" in values) == isinstance(method, SST)


def test_what_is_folded_into_a_matrix_counts_as_its_change():
    weights = []

    def change(model, step):
        weights.append(model.inner.dense().detach().clone())

    rows, _, _, model = steps(GaLore(2), 3, change=change)
    looks = [row for row in rows if isinstance(row.get("layers"), dict)]
    weights.append(model.inner.dense().detach())
    for row in looks:
        old, new = weights[row["step"] - 1], weights[row["step"]]
        update = row["layers"]["inner"]["update"]
        assert update == {"base": pytest.approx(float((new - old).norm() / old.norm()), rel=1e-3)}


def test_drift_is_found_where_it_was_planted():
    def change(model, step):
        if step == 2:
            with torch.no_grad():  # two vectors with a cosine of 0.3
                u = model.inner.U_active
                u[1] = 0.3 * u[0] + math.sqrt(1 - 0.09) * u[1]

    rows, *_ = steps(SST(3), 3, lr=0.0, change=change)
    looks = {
        row["step"]: row["layers"]["inner"] for row in rows if isinstance(row.get("layers"), dict)
    }
    assert looks[2]["drift"] < 1e-6
    assert looks[3]["drift"] == pytest.approx(0.3, abs=1e-3)


def test_orthogonality_error_is_the_largest_entry_of_the_gram_matrix():
    rows = torch.randn(7, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = (rows @ rows.mT - torch.eye(7, dtype=torch.float64)).abs()
    assert orthogonality_error(rows) == pytest.approx(float(whole.max()))
    assert orthogonality_error(rows[:3], rows[3:]) == pytest.approx(float(whole[:, :3].max()))


# --- saddle points -----------------------------------------------------------------------------


def test_the_alarm_rings_where_nothing_moves_on_from_b_equal_zero():
    _, alerts, *_ = steps(ReLoRA(2, merge_every=50), 8, lr=0.0)
    assert len(alerts) == 1
    assert "saddle point: at step 4 the factors of 2 of 2 layers" in alerts[0]
    rows, alerts, *_ = steps(ReLoRA(2, merge_every=3, rewarm=0), 12, optimizer=torch.optim.Adam)
    assert not alerts
    at_start = [
        row["layers"]["inner"] for row in rows if row["step"] == 4 and row.get("event") is None
    ]
    assert at_start[0]["gradient"]["A"] == 0.0  # as it must be right after a merge


def test_the_alarm_waits_for_three_looks_and_forgets():
    alarm = SaddleAlarm()
    strong = {"a": {"gradient": {"A": 1.0, "B": 2.0}, "norm": {"A": 1.0, "B": 0.5}}}
    weak = {"a": {"gradient": {"A": 0.0, "B": 2.0}, "norm": {"A": 1.0, "B": 0.0}}}
    one = {"b": {"gradient": {"weight": 0.0}, "norm": {"weight": 1.0}}}
    heard = [
        alarm.hear({**values, **one}) for values in (strong, weak, weak, strong, weak, weak, weak)
    ]
    assert heard == [[], [], [], [], [], [], ["a"]]


@pytest.mark.parametrize(
    "end",
    [
        {"gradient": {"A": 1e-6, "B": 1e-6}, "norm": {"A": 1.0, "B": 0.5}},  # converged
        {"gradient": {"A": 0.0, "B": 0.0}, "norm": {"A": 1.0, "B": 0.0}},  # the layer is not used
        {"gradient": {"A": 1.0, "B": 2.0}, "norm": {"A": 1e-6, "B": 0.5}},  # A is small and moves B
    ],
    ids=["converged", "unused", "small"],
)
def test_the_alarm_is_silent_elsewhere(end):
    alarm = SaddleAlarm()
    begin = {"gradient": {"A": 1.0, "B": 2.0}, "norm": {"A": 1.0, "B": 0.5}}
    assert not any(alarm.hear({"a": values}) for values in (begin, *[end] * 5))


# --- events, samples, spectra ------------------------------------------------------------------


def test_of_a_whole_matrix_a_look_copies_few_rows():
    torch.manual_seed(0)
    model = spectrain.apply(nn.Sequential(nn.Linear(8, 1000)), FullRank(), report=None)
    instruments = Instruments(
        model, RunOptions(steps=9, look_every=1), 0, lambda **row: None, [], print, True
    )
    model(torch.randn(4, 8)).square().mean().backward()
    instruments.before_update(1)
    assert sum(copy.numel() for copy in instruments._before.were) == 67 * 8  # every 15th of 1000
    assert all(part._base is not None for part in instruments._before.parts)


def test_samples_are_the_triples_that_train():
    places = {}

    def change(model, step):
        order = model.inner.s.detach().sort(descending=True).values
        places[step] = {int((order == s).nonzero()) for s in model.inner.s_active.detach()}

    rows, *_ = steps(SST(3, resample_every=2, iterations_per_round=2), 7, lr=0.0, change=change)
    drawn = {row["step"]: row["sampled"]["inner"] for row in rows if "sampled" in row}
    assert list(drawn) == [0, 2, 4, 6]
    for step, mask in drawn.items():
        assert {i for i in range(12) if int(mask, 16) >> i & 1} == places[step]
    events = [(row["step"], row["event"], row["layers"]) for row in rows if "event" in row]
    assert events == [
        *((2, "resampling", 2), (4, "re-SVD", 2), (4, "resampling", 2), (6, "resampling", 2)),
    ]


def test_the_residual_form_tells_its_samples_from_all_triples():
    rows, *_ = steps(SST(3, resample_every=2, residual=True), 3)
    assert [row["of"]["inner"] for row in rows if "sampled" in row] == [12, 12]
    assert all(
        int(row["sampled"]["inner"], 16).bit_count() == 3 for row in rows if "sampled" in row
    )


def test_ages_count_from_the_latest_draw():
    rows = [
        {"step": 0, "sampled": {"a": "3"}, "of": {"a": 4}},
        {"step": 10, "sampled": {"a": "6"}, "of": {"a": 4}},
        {"step": 99, "sampled": {"a": "f"}, "of": {"a": 4}},
    ]
    assert ages(rows, 25) == {"a": [25, 15, 15, None]}


def test_spectra_come_sixteen_times_and_hold_the_ends(tmp_path):
    run(tmp_path, LoRA(2), steps=100, eval_every=0)
    found = seen(tmp_path, "spectra")
    assert [row["step"] for row in found] == [0, 50, 100]
    assert len(found[0]["spectra"]) == 7  # all there are
    torch.manual_seed(0)
    model = make_task().build_model()
    values = torch.linalg.svdvals(model.get_submodule(NAME).weight.detach().double())
    assert len(found[0]["spectra"][NAME]) == min(VALUES, len(values))
    picked = found[0]["spectra"][NAME]
    assert (picked[0], picked[-1]) == pytest.approx((float(values[0]), float(values[-1])), rel=1e-3)


# --- runs --------------------------------------------------------------------------------------


@every_default
def test_every_method_is_watched(tmp_path, method):
    run(tmp_path, method, steps=12)
    looks = seen(tmp_path, "layers")
    assert [row["step"] for row in looks] == [3, 5, 7, 9, 11]
    trained = {
        factor
        for row in looks
        for values in row["layers"].values()
        for factor in values["gradient"]
    }
    assert trained
    # Those of a step are the ones that its loss has, not those of another batch or pass.
    assert all(len(row["layers"]) == len(looks[0]["layers"]) for row in looks)


def test_looks_leave_training_as_it_is(tmp_path):
    for name, period in (("watched", 1), ("blind", 0)):
        run(tmp_path / name, SST(4, resample_every=3), look_every=period, steps=8, clip=0.5)
    contents = [(tmp_path / n / "metrics.jsonl").read_text() for n in ("watched", "blind")]
    assert contents[0] == contents[1]
    assert not (tmp_path / "blind" / "dynamics.jsonl").exists()


def test_without_whole_gradients_there_are_events_alone(tmp_path):
    run(tmp_path, ReLoRA(2, merge_every=4), layerwise=True)
    assert not seen(tmp_path, "layers")
    assert [row["step"] for row in seen(tmp_path, "event")] == [4, 4, 8, 8, 12, 12]


def test_the_saddle_is_said_once_and_not_again_after_a_stop(tmp_path):
    view = Recorder()
    run(tmp_path, LoRA(2), view=view, lr=0.0, lr_ordinary=0.01, steps=16)
    assert sum("saddle point" in sentence for sentence in view.alerts) == 1
    assert any(
        "saddle" in values for row in seen(tmp_path, "layers") for values in row["layers"].values()
    )


def test_gradient_norms_follow_those_of_a_full_rank_twin(tmp_path):
    run(tmp_path / "full", FullRank(), steps=24, look_every=2)
    run(tmp_path / "sst", SST(8), steps=24, look_every=2)
    full, own = (read_rows(tmp_path / name / "dynamics.jsonl") for name in ("full", "sst"))
    assert gradient_correlation(full, full) == pytest.approx(1.0)
    by_hand = []
    for layer, norms in gradient_norms(own, "U_active").items():
        other = gradient_norms(full)[layer]
        a, b = (
            torch.tensor([of[s] for s in sorted(norms)], dtype=torch.float64)
            for of in (norms, other)
        )
        a, b = a - a.mean(), b - b.mean()
        by_hand.append(float((a @ b) / (a.norm() * b.norm())))
    expected = sum(by_hand) / len(by_hand)
    assert gradient_correlation(own, full, "U_active") == pytest.approx(expected)
    assert math.isnan(gradient_correlation([], full))


# --- TensorBoard -------------------------------------------------------------------------------


def test_tensorboard_has_the_rows(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, LoRA(2), tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"loss", "lr", "validation_loss", "test_loss", "gradient/A", "gradient/B"} <= tags
    rows = [row for row in read_rows(tmp_path / "metrics.jsonl") if "loss" in row]
    assert [event.step for event in events.Scalars("loss")] == [row["step"] for row in rows]
    values = [event.value for event in events.Scalars("loss")]
    assert values == pytest.approx([row["loss"] for row in rows], rel=1e-6)


def test_what_is_watched_may_differ_when_a_run_goes_on(tmp_path):
    stopped_at(tmp_path, LoRA(2), 5)
    finished = run(tmp_path, LoRA(2), steps=12, look_every=3)
    assert finished["steps"] == 12
    assert [row["step"] for row in seen(tmp_path, "layers")][-1] > 6


def test_checkpoints_from_before_the_instruments_go_on(tmp_path):
    stopped_at(tmp_path, LoRA(2), 5, look_every=0)
    (newest,) = (tmp_path / "checkpoints").iterdir()
    manifest = json.loads((newest / "manifest.json").read_text())
    del manifest["files"]["dynamics.jsonl"]
    (newest / "manifest.json").write_text(json.dumps(manifest))
    (newest / "dynamics.jsonl").unlink()
    view = Recorder()
    run(tmp_path, LoRA(2), steps=12, view=view)
    assert not any("passed over" in sentence for sentence in view.said)


def test_without_tensorboard_the_flag_is_refused(monkeypatch):
    monkeypatch.setattr("spectrain.runs.options.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'spectrain\[tensorboard\]' brings it"):
        built(RunOptions, {"tensorboard": True})
