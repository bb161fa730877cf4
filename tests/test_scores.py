"""Comparisons and runs that are judged by something other than the loss."""

from __future__ import annotations

import csv
import json
import shutil
import warnings
from dataclasses import asdict

import pytest
from fake_trials import RATES, FakeTraining, plan
from matplotlib.figure import Figure
from rich.console import Console
from test_report import read

from spectrain.errors import RunError, SpectrainError, UsageError
from spectrain.runs.canvas import style_of
from spectrain.runs.compare import Arm, Plan, load_comparison, run_comparison
from spectrain.runs.curves import mean_scores, read_scores
from spectrain.runs.files import write_json
from spectrain.runs.plots import plot_comparison
from spectrain.runs.records import read_config, read_result
from spectrain.runs.report import write_report
from spectrain.runs.rows import rivals
from spectrain.runs.run_plots import plot_run
from spectrain.runs.scores import LANGUAGE, cost_of, scores_from_json, scores_to_json
from spectrain.runs.summary import summarise
from spectrain.runs.terminal import render
from spectrain.tasks.score import LOSS, PERPLEXITY, Score

F1 = Score("f1", "F1", "points", True, 100.0, 1)
ACCURACY = Score("accuracy", "accuracy", "points", True, 100.0, 1)
SCORES = (F1, ACCURACY)
# By rank: SST beats LoRA, and LoRA of rank 2 beats SST of rank 1.
FLOOR = {"full": 3.0, "sst-r1": 3.4, "lora-r1": 3.6, "sst-r2": 3.1, "lora-r2": 3.3}


def arms(floor=FLOOR):
    return tuple(
        Arm(
            key,
            key.upper().replace("-R", " r="),
            (),
            "here",
            "there",
            RATES,
            group="" if key == "full" else key[-2:],
            method=key.split("-")[0],
        )
        for key in floor
    )


def judged(chosen=None, scores=SCORES, seeds=(1, 2, 3), extensions=1):
    return Plan(chosen or arms(), (None,), 0, seeds, extensions, scores)


def picture(path, colour="0.5"):
    figure = Figure(figsize=(1, 1))
    figure.add_axes((0, 0, 1, 1), facecolor=colour)
    figure.savefig(path, format="png")


class Graphs:
    """Turns `FakeTraining`'s losses into F1, the better the lower the loss, and keeps no losses."""

    def __init__(self, floor=FLOOR, embedding=True, scores=SCORES, **options):
        self.inner = FakeTraining(dict.fromkeys(floor, 2e-3), floor, **options)
        self.embedding, self.scores = embedding, scores

    def f1(self, trial):
        return round(1.25 - 0.1 * self.inner.loss(trial), 6)

    def __call__(self, trial, directory):
        result = dict(self.inner(trial, directory))
        f1 = None if result["failed"] else self.f1(trial)
        for split, less in (("validation", 0.0), ("test", 0.01)):
            del result[f"{split}_loss"]
            result[f"{split}_f1"] = None if f1 is None else f1 - less
            result[f"{split}_accuracy"] = None if f1 is None else f1 + 0.02 - less
        del result["tokens"]
        last = 400 - 100 * (trial.seed == 2)  # this seed stops early
        result |= {"epochs": last, "steps": last, "best_step": 200, "stopped_early": last < 400}
        write_json(directory / "result.json", result)
        rows = []
        for line in (directory / "metrics.jsonl").read_text().splitlines():
            row = json.loads(line)
            if "validation_loss" in row:
                value = 1.25 - 0.1 * row.pop("validation_loss")
                row |= {"validation_f1": value, "validation_accuracy": value + 0.02}
            if row["step"] <= last:
                rows.append(json.dumps(row) + "\n")
        (directory / "metrics.jsonl").write_text("".join(rows))
        config = json.loads((directory / "config.json").read_text())
        config["scores"] = scores_to_json(self.scores)
        write_json(directory / "config.json", config)
        if self.embedding:
            picture(directory / "embedding.png")
        return result


def compare(folder, a_plan, training):
    said = []
    done = run_comparison(a_plan, training, folder, options={"task": "nodes"}, say=said.append)
    return done, said


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return compare(tmp_path_factory.mktemp("scores") / "cmp", judged(), Graphs())


def text(comparison):
    return " ".join(summarise(comparison).sentences)


def test_the_highest_score_chooses_the_rate(finished):
    comparison, said = finished
    assert {trial.lr for trial in comparison.progress.best.values()} == {2e-3}
    assert comparison.progress.edges == ()
    assert "  validation F1 94.9 (accuracy 96.9)" in said


