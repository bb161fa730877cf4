"""WordNet's mammals embedded by their hypernyms: the manifold's own test, beside Euclidean space.

    python benchmarks/tree_embedding.py --data FOLDER      some ten minutes on a core
    python benchmarks/tree_embedding.py --data FOLDER --steps 100 --dimensions 5

FOLDER holds wordnet_mammals_closure.tsv.gz. The loss is that of Nickel and Kiela (2018): a pair's distance
against those to random nodes that are not related. Measured is how well the distances give all pairs back:
mean rank and mean average precision (MAP). Writes results/tree_embedding.md and a picture.
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from speed_report import machine
from torch import Tensor, nn

from spectrain.hyperbolic import LorentzEmbedding, RiemannianAdam
from spectrain.hyperbolic.lorentz import TOLERANCE, distance, inner, to_poincare
from spectrain.tasks.graph.files import load_graph
from spectrain.tasks.graph.graphs import Graph
from spectrain.tasks.graph.picture import in_the_disk

HERE = Path(__file__).parent
NEGATIVES = 50


class Hyperbolic(nn.Module):
    """Points of dimension d, d + 1 numbers each."""

    def __init__(self, nodes: int, d: int) -> None:
        super().__init__()
        self.table = LorentzEmbedding(nodes, d + 1, deviation=1e-3)

    def distances(self, a: Tensor, b: Tensor) -> Tensor:
        return distance(self.table(a), self.table(b))


class Flat(nn.Module):
    """Vectors of dimension d."""

    def __init__(self, nodes: int, d: int) -> None:
        super().__init__()
        self.table = nn.Parameter(1e-3 * torch.randn(nodes, d))

    def distances(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.table[a] - self.table[b]).square().sum(-1).clamp(min=1e-12).sqrt()


def related(graph: Graph) -> Tensor:
    """(N, N) which nodes are an edge apart, themselves included."""
    found = torch.eye(graph.nodes, dtype=torch.bool)
    found[graph.edges[:, 0], graph.edges[:, 1]] = True
    return found | found.T


def train(model: nn.Module, graph: Graph, steps: int, lr: float, seed: int = 0) -> None:
    """Every step takes all pairs, in one of both directions, each against random unrelated nodes."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = RiemannianAdam(model.parameters(), lr=lr)
    known = related(graph)
    for step in range(steps):
        for (
            group
        ) in optimizer.param_groups:  # a tenth of the rate first, so that the tree can unfold
            group["lr"] = lr * min(1.0, 0.1 + step / (0.1 * steps)) * (1 - 0.9 * step / steps)
        pairs = graph.edges if step % 2 else graph.edges.flip(1)
        drawn = torch.randint(graph.nodes, (len(pairs), NEGATIVES), generator=generator)
        away = -model.distances(pairs[:, :1], drawn)
        away = away.masked_fill(known[pairs[:, :1], drawn], -torch.inf)
        own = -model.distances(pairs[:, 0], pairs[:, 1])
        loss = (torch.cat((own[:, None], away), 1).logsumexp(1) - own).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def reconstruction(model: nn.Module, graph: Graph) -> tuple[float, float]:
    """(mean rank, MAP): a related node's rank among those that are not related, and precision over all."""
    known = related(graph)
    ranks, precisions = [], []
    every = torch.arange(graph.nodes)
    for node in range(graph.nodes):
        far = model.distances(torch.full_like(every, node), every)
        own = known[node].clone()
        own[node] = False
        if not own.any():
            continue
        near = far[own].sort().values
        others = far[~known[node]].sort().values
        before = torch.searchsorted(others, near)  # unrelated nodes that are nearer
        ranks.append(before.double() + 1)
        place = torch.arange(1, len(near) + 1, dtype=torch.double)
        precisions.append((place / (place + before)).mean())
    return torch.cat(ranks).mean().item(), torch.stack(precisions).mean().item()


@torch.no_grad()
def draw(model: Hyperbolic, graph: Graph, path: Path) -> None:
    """The tree in the Poincaré disk."""
    flat = in_the_disk(to_poincare(model.table.weight.detach()))
    figure = Figure(figsize=(5, 5), dpi=180, layout="constrained")
    axes = figure.subplots()
    axes.set_aspect("equal")
    axes.axis("off")
    axes.add_patch(Circle((0, 0), 1.0, fill=False, color="0.4"))
    axes.set_xlim(-1.03, 1.03)
    axes.set_ylim(-1.03, 1.03)
    lines = list(flat[graph.edges].numpy())
    axes.add_collection(LineCollection(lines, colors="0.8", linewidths=0.15, zorder=0))
    axes.scatter(flat[:, 0], flat[:, 1], s=4, c="#0072B2", linewidths=0)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    path.write_bytes(buffer.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the WordNet files")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[2, 5, 10])
    given = parser.parse_args()
    graph = load_graph(str(given.data / "wordnet_mammals_closure.tsv.gz"))
    rows = []
    for d in given.dimensions:
        for name, cls, lr in (("Lorentz", Hyperbolic, 0.03), ("Euclidean", Flat, 0.03)):
            torch.manual_seed(0)
            model, began = cls(graph.nodes, d), time.perf_counter()
            train(model, graph, given.steps, lr)
            rank, precision = reconstruction(model, graph)
            off = "–"
            if isinstance(model, Hyperbolic):
                x = model.table.weight.detach()
                worst = ((inner(x, x) + 1).abs() / x[:, 0].square()).max().item()
                off = f"{worst:.1e}"
                if d == max(given.dimensions):
                    draw(model, graph, HERE / "results" / "tree_embedding.png")
            row = f"| {name} | {d} | {rank:.2f} | {precision:.3f} | {off} |"
            print(row, f"{time.perf_counter() - began:.0f} s", flush=True)
            rows.append(row)
    where = machine(torch.device("cpu"))
    lines = [
        "# WordNet mammals in hyperbolic space\n",
        f"Made by `python benchmarks/tree_embedding.py --data FOLDER --steps {given.steps}` "
        f"({where['processor']}, torch {where['torch']}), float32, seed 0: "
        f"{graph.nodes:,} nodes, {len(graph.edges):,} pairs of the transitive closure.\n",
        "| space | dimensions | mean rank | MAP | off the manifold |",
        "|---|--:|--:|--:|--:|",
        *rows,
        "",
        "Off the manifold: the largest |⟨x, x⟩ + 1| relative to x₀² after training; promised is "
        f"{TOLERANCE:.0e}.\n",
        "![The mammals in the Poincaré disk](tree_embedding.png)",
    ]
    (HERE / "results" / "tree_embedding.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
