"""A picture of the nodes: hyperbolic ones in the Poincaré disk, Euclidean ones in a plane."""

from __future__ import annotations

import io

import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor

from spectrain.tasks.graph.graphs import Graph
from spectrain.tasks.graph.models import GraphNetwork

MOST_EDGES = 5000  # drawn; more are a grey sheet
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")


@torch.no_grad()
def embedding(model: GraphNetwork, h: Tensor, graph: Graph) -> bytes:
    """Where the model puts the nodes, whose representations are h, as a PNG: coloured by class."""
    ball = model.in_the_ball(h)
    flat = in_the_disk(ball) if ball is not None else _plane(h)
    figure = Figure(figsize=(5, 5), dpi=180, layout="constrained")
    axes = figure.subplots()
    axes.set_aspect("equal")
    axes.axis("off")
    if ball is not None:
        axes.add_patch(Circle((0, 0), 1.0, fill=False, color="0.4", linewidth=1))
        axes.set_xlim(-1.03, 1.03)
        axes.set_ylim(-1.03, 1.03)
    if len(graph.edges) <= MOST_EDGES:
        lines = flat[graph.edges.to(flat.device)].cpu().numpy()
        axes.add_collection(LineCollection(list(lines), colors="0.8", linewidths=0.3, zorder=0))
    points = flat.cpu().numpy()
    if graph.labels is None:
        axes.scatter(points[:, 0], points[:, 1], s=5, c=COLOURS[0], linewidths=0, alpha=0.7)
    else:
        for label in range(graph.classes):
            own = points[(graph.labels == label).numpy()]
            colour = COLOURS[label % len(COLOURS)]
            x, y = own[:, 0], own[:, 1]
            axes.scatter(x, y, s=6, c=colour, linewidths=0, alpha=0.7, label=f"class {label}")
        beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        axes.legend(frameon=False, fontsize=7, markerscale=2, **beside)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def in_the_disk(
    ball: Tensor,  # (N, d) in the unit ball
) -> Tensor:  # (N, 2) in the unit disk
    """Points of a Poincaré ball in its disk of widest spread, each at its own distance from the origin.

    The ball is first moved, by the isometry that takes the points' centroid to the origin: what is learned
    may lie anywhere, and only distances count. Then points are projected on the plane of their two
    leading directions and put at their true radius, so that nearness to the rim shows how far a point
    is from the centre.
    """
    moved = centred(ball.double())
    directions = moved / moved.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    plane = torch.linalg.svd(moved, full_matrices=False).Vh[:2]
    flat = directions @ plane.mT
    if flat.shape[1] < 2:  # a ball of one dimension
        flat = torch.cat((flat, torch.zeros_like(flat)), 1)
    flat = flat / flat.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    found: Tensor = flat * moved.norm(dim=-1, keepdim=True)
    return found


def centred(
    ball: Tensor,  # (N, d) in the unit ball
) -> Tensor:
    """The ball moved so that the Lorentzian centroid of the points is its origin (a Möbius translation)."""
    squares = ball.square().sum(-1, keepdim=True)
    gamma = 1 / (1 - squares).clamp(min=1e-9)
    # The centroid of the hyperboloid's points ((1 + ‖x‖²), 2x)/(1 − ‖x‖²), back in the ball.
    time = (gamma * (1 + squares)).mean()
    space = (2 * gamma * ball).mean(0)
    size = (time.square() - space.square().sum()).clamp(min=1e-12).sqrt()
    m = -space / (time + size)
    inner, own = (ball @ m)[:, None], m.square().sum()
    top = (1 + 2 * inner + squares) * m + (1 - own) * ball
    return top / (1 + 2 * inner + own * squares)


def _plane(h: Tensor) -> Tensor:
    """(N, 2) the two leading principal components of Euclidean representations."""
    centre = (h - h.mean(0)).double()
    if centre.shape[1] < 2:
        return torch.cat((centre, torch.zeros_like(centre)), 1)
    flat: Tensor = centre @ torch.linalg.svd(centre, full_matrices=False).Vh[:2].mT
    return flat
