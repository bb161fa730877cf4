"""Singular values, and singular vectors where they are asked for, from the float64 Gram matrix."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from spectrain.errors import NonFiniteError, UsageError

BLOCK = 2**22  # numbers converted to float64 at a time: a large embedding is never copied whole


def singular_values(
    matrix: Tensor,  # (m, n)
) -> Tensor:  # (min(m, n),), float64, descending
    """The singular values of W, as roots of the eigenvalues of its smaller Gram matrix in float64.

    The eigenvalues are right to about ε·s₁² (ε = 2.2e-16), hence a singular value s to about ε·s₁²/s: large
    ones to rounding, the smallest to √ε·s₁, 1e-8 of the largest. What lies below √(ε·min(m, n))·s₁ cannot
    be told from zero and is returned as 0. Raises UsageError if `matrix` is no matrix of floating-point
    numbers or has no entries, NonFiniteError if some are NaN or infinite.
    """
    gram, scale = _gram(matrix)
    return _roots(torch.linalg.eigvalsh(gram)) * scale


class Eigen:
    """Singular values and vectors of one W (m, n), by the eigenvectors of its smaller Gram matrix.

    Vectors of the longer side are formed when they are asked for, as many as are asked for: W v / s.
    A triple whose singular value counts as 0 (see `singular_values`) is left out of all of them, since
    its vectors are arbitrary; `rank` is the number of those that stay.
    """

    values: Tensor
    _short: Tensor

    def __init__(self, matrix: Tensor) -> None:
        """Raises as `singular_values` does."""
        gram, scale = _gram(matrix)
        eigenvalues, vectors = torch.linalg.eigh(gram)
        self.matrix = matrix
        self.values = _roots(eigenvalues) * scale  # (min(m, n),), descending
        self.rank = int(self.values.count_nonzero())
        self._short = vectors.flip(-1)[:, : self.rank]  # (min(m, n), rank)

    def left(self, count: int) -> Tensor:
        """The leading left singular vectors as columns: (m, min(count, rank)), float64."""
        return self._vectors(count, is_short=self.matrix.shape[0] <= self.matrix.shape[1])

    def right(self, count: int) -> Tensor:
        """The leading right singular vectors as columns: (n, min(count, rank)), float64."""
        return self._vectors(count, is_short=self.matrix.shape[0] > self.matrix.shape[1])

    def along_left(self, vectors: Tensor) -> Tensor:
        """Uᵀ X for all `rank` left singular vectors U and columns X (m, c): (rank, c)."""
        if self.matrix.shape[0] <= self.matrix.shape[1]:
            return self._short.mT @ vectors
        # U = W V S⁻¹ is never formed: for an embedding it would be as large as the matrix.
        return self._short.mT @ _product(self.matrix.mT, vectors) / self.values[: self.rank, None]

    def along_right(self, vectors: Tensor) -> Tensor:
        """Vᵀ X for all `rank` right singular vectors V and columns X (n, c): (rank, c)."""
        if self.matrix.shape[0] > self.matrix.shape[1]:
            return self._short.mT @ vectors
        return self._short.mT @ _product(self.matrix, vectors) / self.values[: self.rank, None]

    def _vectors(self, count: int, *, is_short: bool) -> Tensor:
        basis = self._short[:, :count]
        if is_short:
            return basis
        is_tall = self.matrix.shape[0] > self.matrix.shape[1]
        image = _product(self.matrix if is_tall else self.matrix.mT, basis)
        return image / self.values[: basis.shape[1]]


def require_matrix(matrix: Tensor) -> None:
    """Raise UsageError unless `matrix` is two-dimensional, of floating-point numbers, with entries."""
    if matrix.ndim != 2 or not matrix.is_floating_point() or not matrix.numel():
        shape = " × ".join(map(str, matrix.shape)) or "no dimensions"
        raise UsageError(
            f"a matrix of floating-point numbers is needed, not {shape} of {matrix.dtype}; "
            "diagnostics.as_matrix flattens the weight of a convolution"
        )


def _gram(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(the Gram matrix of the smaller side of W / scale, scale): squares neither overflow nor vanish."""
    require_matrix(matrix)
    matrix = matrix.detach()
    largest = torch.stack([block.abs().amax() for block in _blocks(matrix)]).amax()
    if not largest.isfinite():
        raise NonFiniteError("a matrix has NaN or infinite entries, so it has no spectrum")
    scale = largest.where(largest != 0, 1.0)
    tall = matrix if matrix.shape[0] > matrix.shape[1] else matrix.mT
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=tall.device)
    for block in _blocks(tall):
        block = block / scale
        gram.addmm_(block.mT, block)
    return gram, scale


def _product(matrix: Tensor, vectors: Tensor) -> Tensor:
    return torch.cat([block @ vectors for block in _blocks(matrix)])


def _blocks(matrix: Tensor) -> Iterator[Tensor]:
    """The rows in float64, as many at a time as have `BLOCK` numbers."""
    for rows in torch.split(matrix, max(1, BLOCK // matrix.shape[1])):
        yield rows.double()


def _roots(eigenvalues: Tensor) -> Tensor:
    """Square roots of ascending eigenvalues, descending; 0 for what rounding alone may have made."""
    squares = eigenvalues.flip(-1)
    floor = torch.finfo(squares.dtype).eps * len(squares) * squares[0]
    return squares.where(squares > floor, 0.0).sqrt()
