"""Decompositions that every method shares: thin and randomised SVD, orthonormal bases.

Singular vectors are rows here, as they are stored in the layers: ``W = Uᵀ diag(s) V`` with
U (k, m), s (k,), V (k, n). Half-precision input is computed in float32, float64 stays float64.
Signs are fixed (the largest entry of each left vector is positive), so that the same matrix gives
the same factors on every process and, at a refresh, moments kept in old coordinates do not flip.
"""

import math
import warnings

import torch
from torch import Tensor

from spectrain.abstract import is_abstract
from spectrain.errors import NonFiniteError, SpectrainWarning


def working(matrix: Tensor) -> Tensor:
    """`matrix` in the precision that decompositions and merges are computed in: at least float32."""
    return matrix if matrix.dtype == torch.float64 else matrix.float()


def svd(
    matrix: Tensor,  # (..., m, n)
) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD with singular vectors as rows: U (..., k, m), s (..., k) descending, V (..., k, n).

    LAPACK's, of the taller of `matrix` and its transpose: wide matrices take up to twice as long,
    and no cheaper way was as accurate (benchmarks/decompositions.py). If it fails to converge, the
    float64 Gram matrix of the shorter side is diagonalised instead (singular values right to about
    1e-8 · s_max), and a warning says so. Raises NonFiniteError if `matrix` has non-finite entries.
    """
    a = _finite(matrix)
    is_wide = a.shape[-2] < a.shape[-1]
    tall = a.mT if is_wide else a
    try:
        left, s, right = torch.linalg.svd(tall, full_matrices=False)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        _say_fallback("the SVD", tall, error, "its float64 Gram matrix is diagonalised instead")
        left, s, right = _svd_by_gram(tall)
    U, V = (right, left.mT) if is_wide else (left.mT, right)
    return fix_signs(U.contiguous(), s, V.contiguous())


def _finite(matrix: Tensor) -> Tensor:
    a = working(matrix)
    if not is_abstract(a) and not torch.isfinite(a).all():
        raise NonFiniteError(
            "a weight or gradient matrix has NaN or infinite entries: nothing to decompose"
        )
    return a


def _say_fallback(what: str, matrix: Tensor, error: Exception, instead: str) -> None:
    reason = str(error).splitlines()[0]
    shape = " × ".join(map(str, matrix.shape))
    warnings.warn(f"{what} of {shape} failed ({reason}); {instead}", SpectrainWarning, stacklevel=3)


def _svd_by_gram(tall: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a = tall.double()
    _, v = torch.linalg.eigh(a.mT @ a)
    # The columns of a v are orthogonal, of length s; QR also completes those whose s is zero.
    q, r = torch.linalg.qr(a @ v.flip(-1))
    s, order = r.diagonal(dim1=-2, dim2=-1).abs().sort(descending=True)
    q, v = (
        basis.take_along_dim(order.unsqueeze(-2), dim=-1) for basis in (q * _signs(r), v.flip(-1))
    )
    return q.to(tall.dtype), s.to(tall.dtype), v.mT.to(tall.dtype)


def _signs(r: Tensor) -> Tensor:
    """The signs (..., 1, k) that make the diagonal of R (..., k, k) positive."""
    diagonal = r.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
    signs: Tensor = diagonal.sign().where(diagonal != 0, 1.0)
    return signs


def _row_signs(U: Tensor) -> Tensor:
    """The signs (..., k, 1) that make the largest-magnitude entry of every row of U positive."""
    largest = U.gather(-1, U.abs().argmax(-1, keepdim=True))
    signs: Tensor = largest.sign().where(largest != 0, 1.0)
    return signs


def fix_signs(U: Tensor, s: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same triples with the largest-magnitude entry of every row of U made positive."""
    sign = _row_signs(U)
    return U * sign, s, V * sign


def leading_basis(
    matrix: Tensor,  # (..., m, n)
    rank: int,
) -> Tensor:  # (..., rank, m), orthonormal rows
    """The leading left singular vectors, in the order of their singular values.

    Eigenvectors of the float32 Gram matrix of the shorter side: a third to a half of an SVD's time
    (benchmarks/decompositions.py). Squaring blurs directions by about eps · (s₁ / s_r)², so the SVD
    serves where s_r < s₁ / 100, and for float64, which is there for comparisons to the last digit.
    Raises NonFiniteError as `svd` does.
    """
    a = _finite(matrix)
    if a.dtype == torch.float64:
        return svd(a)[0][..., :rank, :]
    largest = a.abs().amax((-2, -1), keepdim=True)
    scaled = a / largest.where(largest != 0, 1.0)  # squares of small gradients underflow
    is_tall = a.shape[-2] > a.shape[-1]
    gram = scaled.mT @ scaled if is_tall else scaled @ scaled.mT
    try:
        squares, vectors = torch.linalg.eigh(gram)  # ascending
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        _say_fallback("the Gram matrix", a, error, "an SVD is taken instead")
        return svd(a)[0][..., :rank, :]
    if not is_abstract(a) and (squares[..., -rank] < 1e-4 * squares[..., -1]).any():
        return svd(a)[0][..., :rank, :]
    basis = vectors[..., -rank:].flip(-1)
    if is_tall:
        basis = torch.linalg.qr(scaled @ basis).Q
    rows: Tensor = basis.mT.contiguous()
    return rows * _row_signs(rows)


