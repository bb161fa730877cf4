"""Networks on graphs: HyboNet in hyperbolic space, a Euclidean GCN, and an MLP that sees no edges.

Each is an encoder, which gives every node a representation, and a head: logits of classes for nodes,
scores of pairs for links.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrain.errors import UsageError
from spectrain.hyperbolic import DistanceDecoder, LorentzClassifier, LorentzGraphConvolution
from spectrain.hyperbolic.heads import class_hinge, pair_cross_entropy, pair_hinge
from spectrain.hyperbolic.lorentz import from_tangent, to_poincare
from spectrain.tasks.graph.inputs import NodeInputs

Mean = Callable[[Tensor], Tensor]  # x (N, d) -> each node's mean over itself and its neighbours

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "none": None,
    "relu": F.relu,
    "tanh": torch.tanh,
}


class GraphNetwork(nn.Module):
    """An encoder's layers and a head; subclasses say how they are used."""

    layers: nn.ModuleList
    head: nn.Module

    def __init__(self, width: int, dropout: float) -> None:
        """width: columns of the first layer's input. dropout: on every layer's input."""
        super().__init__()
        self.width, self.dropout = width, dropout

    def prepare(self, features: Tensor) -> Tensor:
        """What goes into the first layer, made of the features (N, F) once for the whole training."""
        return features

    def encode(self, inputs: NodeInputs, mean: Mean) -> Tensor:
        """(N, dim) representations of all nodes; inputs: of what `prepare` gave."""
        drops = self.training and self.dropout > 0
        return self.hidden(inputs.dropped(self.dropout) if drops else inputs.x, mean)

    def hidden(self, x: Tensor, mean: Mean) -> Tensor:
        """All layers, from inputs on which dropout was done."""
        raise NotImplementedError

    def logits(self, h: Tensor) -> Tensor:
        """(…, C) of nodes with representations h (…, dim)."""
        found: Tensor = self.head(h)
        return found

    def scores(
        self,
        h: Tensor,  # (N, dim)
        pairs: Tensor,  # (P, 2)
    ) -> Tensor:  # (P,), higher where an edge is likely
        found: Tensor = self.head(h[pairs[:, 0]], h[pairs[:, 1]])
        return found

    def alone(self, x: Tensor) -> Tensor:
        """Logits of nodes that have no neighbours, or scores of each with the next one; x: prepared."""
        h = self.hidden(x, lambda own: own)
        if isinstance(self.head, DistanceDecoder | SquaredDistance):
            found: Tensor = self.head(h[:-1], h[1:])
            return found
        return self.logits(h)

    def node_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of nodes by their logits (n, C)."""
        return F.cross_entropy(logits, labels)

    def link_loss(self, positive: Tensor, negative: Tensor) -> Tensor:
        """The loss of edges' scores and of as many other pairs' scores."""
        return pair_cross_entropy(positive, negative)

    def in_the_ball(self, h: Tensor) -> Tensor | None:
        """Representations as points of the Poincaré ball, (N, d); None for a Euclidean network."""
        return None


class HyboNet(GraphNetwork):
    """Lorentz graph convolutions; class points or distances on top (Chen et al. 2021)."""

    def __init__(
        self,
        features: int,
        sizes: Sequence[int],  # coordinates of each layer's output, time included
        classes: int | None,  # None for links
        *,
        curvature: float = -1.0,
        dropout: float = 0.0,
        bias: bool = True,
        activation: str = "none",
        margin: float = 2.0,
    ) -> None:
        super().__init__(features + 1, dropout)
        self.curvature, self.margin = curvature, margin
        ins = [features + 1, *sizes[:-1]]
        self.layers = nn.ModuleList(
            LorentzGraphConvolution(
                inside,
                outside,
                curvature=curvature,
                bias=bias,
                dropout=dropout if place else 0.0,  # the inputs' own is done before
                activation=ACTIVATIONS[activation] if place else None,
            )
            for place, (inside, outside) in enumerate(zip(ins, sizes, strict=True))
        )
        self.head = (
            DistanceDecoder(curvature=curvature)
            if classes is None
            else LorentzClassifier(sizes[-1], classes, curvature=curvature)
        )

    def prepare(self, features: Tensor) -> Tensor:
        return from_tangent(features, self.curvature)

    def hidden(self, x: Tensor, mean: Mean) -> Tensor:
        for layer in self.layers:
            x = layer(x, mean)
        return x

    def node_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return class_hinge(logits, labels, self.margin)

    def link_loss(self, positive: Tensor, negative: Tensor) -> Tensor:
        return pair_hinge(positive, negative, self.margin)

    def in_the_ball(self, h: Tensor) -> Tensor:
        return to_poincare(h, self.curvature)


class Euclidean(GraphNetwork):
    """Linear maps, each followed by a mean over neighbours (GCN, Kipf and Welling 2017) or not (MLP).

    Links are scored by σ((r − ‖x − y‖²)/t), the Fermi–Dirac distribution with r = 2 and t = 1.
    """

    def __init__(
        self,
        features: int,
        sizes: Sequence[int],
        classes: int | None,
        *,
        sees_edges: bool,
        dropout: float = 0.0,
        bias: bool = True,
        activation: str = "relu",
    ) -> None:
        super().__init__(features, dropout)
        self.sees_edges = sees_edges
        self.activation = ACTIVATIONS[activation]
        ins = [features, *sizes[:-1]]
        self.layers = nn.ModuleList(
            nn.Linear(inside, outside, bias) for inside, outside in zip(ins, sizes, strict=True)
        )
        self.head = SquaredDistance() if classes is None else nn.Linear(sizes[-1], classes)

    def hidden(self, x: Tensor, mean: Mean) -> Tensor:
        for place, layer in enumerate(self.layers):
            if place:
                x = F.dropout(x, self.dropout, self.training)
            x = layer(x)
            x = mean(x) if self.sees_edges else x
            x = x if self.activation is None else self.activation(x)
        return x


class SquaredDistance(nn.Module):
    """2 − ‖x − y‖², the logit of an edge by the Fermi–Dirac distribution with r = 2, t = 1."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return 2 - (x - y).square().sum(-1)


def build(description: dict[str, Any]) -> GraphNetwork:
    """The network that `description` (a model's config.json) names, with new weights.

    Raises UsageError for a description that is of no network.
    """
    settings = dict(description)
    kind = settings.pop("architecture", None)
    try:
        if kind == "hybonet":
            return HyboNet(**settings)
        if kind in ("gcn", "mlp"):
            return Euclidean(**settings, sees_edges=kind == "gcn")
    except (TypeError, KeyError, ValueError) as error:
        raise UsageError(f"no network can be built of {description}: {error}") from None
    raise UsageError(f"architecture {kind!r} is none of hybonet, gcn and mlp")
