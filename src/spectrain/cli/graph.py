"""`train graph` and `compare graph`: their options, and what is done with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from spectrain.cli import training
from spectrain.cli.options import SectionedCommand, built, options_of
from spectrain.runs.options import RunOptions
from spectrain.tasks.graph.options import GraphOptions
from spectrain.tasks.graph.recipes import NAMES, recipe_for

if TYPE_CHECKING:
    from rich.console import Console

    from spectrain.tasks.graph.graphs import Graph
    from spectrain.tasks.graph.task import GraphLearning

# A step sees the whole graph, so steps are epochs; they end by patience.
DEFAULTS: dict[str, Any] = {
    "steps": 5000,
    "lr": 1e-2,
    "schedule": "constant",
    "warmup": 0.0,
    "optimizer": "Adam",
    "exclude": "head",
    "log_every": 10,
    "eval_every": 2,
    "checkpoint_every": 1000,
    "keep": 1,
    "patience": 500,
}
NOT_HERE = (
    "compile",
    "shard",
)  # sparse products have no compiled form; one process sees the whole graph
RECIPE = click.Option(
    ["--recipe"],
    default="auto",
    show_default=True,
    help="settings known to suit a graph, where no flag gives them: auto (by the name of the data), none, "
    f"or one of {', '.join(NAMES)}",
)


def _train_graph(out: Path, fork: Path | None, method: str, recipe: str, **values: Any) -> None:
    chosen = training.chosen_method(method, values)
    graph, values, notes = _settled(values, recipe)
    options = built(RunOptions, values)
    task = _task(graph, values)
    console, result, report = training.run_training(
        lambda console: _shown(task, notes, console), chosen, options, out, fork
    )
    rows = [("epochs", _epochs(result))]
    for score in task.scores:
        found = (result[f"{split}_{score.key}"] * score.factor for split in ("validation", "test"))
        text = " validation, ".join(f"{value:.{score.digits}f} %" for value in found)
        rows.append((score.title, f"{text} test"))
    last = [
        ("report", str(report)),
        training.after(chosen, out),
    ]
    training.summarise(console, chosen, result, rows, last)


def _epochs(result: dict[str, Any]) -> str:
    if "best_step" not in result:
        return f"{result['steps']:,}"
    why = "stopped by patience" if result["stopped_early"] else "all made"
    return f"{result['steps']:,} ({why}); the results are of epoch {result['best_step']:,}, the best one"


train_graph = SectionedCommand(
    "graph",
    callback=_train_graph,
    help="Learn on a graph: classes of its nodes, or which pairs are linked; in hyperbolic space "
    "(HyboNet) or not.\n\n"
    "Example: spectrain train graph --method sst --method.rank 2 --out runs/tree\n\n"
    "Example: spectrain train graph --data airport.npz --predict links --method full --out runs/air",
    sections=[
        ("Run", [*training.RUN, RECIPE]),
        ("Graph and model", options_of(GraphOptions)),
        ("Training", options_of(RunOptions, skip=NOT_HERE, defaults=DEFAULTS)),
        *training.method_sections(),
    ],
)


def _compare_graph(recipe: str, **values: Any) -> None:
    graph, values, notes = _settled(values, recipe)
    if values["sweep_lr"] is None:
        middle = values.get("lr", DEFAULTS["lr"])
        values["sweep_lr"] = ",".join(f"{factor * middle:.3g}" for factor in (0.5, 1, 2))
    task = _task(graph, values)
    training.run_comparison(lambda console: _shown(task, notes, console), values)


RATES = "; default: half, once and twice the recipe's rate"

compare_graph = SectionedCommand(
    "graph",
    callback=_compare_graph,
    help="Compare methods at learning on a graph: the same data, budget and number of trials for "
    "each.\n\nFinished trials are kept; the same command continues. "
    "Example: spectrain compare graph --data airport.npz --methods full,sst,lora --rank 1,2 --out runs/cmp",
    sections=[
        ("Comparison", [*training.comparison(2, None, RATES), RECIPE]),
        ("Graph and model", options_of(GraphOptions)),
        ("Training", options_of(RunOptions, skip=("lr", *NOT_HERE), defaults=DEFAULTS)),
        *training.arm_sections(),
    ],
)


def _settled(values: dict[str, Any], recipe: str) -> tuple[Graph, dict[str, Any], tuple[str, ...]]:
    """(graph, values with the recipe's where no flag gave one, what to say of the recipe)."""
    from spectrain.tasks.graph.builtin import sir_tree
    from spectrain.tasks.graph.files import load_graph

    graph = sir_tree() if values["data"] is None else load_graph(values["data"])
    found = recipe_for(recipe, graph.name, values["predict"], values["model"])
    if found is None:
        return graph, values, ()
    source = click.get_current_context().get_parameter_source
    silent = None, ParameterSource.DEFAULT  # None: not an option of this command
    own = {n: v for n, v in found.values.items() if source(n) in silent}
    text = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in own.items())
    said = f"recipe {found.name}: {text}" if text else f"recipe {found.name}: all given by flags"
    return graph, values | own, (said, *found.departures)


def _task(graph: Graph, values: dict[str, Any]) -> GraphLearning:
    from spectrain.tasks.graph.task import GraphLearning

    return GraphLearning.on(graph, built(GraphOptions, values))


def _shown(task: GraphLearning, notes: tuple[str, ...], console: Console) -> GraphLearning:
    """Print what is learned from; returns the task."""
    lines = [task.describe(), *(f"note: {note}" for note in (*task.graph.notes, *notes))]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return task
