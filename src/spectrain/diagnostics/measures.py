"""All measures of one matrix, of its change, and of every matrix of a model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from spectrain.diagnostics.matrices import matrices
from spectrain.diagnostics.ranks import (
    effective_rank,
    participation_ratio,
    rank_at_energy,
    stable_rank,
)
from spectrain.diagnostics.spectrum import Eigen, require_matrix, singular_values
from spectrain.diagnostics.subspaces import intruder_dimensions, principal_angles
from spectrain.diagnostics.tail import Tail, power_law_tail
from spectrain.errors import UsageError
from spectrain.linalg import working

RANK = 16  # of the subspaces that are compared, unless another is asked for


@dataclass(frozen=True)
class Measures:
    """What the spectrum of one matrix W (m, n) says; sources stand at the functions of these names."""

    shape: tuple[int, int]
    singular_values: tuple[float, ...]  # min(m, n) of them, descending
    frobenius_norm: float
    spectral_norm: float
    stable_rank: float
    effective_rank: float
    participation_ratio: float
    rank_90: int  # of 90 % of the energy
    rank_99: int
    tail: Tail | None  # of the eigenvalues of WᵀW; None if too few differ from zero

    @property
    def size(self) -> int:
        """min(m, n), the largest possible rank."""
        return min(self.shape)


@dataclass(frozen=True)
class Difference:
    """What happened to a matrix from W to W'."""

    update: Measures  # of ΔW = W' − W
    relative_change: float  # ‖ΔW‖_F / ‖W‖_F; infinite if W = 0 is left
    norm_change: float  # ‖W'‖_F / ‖W‖_F − 1; likewise
    left_angles: tuple[float, ...]  # principal angles in radians, ascending
    right_angles: tuple[float, ...]
    left_intruders: tuple[int, ...]  # places, from 0, among the leading singular vectors of W'
    right_intruders: tuple[int, ...]


def measure(matrix: Tensor) -> Measures:
    """All measures of W (m, n). Raises as `singular_values` does."""
    return _measures(matrix, singular_values(matrix))


def compare(trained: Tensor, base: Tensor, rank: int = RANK) -> tuple[Measures, Difference]:
    """The measures of W' = `trained` (m, n), and what is between it and W = `base` (m, n).

    rank: of the leading subspaces whose principal angles are taken, or less where W or W' has less.
    ΔW is formed in the wider of both dtypes, and at least in float32: rounding of the stored weights
    is part of it. Raises UsageError if the shapes differ or `rank` is below 1, and as `singular_values`
    does.
    """
    for matrix in (trained, base):
        require_matrix(matrix)
    if trained.shape != base.shape:
        shapes = " and ".join(" × ".join(map(str, m.shape)) for m in (trained, base))
        raise UsageError(f"two matrices of one shape are needed, not {shapes}")
    if rank < 1:
        raise UsageError(f"rank={rank}: compare subspaces of at least 1 dimension")
    after, before = Eigen(trained), Eigen(base)
    common = min(rank, after.rank, before.rank)
    left = principal_angles(before.left(common), after.left(common))
    right = principal_angles(before.right(common), after.right(common))
    old, new = _norm(before.values), _norm(after.values)
    update = measure(working(trained) - working(base))
    return _measures(trained, after.values), Difference(
        update=update,
        relative_change=_ratio(update.frobenius_norm, old),
        norm_change=_ratio(new - old, old),
        left_angles=tuple(left.tolist()),
        right_angles=tuple(right.tolist()),
        left_intruders=tuple(intruder_dimensions(after, before)),
        right_intruders=tuple(intruder_dimensions(after, before, side="right")),
    )


def measure_model(model: nn.Module) -> dict[str, Measures]:
    """`measure` of every matrix of `model`, by name (`matrices` says which). Raises as `measure` does."""
    return {name: measure(matrix) for name, matrix in matrices(model)}


def _measures(matrix: Tensor, s: Tensor) -> Measures:
    rows, columns = matrix.shape
    return Measures(
        shape=(rows, columns),
        singular_values=tuple(s.tolist()),
        frobenius_norm=_norm(s),
        spectral_norm=float(s[0]),
        stable_rank=stable_rank(s),
        effective_rank=effective_rank(s),
        participation_ratio=participation_ratio(s),
        rank_90=rank_at_energy(s, 0.90),
        rank_99=rank_at_energy(s, 0.99),
        tail=power_law_tail(s.square()),
    )


def _norm(s: Tensor) -> float:
    return float(s.norm())


def _ratio(part: float, whole: float) -> float:
    if whole:
        return part / whole
    return float("inf") if part else 0.0
