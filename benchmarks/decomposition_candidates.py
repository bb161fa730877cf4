"""The ways to decompose that decompositions.py compares; singular vectors are rows throughout."""

from collections.abc import Callable

import torch
from galore_torch.galore_projector import GaLoreProjector
from torch import Tensor

from spectrain.linalg import leading_basis, randomized_svd, subspace_step, svd

Triples = tuple[Tensor, Tensor, Tensor]


def lapack(W: Tensor) -> Triples:
    U, s, V = torch.linalg.svd(W, full_matrices=False)
    return U.mT, s, V


def on_the_shorter_side(decompose: Callable[[Tensor], Triples]) -> Callable[[Tensor], Triples]:
    def either(W: Tensor) -> Triples:
        if W.shape[0] <= W.shape[1]:
            return decompose(W)
        V, s, U = decompose(W.mT)
        return U, s, V

    return either


def eigenvectors(W: Tensor) -> Tensor:
    """Of W Wᵀ, as rows, those of the largest eigenvalues first."""
    return torch.linalg.eigh(W @ W.mT).eigenvectors.flip(-1).mT


def gram(W: Tensor) -> Triples:
    U = eigenvectors(W)
    rows = U @ W
    s = rows.norm(dim=1)
    return U, s, rows / s[:, None]


def gram_in_float64(W: Tensor) -> Triples:
    U, s, V = gram(W.double())
    return U.to(W), s.to(W), V.to(W)


def gram_in_float64_with_qr(W: Tensor) -> Triples:
    U = eigenvectors(W.double())
    q, r = torch.linalg.qr((U @ W.double()).mT)
    s = r.diagonal()
    V = (q * torch.where(s < 0, -1.0, 1.0)).mT
    return U.to(W), s.abs().to(W), V.to(W)


def gram_with_svd_of_the_small(W: Tensor, share: float = 0.1) -> Triples:
    """Gram matrix in float32; triples under share · s_max, which squaring blurs, by an SVD of the rest."""
    U = eigenvectors(W)
    rows = U @ W
    s = rows.norm(dim=1)
    large = int((s > share * s.max()).sum())
    V = rows[:large] / s[:large, None]
    V = torch.addmm(V, V @ V.mT, V, beta=1.5, alpha=-0.5)  # a Newton-Schulz step: orthonormal
    if large == len(s):
        return U, s, V
    rest = rows[large:]
    for _ in range(2):
        rest = rest - (rest @ V.mT) @ V
    turn, small, V_small = lapack(rest)
    return (
        torch.cat((U[:large], turn @ U[large:])),
        torch.cat((s[:large], small)),
        torch.cat((V, V_small)),
    )


SVDS: dict[str, Callable[[Tensor], Triples]] = {
    "LAPACK": lapack,
    "`svd()`": svd,
    "Gram": on_the_shorter_side(gram),
    "Gram, small ones by SVD": on_the_shorter_side(gram_with_svd_of_the_small),
    "Gram in float64": on_the_shorter_side(gram_in_float64),
    "Gram in float64, QR": on_the_shorter_side(gram_in_float64_with_qr),
}


def jacobi(W: Tensor, U: Tensor, block: int = 64, sweeps: int = 10) -> Triples:
    """One-sided block Jacobi from the old left vectors U (k, m): pairs of blocks diagonalised in turn."""
    rows, U = U @ W, U.clone()
    blocks = torch.arange(len(U)).split(block)
    for _ in range(sweeps):
        s = rows.norm(dim=1)
        cosines = (rows @ rows.mT) / (s[:, None] * s)
        if (cosines - torch.eye(len(s))).abs().max() < 1e-5:
            break
        for i in range(len(blocks)):
            for j in range(i + 1, len(blocks)):
                pair = torch.cat((blocks[i], blocks[j]))
                turn = eigenvectors(rows[pair])
                rows[pair], U[pair] = turn @ rows[pair], turn @ U[pair]
    s, order = rows.norm(dim=1).sort(descending=True)
    return U[order], s, rows[order] / s[:, None]


def refinement(W: Tensor, U: Tensor, steps: int = 3) -> Triples:
    """Refinement of the old eigenvectors of W Wᵀ (Ogita and Aishima 2018, algorithm 1)."""
    X, A = U.mT, W @ W.mT
    for _ in range(steps):
        R = torch.eye(len(U)) - X.mT @ X
        S = X.mT @ A @ X
        values = S.diagonal() / (1 - R.diagonal())
        gaps = values - values[:, None]
        limit = 2 * ((S - values.diag()).norm() + A.norm() * R.norm())
        X = X + X @ torch.where(gaps.abs() > limit, (S + values * R) / gaps, R / 2)
    rows = X.mT @ W
    s = rows.norm(dim=1)
    return X.mT, s, rows / s[:, None]


WARM_SVDS: dict[str, Callable[[Tensor, Tensor], Triples]] = {
    "block Jacobi, warm": jacobi,
    "refinement of the old vectors, 3 steps": refinement,
}


def galore_torch(gradient: Tensor, rank: int) -> Tensor:
    """The basis that galore-torch's refresh computes for `gradient` (m, n), as rows (r, min(m, n))."""
    m, n = gradient.shape
    projector = GaLoreProjector(rank)
    basis: Tensor = projector.get_orthogonal_matrix(
        gradient, rank, type="right" if m >= n else "left"
    )
    return basis if m >= n else basis.mT


def plain_step(gradient: Tensor, basis: Tensor) -> Tensor:
    """One step of subspace iteration and QR, nothing else."""
    return torch.linalg.qr(gradient @ (gradient.mT @ basis.mT)).Q.mT


def plain_step_by_cholesky(gradient: Tensor, basis: Tensor) -> Tensor:
    """The same, orthonormalised by Cholesky-QR; by QR where the Gram matrix is not positive definite."""
    image = gradient @ (gradient.mT @ basis.mT)
    L, failed = torch.linalg.cholesky_ex(image.mT @ image)
    if failed:
        return torch.linalg.qr(image).Q.mT
    return torch.linalg.solve_triangular(L, image.mT, upper=False)


def randomized(gradient: Tensor, basis: Tensor) -> Tensor:
    return randomized_svd(gradient, len(basis), torch.Generator().manual_seed(0))[0]


REFRESHES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "`leading_basis`": lambda gradient, basis: leading_basis(gradient, len(basis)),
    "`randomized_svd`": randomized,
    "plain step": plain_step,
    "plain step, Cholesky-QR": plain_step_by_cholesky,
    "`subspace_step`": subspace_step,
}
