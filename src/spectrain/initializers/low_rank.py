"""Starts for two thin factors that are all of W, or most of it."""

import math

import torch
from torch import Tensor

from spectrain.abstract import is_abstract
from spectrain.linalg import kaiming_uniform, svd, uniform, working
from spectrain.parametrizations.distilled import Distilled
from spectrain.parametrizations.low_rank import LowRankProduct
from spectrain.parametrizations.low_rank_columns import LowRankColumns
from spectrain.parametrizations.low_rank_sparse import LowRankSparse


@torch.no_grad()
def kaiming_product(layer: LowRankProduct, generator: torch.Generator) -> None:
    """A ~ U(−1/√n, 1/√n) and B ~ U(−1/√r, 1/√r): W has a third of the variance of nn.Linear's start."""
    layer.A.copy_(kaiming_uniform((layer.rank, layer.in_features), generator, like=layer.A))
    layer.B.copy_(kaiming_uniform((layer.out_features, layer.rank), generator, like=layer.B))


def balanced_halves(
    U: Tensor,  # (k, m)
    s: Tensor,  # (k,) descending
    V: Tensor,  # (k, n)
    rank: int,
) -> tuple[Tensor, Tensor]:  # B (m, r), A (r, n)
    """U Σ^½ and Σ^½ Vᵀ of the r largest singular triples: B A is the best approximation of rank r."""
    root = s[:rank].sqrt()[:, None]
    return (U[:rank] * root).mT, V[:rank] * root


@torch.no_grad()
def truncated_svd(
    layer: LowRankProduct | LowRankSparse | Distilled, weight: Tensor, scale: float = 1.0
) -> None:
    """scale · B A is the best approximation of `weight` of the layer's rank, shared out evenly."""
    B, A = balanced_halves(*svd(working(weight) / scale), layer.A.shape[0])
    layer.B.copy_(B)
    layer.A.copy_(A)


@torch.no_grad()
def random_places(layer: LowRankSparse, generator: torch.Generator) -> None:
    """B = 0, A ~ U(−1/√n, 1/√n), and entries ~ U(−1/√n, 1/√n) at random places (Han et al. 2024)."""
    m, n, entries = layer.out_features, layer.in_features, len(layer.values)
    layer.A.copy_(kaiming_uniform((layer.A.shape[0], n), generator, like=layer.A))
    if is_abstract(layer.values):
        return
    layer.places.copy_(torch.randperm(m * n, generator=generator)[:entries].sort().values)
    layer.values.copy_(uniform((entries,), 1 / math.sqrt(n), generator, like=layer.values))


@torch.no_grad()
def largest_left(layer: LowRankSparse, weight: Tensor) -> None:
    """The best approximation of `weight`, and beside it the largest entries of what it leaves."""
    truncated_svd(layer, weight, layer.scale)
    left = (working(weight) - layer.dense()).flatten()
    places = left.abs().topk(len(layer.values)).indices.sort().values
    layer.places.copy_(places)
    layer.values.copy_(left[places])


@torch.no_grad()
def complementary_columns(layer: LowRankColumns, weight: Tensor, complement: int) -> None:
    """B A is the best approximation of `weight`; the columns are `weight`'s, where it misses the most.

    What it misses is judged by the next `complement` singular triples: channel j scores
    ‖(Σ σᵢ uᵢ vᵢᵀ)ⱼ‖ = √(Σ (σᵢ vᵢⱼ)²) over them (Li et al. 2025).
    """
    W, rank = working(weight), layer.A.shape[0]
    U, s, V = svd(W)
    B, A = balanced_halves(U, s, V, rank)
    layer.B.copy_(B)
    layer.A.copy_(A)
    rest = slice(rank, rank + complement)
    scores = (V[rest] * s[rest, None]).square().sum(0)
    chosen = scores.topk(len(layer.channels)).indices.sort().values
    layer.channels.copy_(chosen)
    layer.columns.copy_(W[:, chosen])
