"""Decompositions against torch.linalg.svd in float64: every shape, spectrum and dtype."""

import pytest
import torch

from spectrain import linalg
from spectrain.errors import NonFiniteError, SpectrainWarning
from spectrain.linalg import leading_basis, randomized_svd, subspace_step, svd

SHAPES = [(24, 24), (40, 24), (24, 40), (1, 5), (5, 1)]
SPECTRA = {
    "random": lambda k: torch.rand(k).sort(descending=True).values + 0.1,
    "power law": lambda k: torch.arange(1, k + 1) ** -0.6,
    "decay to 1e-6": lambda k: torch.logspace(0, -6, k) if k > 1 else torch.ones(1),
    "repeated": lambda k: torch.where(torch.arange(k) < (k + 1) // 2, 1.0, 0.5),
    "zeros": lambda k: torch.where(torch.arange(k) < (k + 1) // 2, 1.0, 0.0),
    "all zero": torch.zeros,
    "tiny": lambda k: 1e-25 * torch.arange(1, k + 1) ** -0.6,
    "huge": lambda k: 1e25 * torch.arange(1, k + 1) ** -0.6,
}
ROUNDING = {torch.float64: 1e-13, torch.float32: 5e-6}
spectra = pytest.mark.parametrize("spectrum", SPECTRA)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
dtypes = pytest.mark.parametrize("dtype", ROUNDING, ids=str)


def orthonormal(rows, columns):
    return torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float64)).Q


def matrix(shape, spectrum, dtype=torch.float32):
    k = min(shape)
    s = SPECTRA[spectrum](k).double()
    return ((orthonormal(shape[0], k) * s) @ orthonormal(shape[1], k).mT).to(dtype)


def assert_orthonormal(rows, atol):
    one = torch.eye(rows.shape[-2], dtype=torch.float64).expand(*rows.shape[:-1], -1)
    torch.testing.assert_close(rows.double() @ rows.double().mT, one, rtol=0, atol=atol)


def assert_oriented(rows):
    assert (rows.gather(-1, rows.abs().argmax(-1, keepdim=True)) > 0).all()


def assert_is_svd(A, U, s, V, atol):
    exact = torch.linalg.svdvals(A.double())
    scale = exact[..., :1].clamp(min=1e-300)
    assert U.dtype == s.dtype == V.dtype == A.dtype
    assert all(factor.is_contiguous() for factor in (U, s, V))
    assert (s >= 0).all()
    assert (s.diff() <= 0).all()
    torch.testing.assert_close(s.double() / scale, exact / scale, rtol=0, atol=atol)
    product = (U.double().mT * s.double().unsqueeze(-2)) @ V.double()
    error = (product - A.double()) / scale.unsqueeze(-1)
    torch.testing.assert_close(error, torch.zeros_like(error), rtol=0, atol=atol)
    assert_orthonormal(U, atol)
    assert_orthonormal(V, atol)
    assert_oriented(U)


@shapes
@spectra
@dtypes
def test_svd(shape, spectrum, dtype):
    A = matrix(shape, spectrum, dtype)
    assert_is_svd(A, *svd(A), atol=ROUNDING[dtype])


@shapes
@spectra
@dtypes
def test_svd_where_lapack_does_not_converge(shape, spectrum, dtype, monkeypatch):
    def fail(*_, **__):
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    A = matrix(shape, spectrum, dtype)
    monkeypatch.setattr(torch.linalg, "svd", fail)
    with pytest.warns(SpectrainWarning, match=r"the SVD of .* failed .* is diagonalised instead"):
        found = svd(A)
    assert_is_svd(A, *found, atol=5e-6 if dtype == torch.float32 else 1e-7)


