"""How many directions a matrix uses, by four conventions.

Each function takes a matrix (m, n) or, where they are known already, its singular values (k,) in any order.
A zero matrix has rank 0 by all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectrain.diagnostics.spectrum import singular_values
from spectrain.errors import NonFiniteError, UsageError


def stable_rank(matrix: Tensor) -> float:
    """‖W‖_F² / ‖W‖₂² = Σs² / s₁²: at most the rank, and little moved by small singular values.

    Rudelson & Vershynin, "Sampling from large matrices: an approach through geometric functional
    analysis", 2007 ("numerical rank" there). Raises as `singular_values` does.
    """
    squares = _relative(matrix).square()
    return float(squares.sum())


def effective_rank(matrix: Tensor) -> float:
    """exp(−Σ p ln p) with p = s / Σs: the exponential of the entropy of the normalised singular values.

    Roy & Vetterli, "The effective rank: a measure of effective dimensionality", 2007. The singular values
    themselves are normalised there, not their squares. Raises as `singular_values` does.
    """
    s = _relative(matrix)
    if not s.any():
        return 0.0
    p = s / s.sum()
    return float(torch.special.entr(p).sum().exp())


def participation_ratio(matrix: Tensor) -> float:
    """(Σs²)² / Σs⁴, the participation ratio of the eigenvalues λ = s² of WᵀW: (Σλ)² / Σλ².

    That of Gao et al., "A theory of multineuronal dimensionality, dynamics and measurement", 2017, where λ
    are the eigenvalues of a covariance matrix; a convention with s in the place of λ gives larger numbers.
    Raises as `singular_values` does.
    """
    squares = _relative(matrix).square()
    if not squares.any():
        return 0.0
    return float(squares.sum().square() / squares.square().sum())


def rank_at_energy(matrix: Tensor, share: float) -> int:
    """The smallest r with s₁² + … + s_r² ≥ share · ‖W‖_F²: the rank that keeps this share of the energy.

    1 − share is the squared relative error of the best approximation of rank r (Eckart & Young 1936).
    Raises UsageError unless 0 < share ≤ 1, and as `singular_values` does.
    """
    if not 0 < share <= 1:
        raise UsageError(f"share={share}: give a share of the energy above 0 and up to 1")
    squares = _relative(matrix).square().sort(descending=True).values
    total = squares.cumsum(0)
    if not squares.any():
        return 0
    return int((total < share * total[-1]).sum()) + 1


def _relative(matrix: Tensor) -> Tensor:
    """Singular values over the largest one, in float64, so that no square over- or underflows."""
    s = singular_values(matrix) if matrix.ndim != 1 else matrix.detach().double()
    if not s.numel():
        raise UsageError("there are no singular values")
    if not s.isfinite().all():
        raise NonFiniteError("singular values are NaN or infinite")
    largest = s.amax()
    return s / largest if largest > 0 else s