def test_a_score_at_an_edge_extends_the_grid(tmp_path):
    training = Graphs()
    training.inner.best_rate = dict.fromkeys(FLOOR, 8e-3)
    comparison, _ = compare(tmp_path / "cmp", judged(seeds=()), training)
    assert comparison.progress.best["full"].lr == 8e-3
    assert comparison.progress.extensions == 1


def test_table_of_scores(finished):
    summary = summarise(finished[0])
    assert list(summary.columns)[:5] == [
        *("method", "learning rate", "test F1", "test accuracy", "gap closed"),
    ]
    assert summary.columns["learning rate"].endswith("chosen by validation F1")
    assert summary.columns["test F1"] == (
        "points on test data, higher is better: mean ± standard deviation"
    )
    assert summary.columns["gap closed"].startswith(
        "share of the difference in F1 between the best other low-rank method at the same rank"
    )
    assert [row.arm.key for row in summary.rows] == sorted(FLOOR, key=FLOOR.__getitem__)
    assert summary.cells[0][:4] == ("FULL", "2e-3", "94.0 ± 0.1", "96.0 ± 0.1")
    costs = summary.rows[0].costs
    assert summary.rows[0].values[F1] == pytest.approx([-cost for cost in costs])
    assert 93.8 < -costs[0] < 94.2


def test_sentences_speak_of_the_score(finished):
    said = text(finished[0])
    assert "Rates were chosen by validation F1 with seed 0" in said
    assert "Noise floor: 0.1 points." in said
    assert "it moves a method's F1 by a standard deviation of 0.1 points (8 degrees" in said
    assert "if their mean F1 scores differ by more" in said
    for word in ("loss", "nats", "perplexity", "embeddings, head"):
        assert word not in said


def test_methods_that_are_not_separable_by_the_score(tmp_path):
    floor = FLOOR | {"sst-r1": 3.305}
    comparison, _ = compare(tmp_path / "cmp", judged(arms(floor)), Graphs(floor))
    assert (  # with as many digits as it takes to see the difference
        "are not separable: they differ by 0.01 points, the noise floor for 3 seeds is 0.1."
        in text(comparison)
    )


def test_gaps_are_measured_within_a_group(finished):
    share = {row.arm.key: row.share for row in summarise(finished[0]).rows}
    assert share["full"] is None
    assert share["sst-r1"] == pytest.approx((3.6 - 3.4) / (3.6 - 3.0), abs=0.03)
    assert share["lora-r1"] == pytest.approx((3.4 - 3.6) / (3.4 - 3.0), abs=0.05)
    assert share["sst-r2"] == pytest.approx((3.3 - 3.1) / (3.3 - 3.0), abs=0.05)
    assert share["lora-r2"] == pytest.approx((3.1 - 3.3) / (3.1 - 3.0), abs=0.3)


def test_rivals_are_other_methods_of_the_group():
    chosen = arms()
    other = Arm("sst-r1-b", "SST b", (), "", "", RATES, group="r1", method="sst")
    assert [arm.key for arm in rivals(chosen[1], (*chosen, other))] == ["lora-r1"]
    plain = [Arm(key, key, (), "", "", RATES) for key in ("full", "sst", "lora")]
    assert [arm.key for arm in rivals(plain[1], plain)] == ["lora"]


def test_no_share_where_no_group_has_a_gap(tmp_path):
    floor = FLOOR | {"full": 3.9}
    comparison, _ = compare(tmp_path / "cmp", judged(arms(floor)), Graphs(floor))
    assert "does not beat the best low-rank method of any rank" in text(comparison)
    alone = {key: FLOOR[key] for key in ("full", "sst-r1", "lora-r2")}  # without any rival
    comparison, _ = compare(tmp_path / "alone", judged(arms(alone)), Graphs(alone))
    assert "No share of the gap" not in text(comparison)