def test_a_gram_matrix_that_cannot_be_diagonalised_gives_way_to_an_svd(monkeypatch):
    def fail(*a, **k):
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    A = matrix((12, 8), "power law", torch.float32)
    expected = leading_basis(A, 3)
    monkeypatch.setattr(torch.linalg, "eigh", fail)
    with pytest.warns(
        SpectrainWarning, match=r"the Gram matrix of 12 × 8 failed .* an SVD is taken"
    ):
        found = leading_basis(A, 3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(dtype):
    A = matrix((12, 8), "power law", dtype)
    for found, expected in zip(svd(A), svd(A.float()), strict=True):
        assert torch.equal(found, expected)
    basis = leading_basis(A, 3)
    assert torch.equal(basis, leading_basis(A.float(), 3))
    assert torch.equal(subspace_step(A, basis.to(dtype)), subspace_step(A.float(), basis.to(dtype)))


@shapes
@spectra
@dtypes
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_leading_basis_keeps_all_the_energy_there_is(shape, spectrum, dtype, share):
    A = matrix(shape, spectrum, dtype)
    rank = max(1, int(share * min(shape)))
    basis = leading_basis(A, rank)
    assert basis.shape == (rank, shape[0])
    assert basis.dtype == dtype
    assert_orthonormal(basis, ROUNDING[dtype])
    assert_oriented(basis)
    scale = A.double().abs().max().clamp(min=1e-300)
    kept = (basis.double() @ (A.double() / scale)).square().sum()
    best = torch.linalg.svdvals(A.double() / scale)[:rank].square().sum()
    torch.testing.assert_close(kept, best, rtol=ROUNDING[dtype], atol=0)


@pytest.mark.parametrize("shape", [(48, 32), (32, 48)])
@pytest.mark.parametrize("ratio", [0.5, 0.05, 1e-3, 1e-5])
def test_leading_basis_has_the_vectors_of_an_svd_also_where_squares_would_blur_them(shape, ratio):
    rank = 8
    s = torch.cat((torch.logspace(0, torch.tensor(ratio).log10(), rank), torch.full((24,), 0.0)))
    U = orthonormal(shape[0], 32)
    A = ((U * s) @ orthonormal(shape[1], 32).mT).float()
    overlap = (leading_basis(A, rank).double() @ U[:, :rank]).abs()
    torch.testing.assert_close(overlap, torch.eye(rank).double(), rtol=0, atol=2e-6 / ratio)


@pytest.mark.parametrize("shape", [(48, 32), (32, 48)])
def test_leading_basis_in_float64_is_that_of_the_svd_to_the_last_digit(shape):
    A = matrix(shape, "power law", torch.float64)
    assert torch.equal(leading_basis(A, 8), svd(A)[0][:8])


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
def test_a_subspace_step_leaves_an_invariant_basis_alone(shape):
    A = matrix(shape, "power law", torch.float64)
    basis = leading_basis(A, 6)[torch.randperm(6)] * torch.tensor(
        [[1.0], [-1], [1], [-1], [1], [1]]
    )
    torch.testing.assert_close(subspace_step(A, basis), basis, rtol=0, atol=1e-9)


def kept(basis, A):
    return float((basis @ A).square().sum() / (leading_basis(A, len(basis)) @ A).square().sum())


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize(
    ("new", "after_one", "after_three"),
    [("4 on top", 0.99, 0.999), ("random", 0.9, 0.98), ("orthogonal", 0.5, 0.8)],
)
def test_a_warm_start_recovers_where_the_subspace_jumps(new, after_one, after_three, noise):
    m, n, rank = 96, 160, 16
    U, V = orthonormal(m, m).float(), orthonormal(n, m).float()
    spectrum = torch.arange(1, m + 1) ** -0.6

    def gradient(U):
        signal, error = (U * spectrum) @ V.mT, torch.randn(m, n)
        return signal + error * (noise * signal.norm() / error.norm())

    basis = leading_basis(gradient(U), rank)
    jumped = {
        "4 on top": torch.cat((U[:, -4:], U[:, :-4]), dim=1),
        "random": orthonormal(m, m).float(),
        "orthogonal": U.flip(1),  # the new leading directions are those that had least
    }[new]
    shares = []
    for _ in range(3):
        A = gradient(jumped)
        basis = subspace_step(A, basis)
        assert_orthonormal(basis, 5e-6)
        shares.append(kept(basis, A))
    assert shares[0] > after_one
    assert shares[2] > after_three
    assert shares == sorted(shares)


@pytest.mark.parametrize("scale", [1e-25, 1e15])
def test_a_subspace_step_does_not_depend_on_the_scale_of_the_gradient(scale):
    A = matrix((24, 40), "power law")
    start = linalg.random_basis(5, 24, torch.Generator().manual_seed(1), like=A)
    torch.testing.assert_close(subspace_step(A * scale, start), subspace_step(A, start))


@pytest.mark.parametrize("rank", [1, 23, 24])
def test_a_subspace_step_at_any_rank(rank):
    A = matrix((24, 40), "power law")
    basis = subspace_step(A, leading_basis(A, rank))
    assert_orthonormal(basis, 5e-6)
    assert kept(basis, A) > 0.99999


@pytest.mark.parametrize("shape", [(24, 24), (40, 24), (24, 40)])
@dtypes
def test_a_stack_is_decomposed_as_one_by_one(shape, dtype):
    stack = torch.stack([matrix(shape, name, dtype) for name in SPECTRA]).unflatten(0, (2, -1))
    together = (*svd(stack), leading_basis(stack[:, :2], 6))
    for i in range(stack.shape[0]):
        for j in range(stack.shape[1]):
            for found, expected in zip(together, svd(stack[i, j]), strict=False):
                assert torch.equal(found[i, j], expected)
            if j < 2:
                A = stack[i, j].double()
                alone = leading_basis(stack[i, j], 6)
                energies = [(b.double() @ A).norm() for b in (together[3][i, j], alone)]
                torch.testing.assert_close(*energies, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_entries_are_refused(bad):
    A = torch.ones(4, 3)
    A[2, 1] = bad
    for decompose in (svd, lambda a: leading_basis(a, 2)):
        with pytest.raises(NonFiniteError, match="NaN or infinite"):
            decompose(A)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_meta_tensors_have_the_same_shapes_and_dtypes(shape):
    A = matrix(shape, "random")
    basis = leading_basis(A, 6)

    def everything(A, basis):
        generator = torch.Generator().manual_seed(0)
        return (
            *svd(A),
            *randomized_svd(A, 6, generator),
            leading_basis(A, 6),
            subspace_step(A, basis),
            linalg.random_basis(6, shape[0], generator, like=A),
        )

    for real, meta in zip(
        everything(A, basis), everything(A.to("meta"), basis.to("meta")), strict=True
    ):
        assert meta.is_meta
        assert (meta.shape, meta.dtype, meta.stride()) == (real.shape, real.dtype, real.stride())


def test_the_same_matrix_gives_the_same_factors():
    A = matrix((24, 40), "power law")
    basis = leading_basis(A, 6)
    for decompose in (svd, lambda a: leading_basis(a, 6), lambda a: subspace_step(a, basis)):
        for first, second in zip(decompose(A), decompose(A.clone()), strict=True):
            assert torch.equal(first, second)
