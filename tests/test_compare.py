"""Comparisons, driven by a stand-in for training with known losses."""

import csv
import json
import math

import pytest
from fake_trials import RATES, FakeTraining, arm, plan

from spectrain.errors import RunError, UsageError
from spectrain.runs.compare import Trial, load_comparison, run_comparison
from spectrain.runs.summary import summarise


def compare(tmp_path, a_plan, training, options=None, say=lambda text: None):
    return run_comparison(a_plan, training, tmp_path / "cmp", options=options or {}, say=say)


def text(comparison):
    return " ".join(summarise(comparison).sentences)


def test_sweep_chooses_by_validation_loss_and_reports_other_seeds(tmp_path):
    training = FakeTraining()
    comparison = compare(tmp_path, plan(), training)
    sweep, report = training.calls[:12], training.calls[12:]
    assert {trial.seed for trial in sweep} == {0}
    assert [trial.arm for trial in sweep[:4]] == ["full", "sst", "relora", "lora"]
    assert {trial.lr for trial in sweep[:4]} == {1e-3}  # interleaved: all arms at rate 1 first
    assert len(report) == 12
    assert {(trial.lr, trial.purpose) for trial in report} == {(2e-3, "report")}
    assert {trial.seed for trial in report} == {1, 2, 3}
    assert comparison.finished
    rows = summarise(comparison).rows
    assert [row.arm.key for row in rows] == ["full", "sst", "relora", "lora"]
    expected = [training.loss(trial) + 0.02 for trial in report if trial.arm == "sst"]
    assert rows[1].costs == pytest.approx(expected)
    assert "seeds 1, 2, 3" in text(comparison)
    assert "Each method is separable from the next" in text(comparison)


def test_an_edge_extends_the_grid_of_all_arms(tmp_path):
    own = {"lora": arm("lora", rates=(1e-2, 3e-2, 9e-2))}
    training = FakeTraining(best_rate={"sst": 8e-3, "lora": 3e-2})
    comparison = compare(tmp_path, plan(max_extensions=2, **own), training)
    sweep = [trial for trial in training.calls if trial.purpose == "sweep"]
    rates = {key: [t.lr for t in sweep if t.arm == key] for key in ("full", "sst", "lora")}
    assert rates == {
        "full": [*RATES, 8e-3, 1.6e-2],  # the second shows that 8e-3 is no edge any more
        "sst": [*RATES, 8e-3, 1.6e-2],
        "lora": [1e-2, 3e-2, 9e-2, 0.27, 0.81],
    }
    assert comparison.progress.best["sst"].lr == 8e-3
    assert "tried" not in text(comparison)


def test_a_lasting_edge_is_said(tmp_path):
    training = FakeTraining(best_rate={"lora": 1e-5})
    comparison = compare(tmp_path, plan(max_extensions=1), training)
    assert comparison.progress.best["lora"].lr == 5e-4
    assert (
        "The best learning rate of LoRA, 5e-4, is the lowest tried, even after 1 extension of the "
        "grid: a lower one may be better." in text(comparison)
    )


def test_ordinary_rates_are_swept_alike(tmp_path):
    training = FakeTraining()
    a_plan = plan(("full", "sst"), ordinary_rates=(2.5e-3, 5e-3), report_seeds=(1,))
    comparison = compare(tmp_path, a_plan, training)
    sweep = [trial for trial in training.calls if trial.purpose == "sweep"]
    assert len(sweep) == 2 * 3 * 3  # the best, 5e-3, is an edge: one more for all
    assert sweep[0].slug == "full-lr1e-03-ord2.5e-03-seed0"
    assert comparison.progress.best["sst"].lr_ordinary == 1e-2
    assert "The best ordinary learning rate of SST, 1e-2, is the highest tried" in text(comparison)
    assert summarise(comparison).cells[0][1] == "2e-3 (1e-2)"


def test_slug():
    assert Trial("sst", 4e-3, None, 0, "sweep").slug == "sst-lr4e-03-seed0"


