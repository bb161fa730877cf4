"""Starts for the additive form with pools of candidates."""

import math

import torch

from spectrain.linalg import uniform
from spectrain.parametrizations.switched import Switched


@torch.no_grad()
def uniform_pools(layer: Switched, generator: torch.Generator) -> None:
    """SwitchLoRA's start (Zhou et al. 2024): all candidates random, W as it was.

    Pool vectors are U(−√3 σ, √3 σ) with σ_A = (r √m / n^{3/2})^{1/4} g^{1/2} for A's and, for B's,
    σ_B = (r / √(mn))^{1/4} g^{1/2}. g = 1/√3, so that entries of B A / r have the deviation 1/√(3n) of
    torch's own start. The first r of each pool are loaded, and their product leaves W₀.
    """
    m, n, r, gain = layer.out_features, layer.in_features, layer.rank, 1 / math.sqrt(3)
    deviations = {
        "row_pool": (r * math.sqrt(m) / n**1.5) ** 0.25 * math.sqrt(gain),
        "column_pool": (r / math.sqrt(m * n)) ** 0.25 * math.sqrt(gain),
    }
    for name, deviation in deviations.items():
        pool = layer.hosted[name]
        pool.copy_(uniform(tuple(pool.shape), math.sqrt(3) * deviation, generator, like=pool))
    if not layer.row_pool.is_meta:
        layer.load_slots()
