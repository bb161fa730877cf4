"""Which r of k singular triples train in the next iteration."""

import math

import torch
from torch import Tensor

from spectrain.abstract import is_abstract

SCHEMES = ("mixture", "magnitude", "uniform", "sequential", "top")


@torch.no_grad()
def draw(
    scheme: str,  # one of SCHEMES
    s: Tensor,  # (k,) singular values
    count: int,  # r
    generator: torch.Generator,
    sampled_at: Tensor | None = None,  # (k,) when each triple was last active, for "sequential"
) -> Tensor:  # (r,) distinct positions
    """Positions drawn without replacement (Zhao et al. 2025, equations 5 and 16).

    "mixture" draws with p(i) = ½ (1/k + s_i / Σ s), "magnitude" with s_i / Σ s, "uniform" with 1/k;
    "sequential" takes those that waited longest, so all are taken before any is repeated; "top"
    takes the largest. The draw is made on the CPU, the same on every device.
    """
    if is_abstract(s) or scheme == "top":
        return s.argsort(descending=True)[:count]
    if scheme == "sequential" and sampled_at is not None:
        return sampled_at.argsort(stable=True)[:count]
    share = {"mixture": 0.5, "magnitude": 1.0, "uniform": 0.0}[scheme]
    weights = s.double().cpu()
    total = weights.sum()
    uniform = torch.full_like(weights, 1 / len(weights))
    by_magnitude = weights / total if 0 < total < math.inf else uniform
    # The floor lets r triples be drawn where fewer than r singular values are positive.
    p = (share * by_magnitude + (1 - share) * uniform).clamp_(min=1e-12)
    return torch.multinomial(p, count, generator=generator).to(s.device)