def test_results_csv(finished):
    with (finished[0].directory / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[6:12] == [
        *("validation_f1", "validation_accuracy", "validation_loss"),
        *("test_f1", "test_accuracy", "test_loss"),
    ]
    assert float(rows[0]["validation_f1"]) - 0.01 == pytest.approx(float(rows[0]["test_f1"]))
    assert rows[0]["test_loss"] == rows[0]["failed"] == ""


def test_a_score_that_is_missing_is_a_divergence(tmp_path):
    def forgetful(trial, directory):
        result = Graphs()(trial, directory)
        if trial.arm == "sst-r1":
            result["validation_f1"] = result["test_f1"] = float("nan")
            write_json(directory / "result.json", result)
        return result

    comparison, said = compare(tmp_path / "cmp", judged(), forgetful)
    assert "  diverged: its F1 is no finite number" in said
    assert summarise(comparison).cells[-1][1:4] == ("–", "–", "–")


def test_a_failed_trial_has_no_cost():
    assert cost_of({"test_f1": 0.9}, "test", F1) == -90
    assert cost_of({"test_f1": 0.9, "failed": "NaN"}, "test", F1) == float("inf")
    for value in (None, "0.9", True, float("inf"), 10**400):
        assert cost_of({"test_f1": value}, "test", F1) == float("inf")


def test_report_of_a_comparison(finished):
    comparison, _ = finished
    page = write_report(comparison.directory)
    words = read(page)
    summary = summarise(comparison)
    for sentence in (*summary.sentences, *summary.columns, *sum(summary.cells, ())):
        assert sentence in words
    assert {path.name for path in plot_comparison(comparison)} == {
        *("loss_by_step.png", "loss_by_time.png", "score_by_step.png", "score_by_memory.png"),
        "spectra.png",
    }
    assert "Test F1 (mean, and standard deviation over seeds)" in words
    assert "Higher and further left is better." in words
    assert "Embeddings" in words
    for arm in comparison.plan.arms:
        assert f"{arm.title}, learning rate 2e-3, seed 1: where it puts the nodes." in words
    assert page.read_text().count("<img ") == len(FLOOR)
    for word in ("perplexity", "nats"):
        assert word not in words


def test_the_terminal_says_the_same(finished):
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(finished[0]))
    printed = console.export_text()
    assert "94.0 ± 0.1" in printed
    assert "perplexity" not in printed


def test_a_comparison_without_embeddings_has_no_section_of_them(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path / "cmp", judged(), Graphs(embedding=False, stop_after=6))
    words = read(write_report(tmp_path / "cmp"))
    assert "Embeddings" not in words
    assert "Not finished: 6 of" in words
    assert "Validation F1 by step" in words


def test_report_of_a_run(finished, tmp_path):
    source = finished[0].trial_directory(finished[0].progress.trials[-3])  # of seed 3
    shutil.copytree(source, tmp_path / "run")
    words = read(write_report(tmp_path / "run"))
    result = read_result(tmp_path / "run")
    for split in ("validation", "test"):
        assert f"{split} F1{100 * result[f'{split}_f1']:.2f}" in words
        assert f"{split} accuracy{100 * result[f'{split}_accuracy']:.2f}" in words
    assert "best step200" in words
    assert "stopped earlyno" in words
    assert "epochs400" in words
    assert "The nodes as the network places them" in words
    for word in ("perplexity", "tokens", "nats"):
        assert word not in words
    drawn = {path.name for path in plot_run(tmp_path / "run")}
    assert drawn == {"loss.png", "score.png", "spectra.png"}
    (tmp_path / "run" / "result.json").unlink()
    words = read(write_report(tmp_path / "run"))
    assert "last validation F1" in words
    assert "last loss" in words


def test_a_run_with_losses_beside_its_scores_shows_them(finished, tmp_path):
    shutil.copytree(finished[0].trial_directory(finished[0].progress.trials[0]), tmp_path / "run")
    result = read_result(tmp_path / "run") | {"validation_loss": 0.51234}
    write_json(tmp_path / "run" / "result.json", result)
    assert "validation loss0.5123" in read(write_report(tmp_path / "run"))


def test_an_embedding_that_is_no_picture_is_named(finished, tmp_path):
    shutil.copytree(finished[0].trial_directory(finished[0].progress.trials[0]), tmp_path / "run")
    (tmp_path / "run" / "embedding.png").write_text("<svg onload=x>")
    with pytest.raises(RunError, match=r"embedding\.png is damaged \(it is no PNG file\)"):
        write_report(tmp_path / "run")


def test_score_curves_are_averaged_where_all_seeds_have_values(finished):
    comparison = finished[0]
    trials = [t for t in comparison.progress.trials if t.arm == "full" and t.purpose == "report"]
    curves = [read_scores(comparison.trial_directory(trial), F1) for trial in trials]
    assert [curve.steps[-1] for curve in curves] == [400, 300, 400]
    mean = mean_scores(curves)
    assert mean.steps.tolist() == [100, 200, 300]
    assert mean.values[-1] == pytest.approx(sum(curve.values[2] for curve in curves) / 3)
    assert 90 < mean.values[-1] < 100  # as people read it
    assert (mean.deviation > 0).all()


def test_twelve_arms_and_more_are_told_apart():
    looks = [style_of(place) for place in range(60)]
    for part in ("marker", "linestyle"):
        assert len({(look["color"], look[part]) for look in looks}) == 60
    assert len({look["marker"] for look in looks[:10]}) == 10


def test_plans_are_read_as_they_were_written(finished):
    comparison = finished[0]
    loaded = load_comparison(comparison.directory)
    assert loaded.plan == comparison.plan == judged()
    assert loaded.results == comparison.results
    again, _ = compare(comparison.directory, judged(), Graphs(stop_after=0))
    assert again.finished