def test_restart_keeps_finished_trials(tmp_path):
    first = FakeTraining(stop_after=14)
    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path, plan(), first)
    said = []
    second = FakeTraining()
    comparison = compare(tmp_path, plan(), second, say=said.append)
    assert first.calls + second.calls == list(comparison.progress.trials)
    assert said[0].startswith("14 finished trials")
    third = FakeTraining()
    again = compare(tmp_path, plan(), third)
    assert third.calls == []
    assert summarise(again) == summarise(comparison)


def test_only_a_trial_that_lacks_its_result_is_run_again(tmp_path):
    comparison = compare(tmp_path, plan(), FakeTraining())
    lost, other = comparison.progress.trials[1], comparison.progress.trials[17]
    (comparison.trial_directory(lost) / "result.json").unlink()
    path = comparison.trial_directory(other) / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seed": 99}))  # not this trial's
    training = FakeTraining()
    compare(tmp_path, plan(), training)
    assert training.calls == [lost, other]


def test_changed_options_are_refused_by_name(tmp_path):
    compare(tmp_path, plan(), FakeTraining(), options={"steps": 400, "data": "a"})
    with pytest.raises(UsageError, match=r"steps = 400, but now steps = 600"):
        compare(tmp_path, plan(), FakeTraining(), options={"steps": 600, "data": "a"})
    with pytest.raises(UsageError, match=r"data = \"a\", but now data = null"):
        compare(tmp_path, plan(), FakeTraining(), options={"steps": 400})
    a_plan = plan(report_seeds=(1, 2))
    with pytest.raises(UsageError, match=r"report_seeds = \[1, 2, 3\]"):
        compare(tmp_path, a_plan, FakeTraining(), options={"steps": 400, "data": "a"})


def test_a_directory_with_something_else_is_refused(tmp_path):
    (tmp_path / "cmp").mkdir()
    (tmp_path / "cmp" / "config.json").write_text('{"format": 1, "task": "lm"}')
    with pytest.raises(UsageError, match="something other than a comparison"):
        compare(tmp_path, plan(), FakeTraining())
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file is no folder"):
        run_comparison(plan(), FakeTraining(), tmp_path / "file", options={}, say=print)


def test_diverged_trials_are_infinitely_bad_and_named(tmp_path):
    training = FakeTraining(
        best_rate={"sst": 4e-3},
        diverges=lambda t: t.arm == "sst" and (t.lr == 4e-3 or t.seed == 2),
    )
    said = []
    comparison = compare(tmp_path, plan(), training, say=said.append)
    assert comparison.progress.best["sst"].lr == 2e-3
    assert "Diverged: SST, learning rate 4e-3, seed 0 (NaN loss at step 12)." in text(comparison)
    assert (
        "Diverged: SST, learning rate 2e-3, seed 2 (NaN loss at step 12) and is missing from the "
        "results above." in text(comparison)
    )
    assert len(next(r for r in summarise(comparison).rows if r.arm.key == "sst").costs) == 2
    assert "  diverged: NaN loss at step 12" in said


def test_a_method_that_diverges_everywhere_ranks_last(tmp_path):
    training = FakeTraining(diverges=lambda trial: trial.arm == "sst")
    comparison = compare(tmp_path, plan(), training)
    summary = summarise(comparison)
    assert summary.rows[-1].arm.key == "sst"
    assert len([t for t in training.calls if t.arm == "sst"]) == 4  # one lower rate was tried
    assert "SST diverged at every rate tried, even after 1 extension" in text(comparison)
    assert summary.cells[-1][1:4] == ("–", "–", "–")


def test_one_seed_has_no_noise_floor(tmp_path):
    training = FakeTraining()
    comparison = compare(tmp_path, plan(report_seeds=()), training)
    assert len(training.calls) == 12
    assert "One seed: no noise floor" in text(comparison)
    assert "those same trials" in text(comparison)
    assert all(row.share is None for row in summarise(comparison).rows)
    assert summarise(comparison).rows[1].costs == pytest.approx([3.1 + 0.004 + 0.02])