def randomized_svd(
    matrix: Tensor,  # (m, n)
    rank: int,
    generator: torch.Generator,
    *,
    oversampling: int = 10,
    power_iterations: int = 2,
) -> tuple[Tensor, Tensor, Tensor]:  # U (rank, m), s (rank,) descending, V (rank, n)
    """Approximate leading triples (Halko, Martinsson, Tropp 2011, algorithms 4.4, 5.1)."""
    a = working(matrix)
    width = min(rank + oversampling, *a.shape)
    q = torch.linalg.qr(a @ gaussian((a.shape[1], width), generator, like=a)).Q
    for _ in range(power_iterations):
        q = torch.linalg.qr(a @ torch.linalg.qr(a.mT @ q).Q).Q
    small, s, v = svd(q.mT @ a)
    return fix_signs(small[:rank] @ q.mT, s[:rank], v[:rank])


def subspace_step(
    matrix: Tensor,  # (m, n)
    basis: Tensor,  # (r, m), orthonormal rows: the basis to start from
    *,
    probes: int = 8,
) -> Tensor:  # (r, m), orthonormal rows
    """One step of subspace iteration on A Aᵀ from `basis` and a few random directions.

    The r leading of the r + `probes` directions that come out are kept (Rayleigh-Ritz), turned
    within their span towards the old basis: one that is already invariant returns itself, so that
    moments may stay in its coordinates. Without the probes, a direction that `basis` is orthogonal
    to would never be found, however strong.
    """
    a = working(matrix)
    old = basis.to(a.dtype).mT
    rank, width = basis.shape[0], min(basis.shape[0] + probes, *a.shape)
    # The same probes every time do: what they find depends on A, and nothing has to be restored.
    seeded = torch.Generator().manual_seed(0)
    random = gaussian((a.shape[0], width - rank), seeded, like=a)
    image = a.mT @ torch.cat((old, random), dim=1)
    largest = image.abs().amax()
    image = image / largest.where(largest != 0, 1.0)  # squares of small gradients underflow
    q = torch.linalg.qr(a @ image).Q
    leading = q @ leading_basis(q.mT @ a, rank).mT
    turn, r = torch.linalg.qr(leading.mT @ old)
    turned: Tensor = leading @ (turn * _signs(r))
    return turned.mT.contiguous()


def random_basis(rank: int, size: int, generator: torch.Generator, *, like: Tensor) -> Tensor:
    """Orthonormal rows (rank, size) spanning a uniformly random subspace."""
    if like.is_meta:
        return torch.empty(rank, size, dtype=working(like).dtype, device="meta")
    q: Tensor = torch.linalg.qr(gaussian((size, rank), generator, like=working(like))).Q
    return q.mT.contiguous()


def cosine_basis(size: int, *, like: Tensor) -> Tensor:  # (size, size), orthonormal rows
    """The orthonormal DCT-II: row k is c_k cos(π(2j + 1)k / 2N), c₀ = √(1/N), all other c = √(2/N).

    Computed in float64 on the CPU: the same on every device, in any dtype.
    """
    j = torch.arange(size, dtype=torch.float64, device="cpu")
    rows = torch.cos(math.pi / (2 * size) * torch.outer(j, 2 * j + 1)) * math.sqrt(2 / size)
    rows[0] *= math.sqrt(0.5)
    return rows.to(like)


def gaussian(shape: tuple[int, ...], generator: torch.Generator, *, like: Tensor) -> Tensor:
    """Standard normal numbers drawn on the CPU in float32: the same on every device, in any dtype."""
    return torch.randn(shape, generator=generator, dtype=torch.float32).to(like)


def kaiming_uniform(shape: tuple[int, int], generator: torch.Generator, *, like: Tensor) -> Tensor:
    """U(−1/√n, 1/√n) for shape (r, n): Kaiming-uniform with a = √5, the field's start for A."""
    return uniform(shape, 1 / math.sqrt(shape[1]), generator, like=like)


def uniform(
    shape: tuple[int, ...], bound: float, generator: torch.Generator, *, like: Tensor
) -> Tensor:
    """U(−bound, bound), drawn on the CPU in float32: the same on every device, in any dtype."""
    if like.is_meta:
        return torch.empty(shape, dtype=working(like).dtype, device="meta")
    draw = torch.rand(shape, generator=generator, dtype=torch.float32)
    scaled: Tensor = (2 * draw - 1) * bound
    return scaled.to(working(like))


def orthogonality_error(
    rows: Tensor,  # (r, n)
    others: Tensor | None = None,  # (k - r, n)
) -> Tensor:
    """The largest entry of |Q rowsᵀ − I|, with Q these rows and the others: 0 for orthonormal ones.

    2 r k n operations, for the 2 k² n that all of Q Qᵀ would take.
    """
    a = working(rows.detach())
    own = a @ a.mT
    own.diagonal().sub_(1.0)
    largest = own.abs().amax()
    if others is not None and others.numel():
        largest = torch.maximum(largest, (working(others.detach()) @ a.mT).abs().amax())
    return largest
