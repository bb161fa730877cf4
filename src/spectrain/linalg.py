"""Decompositions that every method shares: thin and randomised SVD, orthonormal bases.

Singular vectors are rows here, as they are stored in the layers: ``W = Uᵀ diag(s) V`` with
U (k, m), s (k,), V (k, n). Half-precision input is computed in float32, float64 stays float64.
Signs are fixed (the largest entry of each left vector is positive), so that the same matrix gives
the same factors on every process and, at a refresh, moments kept in old coordinates do not flip.
"""

import math

import torch
from torch import Tensor

from spectrain.errors import NonFiniteError


def working(matrix: Tensor) -> Tensor:
    """`matrix` in the precision that decompositions and merges are computed in: at least float32."""
    return matrix if matrix.dtype == torch.float64 else matrix.float()


def svd(
    matrix: Tensor,  # (..., m, n)
) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD with singular vectors as rows: U (..., k, m), s (..., k) descending, V (..., k, n).

    Raises NonFiniteError if `matrix` has non-finite entries. If LAPACK fails to converge, the float64
    Gram matrix of the smaller side is diagonalised instead (relative accuracy of small singular
    values falls to about 1e-8 · s_max).
    """
    a = working(matrix)
    if not a.is_meta and not torch.isfinite(a).all():
        raise NonFiniteError(
            "a weight or gradient matrix has NaN or infinite entries: nothing to decompose"
        )
    try:
        u, s, vh = torch.linalg.svd(a, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        u, s, vh = _svd_by_gram(a)
    return fix_signs(u.mT.contiguous(), s, vh.contiguous())


def _svd_by_gram(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if a.shape[-2] > a.shape[-1]:
        u, s, vh = _svd_by_gram(a.mT)
        return vh.mT, s, u.mT
    wide = a.double()
    _, u = torch.linalg.eigh(wide @ wide.mT)
    u = u.flip(-1)
    # uᵀA has orthogonal rows of length s; QR also completes the rows whose s is zero.
    q, r = torch.linalg.qr((u.mT @ wide).mT)
    s = r.diagonal(dim1=-2, dim2=-1)
    vh = (q * s.sign().where(s != 0, 1.0).unsqueeze(-2)).mT
    return u.to(a.dtype), s.abs().to(a.dtype), vh.to(a.dtype)


def fix_signs(U: Tensor, s: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same triples with the largest-magnitude entry of every row of U made positive."""
    largest = U.gather(-1, U.abs().argmax(-1, keepdim=True))
    sign = largest.sign().where(largest != 0, 1.0)
    return U * sign, s, V * sign


def randomized_basis(
    matrix: Tensor,  # (m, n)
    rank: int,
    generator: torch.Generator,
    *,
    oversampling: int = 10,
    power_iterations: int = 2,
) -> Tensor:  # (rank, m), orthonormal rows
    """Approximate leading left singular vectors (Halko, Martinsson, Tropp 2011, algorithms 4.4, 5.1)."""
    a = working(matrix)
    width = min(rank + oversampling, *a.shape)
    q = torch.linalg.qr(a @ gaussian((a.shape[1], width), generator, like=a)).Q
    for _ in range(power_iterations):
        q = torch.linalg.qr(a @ torch.linalg.qr(a.mT @ q).Q).Q
    small, s, v = svd(q.mT @ a)
    return fix_signs(small[:rank] @ q.mT, s, v[:rank])[0]


def subspace_step(
    matrix: Tensor,  # (m, n)
    basis: Tensor,  # (r, m), orthonormal rows: the basis to start from
) -> Tensor:  # (r, m), orthonormal rows
    """One step of subspace iteration on A Aᵀ from `basis`, orthonormalised by QR.

    R's diagonal is made positive, so that a basis that is already invariant returns itself.
    """
    a = working(matrix)
    q, r = torch.linalg.qr(a @ (a.mT @ basis.to(a.dtype).mT))
    sign = r.diagonal().sign()
    oriented: Tensor = q * sign.where(sign != 0, 1.0)
    return oriented.mT.contiguous()


def random_basis(rank: int, size: int, generator: torch.Generator, *, like: Tensor) -> Tensor:
    """Orthonormal rows (rank, size) spanning a uniformly random subspace."""
    if like.is_meta:
        return torch.empty(rank, size, dtype=working(like).dtype, device="meta")
    q: Tensor = torch.linalg.qr(gaussian((size, rank), generator, like=working(like))).Q
    return q.mT.contiguous()


def gaussian(shape: tuple[int, ...], generator: torch.Generator, *, like: Tensor) -> Tensor:
    """Standard normal numbers drawn on the CPU in float32: the same on every device, in any dtype."""
    return torch.randn(shape, generator=generator, dtype=torch.float32).to(like)


def kaiming_uniform(shape: tuple[int, int], generator: torch.Generator, *, like: Tensor) -> Tensor:
    """U(−1/√n, 1/√n) for shape (r, n): Kaiming-uniform with a = √5, the field's start for A."""
    if like.is_meta:
        return torch.empty(shape, dtype=working(like).dtype, device="meta")
    bound = 1 / math.sqrt(shape[1])
    draw = torch.rand(shape, generator=generator, dtype=torch.float32)
    scaled: Tensor = (2 * draw - 1) * bound
    return scaled.to(working(like))