def test_other_scores_are_another_comparison(finished):
    with pytest.raises(UsageError, match="holds a comparison with scores = "):
        compare(finished[0].directory, judged(scores=(ACCURACY, F1)), Graphs())


def test_plans_of_language_models_are_stored_as_ever(tmp_path):
    compare(tmp_path / "cmp", plan(report_seeds=()), FakeTraining())
    stored = json.loads((tmp_path / "cmp" / "config.json").read_text())["plan"]
    assert "scores" not in stored
    assert not {"group", "method"} & set(stored["arms"][0])
    assert load_comparison(tmp_path / "cmp").plan.scores == LANGUAGE == (LOSS, PERPLEXITY)


def test_scores_in_json():
    assert scores_from_json({"scores": json.loads(json.dumps(scores_to_json(SCORES)))}) == SCORES
    for nothing in ({}, {"scores": None}, {"scores": []}):
        assert scores_from_json(nothing) == LANGUAGE


@pytest.mark.parametrize("scores", [(), (F1, F1), (F1, Score("other", "F1", "points"))])
def test_impossible_scores(scores):
    with pytest.raises(UsageError, match="distinct scores"):
        judged(scores=scores)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"key": "../x"}, "'key' is not a name of letters"),
        ({"key": ""}, "'key' is not a name of letters"),
        ({"key": None}, "'key' is not a name of letters"),
        ({"title": 3}, "'title' is not text"),
        ({"unit": None}, "'unit' is not text"),
        ({"higher_is_better": 1}, "'higher_is_better' is not true or false"),
        ({"factor": -1}, "'factor' is not a positive number"),
        ({"factor": 1e99}, "'factor' is not a positive number"),
        ({"factor": float("nan")}, "'factor' is not a positive number"),
        ({"digits": 10**9}, "'digits' is not a whole number from 0 to 9"),
        ({"exponential": "no"}, "'exponential' is not true or false"),
    ],
)
def test_hostile_scores_are_refused(tmp_path, change, said):
    compare(tmp_path / "cmp", judged(seeds=(), extensions=0), Graphs(embedding=False))
    path = tmp_path / "cmp" / "config.json"
    settings = json.loads(path.read_text())
    bad = [asdict(F1) | change]
    settings["plan"]["scores"] = bad
    path.write_text(json.dumps(settings))
    with pytest.raises(RunError, match=said):
        load_comparison(tmp_path / "cmp")
    path.write_text(json.dumps({"scores": bad}))
    with pytest.raises(RunError, match=said):
        read_config(tmp_path / "cmp")


@pytest.mark.parametrize("scores", ["f1", {"f1": {}}, [1], [[]], [{}], [asdict(F1)] * 2])
def test_hostile_lists_of_scores_are_refused(tmp_path, scores):
    compare(tmp_path / "cmp", plan(report_seeds=(), max_extensions=0), FakeTraining())
    path = tmp_path / "cmp" / "config.json"
    settings = json.loads(path.read_text())
    settings["plan"]["scores"] = scores
    path.write_text(json.dumps(settings))
    with pytest.raises(SpectrainError) as caught:
        load_comparison(tmp_path / "cmp")
    assert "\n" not in str(caught.value)


def test_names_of_scores_are_only_text(tmp_path):
    title, unit = "<script>alert(1)</script>[/red]$\\frac$", "[/b]<b>"
    evil = (Score("f1", title, unit, True, 100.0, 1), Score("accuracy", f"{title}2", unit, True))
    few = arms({"full": 3.0, "lora-r1": 3.6})
    training = Graphs({"full": 3.0, "lora-r1": 3.6}, scores=evil)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        comparison, _ = compare(tmp_path / "cmp", judged(few, evil), training)
        words = read(write_report(comparison.directory))
        run = comparison.trial_directory(comparison.progress.trials[0])
        assert title in words
        assert title in read(write_report(run))
    Console(file=open("/dev/null", "w")).print(render(comparison))  # noqa: SIM115


def test_samples_are_shown_where_a_task_wrote_some(finished, tmp_path):
    source = finished[0].trial_directory(finished[0].progress.trials[0])
    shutil.copytree(source, tmp_path / "run")
    write_json(
        tmp_path / "run" / "samples.json", {"columns": ["in", "out"], "rows": [["a", "<b>"]]}
    )
    assert "Samplesinout" in read(write_report(tmp_path / "run")).replace("\n", "")
    write_json(tmp_path / "run" / "samples.json", {"columns": ["in"], "rows": ["a"]})
    with pytest.raises(RunError, match=r"samples\.json is damaged"):
        write_report(tmp_path / "run")
