"""Pruning of singular values: which of them a matrix keeps, and what is left of it.

The pruning of Zhao et al. 2025 (Sparse Spectral Training, figure 5): the largest singular values of a
trained matrix stay, up to a share of the sum of all. The paper prunes each matrix by itself; one
threshold for all of them together is the other choice here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from spectrain.diagnostics.spectrum import Eigen
from spectrain.errors import UsageError

BY = ("layer", "all")
ROUNDING = 1e-12  # of a sum of singular values: a share that is reached but for this is reached


@dataclass(frozen=True)
class Pruning:
    """How much is kept: a share of the sum of singular values, of every layer or of all together."""

    share: float
    by: str = "layer"

    def __post_init__(self) -> None:
        """Raises UsageError unless 0 < share ≤ 1 and `by` is layer or all."""
        if not 0 < self.share <= 1:
            hint = f" ({self.share:g} % is {self.share / 100:g})" if 10 <= self.share <= 100 else ""
            raise UsageError(
                f"--prune {self.share:g}: give the share of the singular values' sum to keep, above 0 and "
                f"up to 1{hint}"
            )
        if self.by not in BY:
            raise UsageError(f"--prune-by {self.by}: give {' or '.join(BY)}")

    def ranks(
        self,
        spectra: Mapping[str, Tensor],  # of each layer: (k,), descending
    ) -> dict[str, int]:
        """How many singular values every layer keeps.

        By layer: the smallest r with s₁ + … + s_r ≥ share · Σs. By all: those of at least τ, the
        largest threshold at which the values kept of all layers together reach that share; a layer whose
        values are all smaller keeps none. Zeros are never kept.
        """
        if self.by == "layer":
            return {name: _reach(s, self.share) for name, s in spectra.items()}
        joined = torch.cat(list(spectra.values())).sort(descending=True).values
        count = _reach(joined, self.share)
        if not count:
            return dict.fromkeys(spectra, 0)
        return {name: int((s >= joined[count - 1]).sum()) for name, s in spectra.items()}


def _reach(s: Tensor, share: float) -> int:
    """How many of the descending s it takes to reach `share` of their sum."""
    positive = int(s.count_nonzero())
    if share == 1 or not positive:
        return positive
    sums = s.cumsum(0)
    return min(positive, int((sums < (share - ROUNDING) * sums[-1]).sum()) + 1)


def truncated(
    matrix: Tensor,  # (m, n)
    rank: int,
) -> Tensor:  # (m, n), of the same dtype
    """The best approximation of rank `rank`, U_r diag(s_r) V_rᵀ (Eckart & Young 1936).

    Computed in float64 and rounded once. Where no singular value but zeros would be left out, it is
    `matrix` itself. Raises as `diagnostics.singular_values` does.
    """
    eigen = Eigen(matrix)
    if rank >= eigen.rank:
        return matrix
    scaled = eigen.left(rank) * eigen.values[:rank]
    return (scaled @ eigen.right(rank).mT).to(matrix.dtype)


def thin_factors(
    matrix: Tensor,  # (m, n)
    rank: int,
) -> tuple[Tensor, Tensor]:  # (m, rank) and (rank, n), of the same dtype
    """Two matrices whose product is `truncated(matrix, rank)` to rounding.

    Each has the roots of the singular values, U_r √s_r and √s_r V_rᵀ, so that both are of one size, which
    half precision needs. Raises as `diagnostics.singular_values` does.
    """
    eigen = Eigen(matrix)
    kept = min(rank, eigen.rank)
    roots = eigen.values[:kept].sqrt()
    left, right = eigen.left(kept) * roots, (eigen.right(kept) * roots).mT
    missing = rank - kept  # of a value at the edge of zero, which counts by one algorithm alone
    left = torch.nn.functional.pad(left, (0, missing))
    right = torch.nn.functional.pad(right, (0, 0, 0, missing))
    return left.to(matrix.dtype).contiguous(), right.to(matrix.dtype).contiguous()


def thin_is_smaller(rank: int, shape: tuple[int, int]) -> bool:
    """Whether r (m + n) < m n: two factors have fewer numbers, and need fewer operations, than W."""
    return rank * sum(shape) < math.prod(shape)


def relative_change(
    spectrum: Tensor,  # (k,), descending
    rank: int,
) -> float:
    """‖W − W_r‖_F / ‖W‖_F = √(Σ_{i > r} s_i² / Σ s_i²); 0 for a zero matrix."""
    whole = spectrum.norm()
    return float(spectrum[rank:].norm() / whole) if whole else 0.0
