"""A power law fitted to the tail of a spectrum."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spectrain.errors import NonFiniteError, UsageError

FEWEST = 10  # eigenvalues in a tail: the error of α is a third of α − 1 then, and more is a guess
_AT_ONCE = 2**20  # numbers of a table of candidates by eigenvalues


@dataclass(frozen=True)
class Tail:
    """A power law p(λ) ∝ λ^−α for λ ≥ xmin, and how well it fits."""

    alpha: float
    xmin: float  # of the eigenvalues given
    count: int  # eigenvalues ≥ xmin
    distance: float  # Kolmogorov–Smirnov distance between tail and fit, from 0 to 1

    @property
    def error(self) -> float:
        """The standard error of α to first order, (α − 1) / √count (Clauset et al., equation 3.2)."""
        return (self.alpha - 1) / math.sqrt(self.count)


def power_law_tail(
    eigenvalues: Tensor,  # (k,), ≥ 0, of WᵀW: squared singular values
) -> Tail | None:
    """The exponent α of the tail of the eigenvalues, or None if too few differ from zero.

    Maximum likelihood, α = 1 + count / Σ ln(λ / xmin) over λ ≥ xmin, Hill's estimator (Clauset, Shalizi &
    Newman, "Power-law distributions in empirical data", 2009, equation 3.1). xmin is the eigenvalue with
    the smallest Kolmogorov–Smirnov distance between tail and fit (their section 3.3), among those with
    at least 10 eigenvalues from it upwards. For weight matrices: Martin & Mahoney, "Implicit
    self-regularization in deep neural networks", 2021. A fit says nothing about whether the tail is a
    power law: their test by simulation is not made.

    Raises UsageError unless `eigenvalues` is one-dimensional and none is negative, NonFiniteError if
    some are NaN or infinite.
    """
    if eigenvalues.ndim != 1 or (eigenvalues < 0).any():
        raise UsageError("the eigenvalues of WᵀW are needed: one dimension, none below 0")
    if not eigenvalues.isfinite().all():
        raise NonFiniteError("eigenvalues are NaN or infinite, so they have no tail")
    values = eigenvalues.detach().double().sort().values
    values = values[values > 0]
    logs = values.log()
    n = len(values)
    # One candidate for each distinct value: its first place, so that its tail holds all equal ones.
    is_first = torch.ones(n, dtype=torch.bool, device=values.device)
    is_first[1:] = values[1:] > values[:-1]
    starts = is_first.nonzero().squeeze(1)
    starts = starts[starts <= n - FEWEST]
    sums = logs.flip(0).cumsum(0).flip(0)  # of the logarithms from each place on
    counts = n - starts
    excess = sums[starts] - counts * logs[starts]  # Σ ln(λ / xmin)
    keep = excess > 1e-9 * counts  # equal values have no exponent
    starts, counts, excess = starts[keep], counts[keep], excess[keep]
    if not len(starts):
        return None
    slopes = counts / excess  # α − 1
    step = max(1, _AT_ONCE // n)
    parts = [slice(first, first + step) for first in range(0, len(starts), step)]
    distances = torch.cat([_distances(logs, starts[p], counts[p], slopes[p]) for p in parts])
    best = int(distances.argmin())
    return Tail(
        alpha=1 + float(slopes[best]),
        xmin=float(values[starts[best]]),
        count=int(counts[best]),
        distance=float(distances[best]),
    )


def _distances(logs: Tensor, starts: Tensor, counts: Tensor, slopes: Tensor) -> Tensor:
    """Kolmogorov–Smirnov distances of the tails from each of `starts` (c,) on: (c,)."""
    place = (
        torch.arange(len(logs), device=logs.device) - starts[:, None]
    )  # (c, n), from 0 in the tail
    fitted = 1 - (-slopes[:, None] * (logs - logs[starts, None])).exp()
    # The empirical distribution jumps at each value: the fit is farthest from one end of a jump.
    above = (place + 1) / counts[:, None] - fitted
    below = fitted - place / counts[:, None]
    apart: Tensor = torch.maximum(above, below).masked_fill(place < 0, 0.0).amax(1)
    return apart
