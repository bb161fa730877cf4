"""Where the recipes leave HyboNet's published settings: full rank with both, one seed each.

    python benchmarks/hyperbolic_recipes.py --data FOLDER      some five minutes on a core

FOLDER holds airport.npz and cora.npz. Each run is a `spectrain train graph`; finished ones are kept. Writes
results/hyperbolic_recipes.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from spectrain.cli.graph import train_graph
from spectrain.runs.files import read_json

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "hyperbolic_recipes.md"
# By graph and prediction: the flags that give the published settings back.
PUBLISHED = {
    "airport nodes": ("--split", "balanced", "--normalise"),
    "cora nodes": ("--dropout", "0.9", "--weight-decay", "1e-2", "--lr", "0.02"),
    "cora links": ("--weight-decay", "1e-3", "--lr", "0.02"),
}


def score(run: Path, name: str, flags: tuple[str, ...], data: Path) -> str:
    """Train with the recipe and these flags; the result on test data in words."""
    graph, predict = name.split()
    arguments = ("--data", str(data / f"{graph}.npz"), "--predict", predict, "--method", "full")
    train_graph.main([*arguments, *flags, "--out", str(run)], standalone_mode=False)
    result = read_json(run / "result.json")
    if predict == "nodes":
        return f"F1 {100 * result['test_f1']:.1f}"
    return f"ROC-AUC {100 * result['test_roc_auc']:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the graphs")
    parser.add_argument("--out", type=Path, default=HERE / "runs" / "recipes")
    given = parser.parse_args()
    lines = [
        "# HyboNet's published settings and ours\n",
        "Made by `python benchmarks/hyperbolic_recipes.py --data FOLDER`: full rank, seed 0, validation "
        "every other epoch; per cent on test data.\n",
        "| graph | flags that give the published settings | published settings | recipe |",
        "|---|---|--:|--:|",
    ]
    for name, flags in PUBLISHED.items():
        place = given.out / name.replace(" ", "-")
        old = score(place / "published", name, flags, given.data)
        new = score(place / "recipe", name, (), given.data)
        lines.append(f"| {name.capitalize()} | `{' '.join(flags)}` | {old} | {new} |")
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
