"""Settings that suit known graphs: HyboNet's published ones, and where ours differ.

Published are those of the scripts of Chen et al. (2021); their flag of L layers is L − 1 convolutions for
nodes and L for links.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spectrain.errors import UsageError


@dataclass(frozen=True)
class Recipe:
    """Settings of task and run for one graph and one kind of prediction."""

    name: str
    values: dict[str, Any]  # of GraphOptions and RunOptions
    departures: tuple[str, ...] = ()  # from the published settings, in words


_HYBONET = {
    ("airport", "nodes"): Recipe(
        "airport nodes",
        {
            "lr": 0.02,
            "layers": 5,
            "weight_decay": 1e-4,
            "margin": 2.0,
            "clip": 1.0,
            "activation": "relu",
            "normalise": False,
            "degree_features": True,
            "split": "random",
            "validation": 0.15,
            "test": 0.15,
        },
        (
            "features are taken as they are (published: divided by their sum), and the split is a random "
            "70/15/15 (HGCN's code balances validation and test between class 0 and the others)",
        ),
    ),
    ("airport", "links"): Recipe(
        "airport links",
        {"lr": 0.01, "layers": 2, "margin": 2.0, "normalise": True, "degree_features": True},
    ),
    ("cora", "nodes"): Recipe(
        "cora nodes",
        {
            "lr": 0.01,
            "layers": 2,
            "dropout": 0.5,
            "weight_decay": 1e-3,
            "margin": 1.0,
            "clip": 1.0,
            "normalise": True,
            "split": "public",
        },
        (
            "dropout is 0.5 (published: 0.9), weight decay 1e-3 (1e-2), the learning rate 0.01 (0.02)",
        ),
    ),
    ("cora", "links"): Recipe(
        "cora links",
        {
            "lr": 0.01,
            "layers": 2,
            "dropout": 0.7,
            "weight_decay": 0.0,
            "margin": 0.1,
            "clip": 0.5,
            "normalise": True,
        },
        ("there is no weight decay (published: 1e-3), and the learning rate is 0.01 (0.02)",),
    ),
    ("disease", "nodes"): Recipe(
        "disease nodes",
        {
            "lr": 0.005,
            "layers": 3,
            "dropout": 0.1,
            "margin": 2.0,
            "clip": 0.5,
            "normalise": False,
            "split": "balanced",
            "validation": 0.10,
            "test": 0.60,
        },
    ),
    ("disease", "links"): Recipe(
        "disease links",
        {"lr": 0.005, "layers": 2, "margin": 30.0, "clip": 0.5, "normalise": False},
    ),
}
_EUCLIDEAN = {"lr": 0.01, "layers": 2, "dropout": 0.5, "weight_decay": 5e-4, "activation": "relu"}
_DATA = ("normalise", "degree_features", "split", "validation", "test")  # the same for all networks
_FILES = {"disease_lp": "disease", "disease_nc": "disease", "sir-tree": "disease"}
NAMES = tuple(dict.fromkeys(name for name, _ in _HYBONET))


def recipe_for(asked: str, graph: str, predict: str, model: str) -> Recipe | None:
    """The recipe `asked` for, or with "auto" the one that goes with a graph of that name, if any.

    Networks other than HyboNet take over what concerns the data, and have rates of their own (Kipf and
    Welling 2017). Raises UsageError for an unknown name.
    """
    name = _FILES.get(graph, graph) if asked == "auto" else asked
    if asked == "none" or (asked == "auto" and name not in NAMES):
        return None
    if name not in NAMES:
        raise UsageError(f"--recipe {asked}: allowed are auto, none, {', '.join(NAMES)}")
    found = _HYBONET[name, predict]
    if model == "hybonet":
        return found
    data = {key: value for key, value in found.values.items() if key in _DATA}
    return Recipe(f"{name} {predict} for {model}", _EUCLIDEAN | data)