def test_not_separable(tmp_path):
    training = FakeTraining(floor={"relora": 3.11})
    comparison = compare(tmp_path, plan(), training)
    differ = "they differ by 0.0"
    assert f"SST and ReLoRA* are not separable: {differ}" in text(comparison)
    assert "the noise floor for 3 seeds is 0.0" in text(comparison)


def test_share_of_the_gap(tmp_path):
    summary = summarise(compare(tmp_path, plan(), FakeTraining()))
    full, sst, relora, lora = summary.rows
    assert full.share is None
    assert sst.share == pytest.approx(0.75, abs=0.03)  # (3.4 − 3.1) / (3.4 − 3.0)
    assert relora.share == pytest.approx(-3, abs=0.3)  # (3.1 − 3.4) / (3.1 − 3.0)
    assert lora.share < relora.share
    assert summary.cells[1][4] == f"{100 * sst.share:.0f} %"


def test_no_share_where_full_rank_is_not_better(tmp_path):
    comparison = compare(tmp_path, plan(), FakeTraining(floor={"full": 3.5}))
    assert all(row.share is None for row in summarise(comparison).rows)
    assert "full rank does not beat the best low-rank method" in text(comparison)


def test_footnotes_name_variations(tmp_path):
    own = {"sst": arm("sst", variations=("samples the top vectors", "no warm-up"))}
    summary = summarise(compare(tmp_path, plan(**own), FakeTraining()))
    assert summary.cells[1][0] == "SST [1,2]"
    assert summary.footnotes == ("SST: samples the top vectors", "SST: no warm-up")


def test_results_table(tmp_path):
    training = FakeTraining(diverges=lambda t: t.arm == "lora" and t.lr == 4e-3)
    comparison = compare(tmp_path, plan(), training)
    with (comparison.directory / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    first = rows[0]
    assert (first["arm"], first["purpose"], first["lr"], first["seed"]) == (
        *("full", "sweep", "0.001"),
        "0",
    )
    assert float(first["test_perplexity"]) == pytest.approx(math.exp(float(first["test_loss"])))
    assert int(first["optimizer_bytes"]) == 60 * 2**20
    failed = [row for row in rows if row["failed"]]
    assert [(row["arm"], row["validation_loss"]) for row in failed] == [("lora", "")]


def test_partial_table_is_written_after_every_trial(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path, plan(), FakeTraining(stop_after=3))
    lines = (tmp_path / "cmp" / "results.csv").read_text().splitlines()
    assert len(lines) == 1 + 3
    partial = load_comparison(tmp_path / "cmp")
    assert not partial.finished
    assert "Not finished: 3 of the 12 trials" in text(partial)


def test_results_on_different_corpora_are_not_compared(tmp_path):
    training = FakeTraining(fingerprint=lambda t: "new" if t.arm == "lora" else "old")
    with pytest.raises(RunError, match="full-lr1e-03-seed0 and lora-lr1e-03-seed0 saw different"):
        compare(tmp_path, plan(), training)


def test_a_damaged_result_is_named(tmp_path):
    comparison = compare(tmp_path, plan(), FakeTraining())
    path = comparison.trial_directory(comparison.progress.trials[0]) / "result.json"
    path.write_text('{"steps": 4')
    with pytest.raises(RunError, match=r"result\.json is damaged"):
        load_comparison(comparison.directory)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keys": ("sst", "sst")}, "distinct methods"),
        ({"keys": ()}, "distinct methods"),
        ({"sst": arm("sst", rates=(1e-3,))}, "equally many learning rates"),
        ({"report_seeds": (0, 1)}, "seed 0 chooses the learning rates"),
        ({"report_seeds": (1, 1)}, "must be distinct"),
        ({"sst": arm("sst", rates=(1e-3, 1e-3, 2e-3))}, "learning rates of SST"),
        ({"sst": arm("sst", rates=(-1e-3, 1e-3, 2e-3))}, "learning rates of SST"),
        ({"ordinary_rates": (None, 1e-3)}, "either swept"),
    ],
)
def test_impossible_plans(arguments, message):
    with pytest.raises(UsageError, match=message):
        plan(**arguments)
