"""The task `graph`: the common loop, early stopping, the best checkpoint, the command line."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny import final, last, rows

from spectrain import SST, FullRank, LoRA, ReLoRA
from spectrain.cli.graph import compare_graph, train_graph
from spectrain.cli.training import arms_of
from spectrain.errors import RunError, UsageError
from spectrain.runs.compare import load_comparison
from spectrain.runs.export import export
from spectrain.runs.files import read_json
from spectrain.runs.interrupt import Interrupted
from spectrain.runs.jobs import compare, train
from spectrain.runs.options import RunOptions
from spectrain.runs.summary import summarise
from spectrain.runs.view import Silent
from spectrain.surgery import parametrized
from spectrain.tasks.graph.builtin import sir_tree
from spectrain.tasks.graph.graphs import graph_from
from spectrain.tasks.graph.models import build
from spectrain.tasks.graph.options import GraphOptions
from spectrain.tasks.graph.picture import centred, in_the_disk
from spectrain.tasks.graph.plain import load_network
from spectrain.tasks.graph.recipes import NAMES, recipe_for
from spectrain.tasks.graph.task import GraphLearning

METHOD = SST(rank=2, resample_every=4, warmup=4, iterations_per_round=2)


def make_task(kind=GraphLearning, nodes=120, **options):
    values = {"dim": 8, "split": "balanced", "validation": 0.2, "test": 0.3, "normalise": False}
    return kind.on(sir_tree(nodes=nodes), GraphOptions(**values | options))


def make_options(**options):
    values = {"steps": 24, "lr": 0.02, "schedule": "constant", "warmup": 0.0, "optimizer": "Adam"}
    values |= {"exclude": "head", "log_every": 4, "eval_every": 2, "checkpoint_every": 8}
    values |= {"keep": 20, "device": "cpu", "patience": 50}
    return RunOptions(**values | options)


def run(directory, method=METHOD, task=None, **options):
    return train(task or make_task(), method, make_options(**options), directory, Silent())[0]


# --- the task ----------------------------------------------------------------------------------


@pytest.mark.parametrize("predict", ["nodes", "links"])
@pytest.mark.parametrize("model", ["hybonet", "gcn", "mlp"])
def test_every_network_learns_both_kinds(tmp_path, predict, model):
    activation = "none" if model == "hybonet" else "relu"
    task = make_task(predict=predict, model=model, activation=activation, dropout=0.1)
    result = run(tmp_path / "run", task=task, steps=40)
    keys = ("f1", "accuracy") if predict == "nodes" else ("roc_auc", "average_precision")
    for split in ("validation", "test"):
        assert all(0 <= result[f"{split}_{key}"] <= 1 for key in keys)
    losses = [row["loss"] for row in rows(tmp_path / "run") if "loss" in row]
    assert losses[-1] < losses[0]
    assert result["epochs"] == result["steps"] == 40
    report = (tmp_path / "run" / "report.html").read_text()
    assert "The nodes as the network places them" in report
    assert (tmp_path / "run" / "embedding.png").stat().st_size > 1000


def test_all_links_of_a_model_are_scored_by_its_head():
    task = make_task(predict="links")
    model = task.build_model()
    torch.manual_seed(0)
    scores = task.evaluate(model, "test", thorough=True, dtype=torch.float32)
    h = task.represent(model)
    edges, others = task.links.held_out("test")
    right = [model.scores(h, e[None]) > model.scores(h, o[None]) for e in edges for o in others]
    assert scores["roc_auc"] == pytest.approx(torch.cat(right).double().mean().item())


def test_batches_follow_from_seed_and_step():
    task = make_task(predict="links")
    first, again = task.micro_batches(3, 1), make_task(predict="links").micro_batches(3, 1)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], task.micro_batches(4, 1)[0])
    nodes = make_task().micro_batches(0, 0)[0]
    assert nodes.shape[1] == 2  # with their classes


def test_links_that_are_held_out_are_not_seen():
    """Neither by the convolutions nor in the degrees."""
    task = make_task(predict="links", degree_features=True)
    degrees = torch.bincount(task.links.train.flatten(), minlength=120).clamp(max=5)
    assert torch.equal(task.features[:, -7:-1].argmax(1), degrees)


def test_the_number_behind_the_labels_is_a_feature_for_links_alone():
    edges = np.array([[i, i + 1] for i in range(39)])
    labels = np.arange(40) % 2
    graph = graph_from("g", edges, features=np.ones((40, 2)), labels=labels, target=np.arange(40.0))
    options = {"normalise": False, "validation": 0.2, "test": 0.2}
    for predict, width in (("nodes", 2), ("links", 3)):
        task = GraphLearning.on(graph, GraphOptions(predict=predict, split="random", **options))
        assert task.features.shape[1] == width


def test_a_graph_without_features_or_labels(tmp_path):
    graph = graph_from("g", np.array([[i, i + 1] for i in range(60)]))
    with pytest.raises(UsageError, match="no labels, so there are no classes"):
        GraphLearning.on(graph, GraphOptions())
    task = GraphLearning.on(graph, GraphOptions(predict="links", validation=0.1, test=0.1))
    assert torch.equal(task.features, torch.eye(61))
    large = graph_from("g", np.array([[0, 1], [1, 30_000], [1, 2], [2, 3]]), 30_001)
    options = {"predict": "links", "validation": 0.3, "test": 0.3}
    task = GraphLearning.on(large, GraphOptions(**options))
    with pytest.raises(UsageError, match="--degree-features"):
        _ = task.features
    task = GraphLearning.on(large, GraphOptions(**options, degree_features=True))
    assert task.features.shape == (30_001, 7)


# --- early stopping ----------------------------------------------------------------------------


class Judged(GraphLearning):
    """Its validations are chosen: the best at step 6."""

    def evaluate(self, model, split, *, thorough, **how):
        found = super().evaluate(model, split, thorough=thorough, **how)
        if not thorough:
            found["f1"] = {2: 0.3, 4: 0.4, 6: 0.9, 8: 0.5}.get(self.steps, 0.6)
        return found

    def micro_batches(self, step, seed):
        self.steps = step + 1
        return super().micro_batches(step, seed)


def test_a_run_stops_by_patience_and_returns_to_the_best_checkpoint(tmp_path):
    result = run(tmp_path / "run", task=make_task(Judged), patience=10)
    assert result["steps"] == 16
    assert result["best_step"] == 6
    assert result["stopped_early"] is True
    task = make_task()
    export(tmp_path / "run", tmp_path / "best", which="best")
    model = load_network(tmp_path / "best")
    again = task.evaluate(model, "test", thorough=True, dtype=torch.float32)
    assert result["test_f1"] == pytest.approx(again["f1"])
    assert result["test_accuracy"] == pytest.approx(again["accuracy"])
    assert last(tmp_path / "run").step == 16


def test_patience_is_refused_where_it_cannot_be():
    with pytest.raises(UsageError, match="patience needs validations"):
        RunOptions(patience=5, eval_every=0)


def test_patience_is_refused_with_phases(tmp_path):
    method = ReLoRA(2, merge_every=4, warm_start=4)
    with pytest.raises(UsageError, match="goes back to the best checkpoint"):
        run(tmp_path / "run", method)


@pytest.mark.parametrize("predict", ["nodes", "links"])
@pytest.mark.parametrize("at", [3, 9])
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, predict, at):
    class Stopping(GraphLearning):
        once = True

        def micro_batches(self, step, seed):
            if step == at and self.once:
                self.once = False
                signal.raise_signal(signal.SIGINT)
            return super().micro_batches(step, seed)

    options = {"predict": predict, "dropout": 0.2}
    run(tmp_path / "whole", task=make_task(**options))
    task = make_task(Stopping, **options)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", task=task)
    if at == 9:  # twice: an optimizer's count of steps must stay what it was
        task.once, at = True, 15
        with pytest.raises(Interrupted):
            run(tmp_path / "parts", task=task)
    run(tmp_path / "parts", task=task)
    first, second = final(tmp_path / "whole"), final(tmp_path / "parts")
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert metrics[0] == metrics[1]


def test_points_and_factors_have_optimizers_of_their_own(tmp_path):
    run(tmp_path / "run", steps=4)
    state = {name for name in final(tmp_path / "run") if "head.points" in name}
    assert "optimizer/head.points/exp_avg" in state
    numbers = last(tmp_path / "run").state()["numbers"]
    assert numbers["head.points/step"] == 4


# --- plain checkpoints -------------------------------------------------------------------------


@pytest.mark.parametrize("predict", ["nodes", "links"])
@pytest.mark.parametrize("method", [METHOD, LoRA(2), FullRank()], ids=lambda m: m.title)
def test_a_merged_network_is_plain_and_computes_the_same(tmp_path, predict, method):
    task = make_task(predict=predict)
    run(tmp_path / "run", method, task, steps=8)
    done = export(tmp_path / "run", tmp_path / "plain")
    assert done.difference <= 1e-4 * max(1, done.largest)
    model = load_network(tmp_path / "plain")
    assert not list(parametrized(model))
    assert {name for name, _ in model.named_parameters()} == {
        name for name, _ in task.build_model().named_parameters()
    }
    description = read_json(tmp_path / "plain" / "config.json")
    assert description["architecture"] == "hybonet"
    (tmp_path / "plain" / "config.json").write_text(json.dumps({**description, "sizes": [9, 8]}))
    with pytest.raises(RunError, match="cannot be loaded"):
        load_network(tmp_path / "plain")


@pytest.mark.parametrize(
    "description",
    [
        {},
        {"architecture": "gat"},
        {"architecture": "hybonet", "features": 3, "sizes": [4], "classes": 2, "wings": 2},
        {"architecture": "gcn", "features": 3, "sizes": [4], "classes": 2, "activation": "step"},
    ],
)
def test_a_description_of_no_network_is_refused(description):
    with pytest.raises(UsageError, match=r"no network can be built|is none of"):
        build(description)


# --- pictures ----------------------------------------------------------------------------------


def test_the_disk_shows_distances_from_the_centroid():
    torch.manual_seed(0)
    ball = 0.5 * torch.rand(30, 5).double()
    moved = centred(ball)
    a, b = ball[:, None], ball[None]
    m, n = moved[:, None], moved[None]

    def far(x, y):
        top = (x - y).square().sum(-1)
        return top / ((1 - x.square().sum(-1)) * (1 - y.square().sum(-1)))

    torch.testing.assert_close(far(a, b), far(m, n))  # an isometry
    flat = in_the_disk(ball)
    assert flat.shape == (30, 2)
    torch.testing.assert_close(flat.norm(dim=1), moved.norm(dim=1))
    torch.testing.assert_close(centred(moved), moved, atol=1e-6, rtol=1e-6)


# --- comparisons and the command line ----------------------------------------------------------


def test_a_comparison_has_an_arm_for_each_rank(tmp_path):
    methods = arms_of(["full", "lora", "relora"], [1, 2], {"relora__merge_every": 4})
    assert list(methods) == ["full", "lora-r1", "lora-r2", "relora-r1", "relora-r2"]
    grids = {key: [0.01, 0.02] for key in methods}
    found, _ = compare(
        make_task(),
        methods,
        grids,
        make_options(steps=8),
        ordinary_rates=[None],
        report_seeds=[1, 2],
        max_extensions=0,
        out=tmp_path / "cmp",
        view=Silent(),
    )
    assert found.finished
    again = load_comparison(tmp_path / "cmp")
    assert [arm.title for arm in again.plan.arms][:3] == ["Full rank", "LoRA r=1", "LoRA r=2"]
    assert [arm.group for arm in again.plan.arms] == ["", "r=1", "r=2", "r=1", "r=2"]
    assert again.plan.scores[0].key == "f1"
    summary = summarise(again)
    assert "test F1" in summary.columns
    assert (tmp_path / "cmp" / "score_by_step.png").exists()


def invoke(command, *arguments):
    result = CliRunner().invoke(command, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_command_trains_on_the_builtin_tree(tmp_path):
    arguments = ("--method", "sst", "--method.rank", "2", "--steps", "6", "--device", "cpu")
    arguments += ("--method.resample-every", "3", "--method.iterations-per-round", "2")
    result = invoke(train_graph, *arguments, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "sir-tree: 1,024 nodes" in result.output
    assert "recipe disease nodes" in result.output
    assert "the results are of epoch" in result.output
    assert "test" in result.output.split("F1", 1)[1]
    options = read_json(tmp_path / "run" / "config.json")["options"]
    assert options["layers"] == 3
    assert options["clip"] == 0.5


def test_flags_win_over_a_recipe(tmp_path):
    arguments = ("--method", "full", "--steps", "2", "--layers", "1", "--lr", "0.1", "--recipe")
    arguments += ("disease", "--model", "gcn", "--eval-every", "1", "--out", tmp_path / "run")
    result = invoke(train_graph, *arguments)
    assert result.exit_code == 0, result.output
    options = read_json(tmp_path / "run" / "config.json")["options"]
    assert (options["layers"], options["lr"], options["dropout"]) == (1, 0.1, 0.5)
    assert options["validation"] == 0.10  # the recipe's, of the data


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--data", "nowhere.npz"), "there is no file or folder"),
        (("--recipe", "iris"), "allowed are auto, none, airport"),
        (("--method.rank", "99"), "rank is 99"),
        (("--validation", "0.9", "--test", "0.9"), "nothing is left to train on"),
    ],
)
def test_wrong_flags_are_refused(tmp_path, arguments, said):
    given = ("--method", "lora", "--method.rank", "1", "--out", tmp_path / "run", *arguments)
    with pytest.raises(UsageError, match=said):
        invoke(train_graph, *given)


def test_the_comparison_refuses_odd_ranks(tmp_path):
    for rank in ("1,1", "one", ""):
        with pytest.raises(UsageError, match="give whole numbers separated by commas"):
            invoke(compare_graph, "--rank", rank, "--out", tmp_path / "cmp")


def test_recipes():
    assert recipe_for("auto", "unheard", "nodes", "hybonet") is None
    assert recipe_for("none", "cora", "nodes", "hybonet") is None
    names = {f.name for f in GraphOptions.__dataclass_fields__.values()}
    names |= set(RunOptions.__dataclass_fields__)
    for name in NAMES:
        for predict in ("nodes", "links"):
            found = recipe_for(name, "", predict, "hybonet")
            assert set(found.values) <= names
            other = recipe_for(name, "", predict, "gcn")
            shared = {"normalise", "split", "validation", "test"} & set(found.values)
            assert {k: other.values[k] for k in shared} == {k: found.values[k] for k in shared}
