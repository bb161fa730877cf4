"""What stands on top: scores of pairs, logits of classes, and their losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrain.hyperbolic.embedding import points
from spectrain.hyperbolic.lorentz import squared_distance


class LorentzClassifier(nn.Module):
    """logit of class c = −d²(x, p_c) + b_c, with a point p_c of the manifold for each class.

    Chen et al. (2021, section 3.4), d² = 2/K − 2⟨x, p⟩. The points take Riemannian steps.
    """

    def __init__(self, features: int, classes: int, *, curvature: float = -1.0) -> None:
        super().__init__()
        self.curvature = curvature
        self.points = points(classes, features, curvature=curvature, deviation=1 / features**0.5)
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(
        self,
        x: Tensor,  # (…, features)
    ) -> Tensor:  # (…, classes)
        turned = 2 * torch.cat((-x[..., :1], x[..., 1:]), -1)  # x is smaller than the logits are
        return F.linear(turned, self.points, self.bias - 2 / self.curvature)


class DistanceDecoder(nn.Module):
    """Score of a pair: −d²(x, y) = 2⟨x, y⟩ − 2/K, at most 0."""

    def __init__(self, *, curvature: float = -1.0) -> None:
        super().__init__()
        self.curvature = curvature

    def forward(
        self,
        x: Tensor,  # (…, features)
        y: Tensor,  # (…, features)
    ) -> Tensor:  # (…)
        return -squared_distance(x, y, self.curvature)


class FermiDirac(nn.Module):
    """Logit of an edge by the Fermi–Dirac distribution: p = σ((r − d²)/t) (Chami et al. 2019, eq. 11)."""

    def __init__(self, r: float = 2.0, t: float = 1.0, *, curvature: float = -1.0) -> None:
        super().__init__()
        self.r, self.t, self.curvature = r, t, curvature

    def forward(
        self,
        x: Tensor,  # (…, features)
        y: Tensor,  # (…, features)
    ) -> Tensor:  # (…), the logit of p
        return (self.r - squared_distance(x, y, self.curvature)) / self.t


def class_hinge(
    logits: Tensor,  # (N, C)
    labels: Tensor,  # (N,)
    margin: float,
) -> Tensor:
    """Mean over nodes and classes of max(0, margin − logit_true + logit_class).

    The true class counts, too, with the constant `margin`, as in HyboNet's code.
    """
    true = logits.gather(-1, labels[:, None])
    return F.relu(margin - true + logits).mean()


def pair_hinge(
    positive: Tensor,  # (P,) scores of edges
    negative: Tensor,  # (P,) scores of pairs without one
    margin: float,
) -> Tensor:
    """Mean of max(0, margin − positive + negative), each edge against one pair."""
    return F.relu(margin - positive + negative).mean()


def pair_cross_entropy(
    positive: Tensor,  # (P,) logits of edges
    negative: Tensor,  # (Q,) logits of pairs without one
) -> Tensor:
    """Mean of −log p over edges and of −log(1 − p) over the others, added."""
    return F.softplus(-positive).mean() + F.softplus(negative).mean()
