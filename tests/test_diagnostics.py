"""Measures of spectra against NumPy and SciPy in float64, and against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

import spectrain
from spectrain.diagnostics import (
    Eigen,
    as_matrix,
    compare,
    effective_rank,
    intruder_dimensions,
    matrices,
    measure,
    measure_model,
    participation_ratio,
    power_law_tail,
    principal_angles,
    rank_at_energy,
    singular_values,
    stable_rank,
)
from spectrain.diagnostics import spectrum as spectrum_module
from spectrain.errors import NonFiniteError, UsageError

SHAPES = [(40, 40), (70, 30), (30, 70), (1, 25), (25, 1), (1, 1)]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def basis(size, count, seed=0):
    return torch.linalg.qr(draw(size, count, seed=seed)).Q


def with_spectrum(values, m, n, seed=0):
    s = torch.tensor(values, dtype=torch.float64)
    return basis(m, len(s), seed) * s @ basis(n, len(s), seed + 1).mT


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_singular_values_are_those_of_numpy(shape, dtype):
    W = draw(*shape).to(dtype)
    expected = np.linalg.svd(W.double().numpy(), compute_uv=False)
    found = singular_values(W)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=2e-8 * expected[0])


def test_small_singular_values_are_right_to_what_is_promised():
    planted = [10.0 ** -(i / 4) for i in range(40)]  # from 1 down to 2e-10
    W = with_spectrum(planted, 60, 50)
    found = singular_values(W)
    floor = math.sqrt(50 * 2.2e-16)
    for s, expected in zip(found.tolist(), planted, strict=False):
        if expected > 2 * floor:
            assert abs(s - expected) < 50 * 2.2e-16 / expected
        elif expected < floor / 2:
            assert s == 0
    assert not found[40:].any()


def test_blocks_change_nothing(monkeypatch):
    W, base = draw(37, 23), draw(37, 23, seed=1)
    whole = [compare(W, base), compare(W.mT, base.mT)]
    monkeypatch.setattr(spectrum_module, "BLOCK", 100)
    for (found, change), (expected, expected_change) in zip(
        [compare(W, base), compare(W.mT, base.mT)], whole, strict=True
    ):
        assert found.singular_values == pytest.approx(expected.singular_values, rel=1e-10)
        assert change.left_angles == pytest.approx(expected_change.left_angles, abs=1e-9)
        assert change.right_angles == pytest.approx(expected_change.right_angles, abs=1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("shape", SHAPES)
def test_ranks_are_their_definitions_in_numpy(shape, scale):
    W = (draw(*shape) * scale).float()
    s = np.linalg.svd(W.double().numpy(), compute_uv=False)
    p = s / s.sum()
    entropy = -(p * np.log(p)).sum()
    assert stable_rank(W) == pytest.approx((s**2).sum() / s[0] ** 2, rel=1e-9)
    assert effective_rank(W) == pytest.approx(np.exp(entropy), rel=1e-9)
    assert participation_ratio(W) == pytest.approx((s**2).sum() ** 2 / (s**4).sum(), rel=1e-9)
    for share in (0.5, 0.9, 0.99):
        energies = np.cumsum(s**2) / (s**2).sum()
        assert rank_at_energy(W, share) == int(np.argmax(energies >= share)) + 1


def test_a_flat_spectrum_has_its_rank_by_every_measure():
    W = 3 * basis(50, 7) @ basis(40, 7, seed=1).mT
    assert stable_rank(W) == pytest.approx(7, rel=1e-9)
    assert effective_rank(W) == pytest.approx(7, rel=1e-9)
    assert participation_ratio(W) == pytest.approx(7, rel=1e-9)
    assert (rank_at_energy(W, 0.9), rank_at_energy(W, 1)) == (7, 7)
    assert Eigen(W).rank == 7


def test_measures_take_singular_values_as_well():
    s = torch.tensor([1.0, 2.0, 0.0])  # in any order
    assert stable_rank(s) == pytest.approx(1.25)
    assert participation_ratio(s) == pytest.approx(25 / 17)
    thirds = (1 / 3) ** (1 / 3) * (2 / 3) ** (2 / 3)
    assert effective_rank(s) == pytest.approx(1 / thirds)
    assert [rank_at_energy(s, share) for share in (0.8, 0.81, 1.0)] == [1, 2, 2]


def test_a_zero_matrix_has_rank_zero_and_a_change_from_or_to_it_is_said():
    zero, W = torch.zeros(6, 4), draw(6, 4).float()
    found = measure(zero)
    assert (found.stable_rank, found.effective_rank, found.participation_ratio) == (0, 0, 0)
    assert (found.rank_90, found.rank_99, found.frobenius_norm, found.tail) == (0, 0, 0, None)
    grown, lost, nothing = compare(W, zero)[1], compare(zero, W)[1], compare(zero, zero)[1]
    assert (grown.relative_change, grown.norm_change) == (math.inf, math.inf)
    assert grown.left_intruders == (0, 1, 2, 3)
    assert (lost.relative_change, lost.norm_change) == (1, -1)
    assert (lost.left_angles, lost.left_intruders) == ((), ())
    assert (nothing.relative_change, nothing.norm_change) == (0, 0)


def test_one_row_has_one_singular_value():
    W = draw(1, 30)
    found = measure(W)
    assert found.singular_values == pytest.approx((float(W.norm()),))
    assert (found.rank_99, found.stable_rank, found.effective_rank) == (1, 1, 1)
    change = compare(2 * W, W)[1]
    assert change.left_angles == change.right_angles == pytest.approx((0,), abs=1e-12)
    assert change.left_intruders == change.right_intruders == ()
    assert change.norm_change == pytest.approx(1)


@pytest.mark.parametrize("shape", [(40, 40), (70, 30), (30, 70)])
def test_leading_vectors_are_those_of_numpy(shape):
    W = draw(*shape).float()
    U, s, Vt = np.linalg.svd(W.double().numpy(), full_matrices=False)
    eigen = Eigen(W)
    np.testing.assert_allclose(eigen.values, s, rtol=1e-7, atol=2e-8 * s[0])
    for found, expected in ((eigen.left(8), U[:, :8]), (eigen.right(8), Vt[:8].T)):
        np.testing.assert_allclose(np.abs((found.numpy() * expected).sum(0)), 1, atol=1e-9)
    X = draw(shape[0], 3, seed=5)
    np.testing.assert_allclose(eigen.along_left(X).abs(), np.abs(U.T @ X.numpy()), atol=1e-6)
    X = draw(shape[1], 3, seed=5)
    np.testing.assert_allclose(eigen.along_right(X).abs(), np.abs(Vt @ X.numpy()), atol=1e-6)


ANGLES = (0.0, 1e-9, 1e-3, 0.7, math.pi / 4, 1.2, math.pi / 2)


@pytest.mark.parametrize("extra", [0, 3])
def test_planted_angles_come_back(extra):
    """Also tiny ones, whose cosine is 1; and between subspaces of different dimension."""
    turned = torch.tensor(ANGLES, dtype=torch.float64)
    frame = basis(40, 2 * len(ANGLES) + extra)
    first = frame[:, : len(ANGLES)]
    second = first * turned.cos() + frame[:, len(ANGLES) : 2 * len(ANGLES)] * turned.sin()
    first = torch.cat((first, frame[:, 2 * len(ANGLES) :]), dim=1)
    mixed = first @ basis(first.shape[1], first.shape[1], seed=3)
    for angles in (principal_angles(mixed, second), principal_angles(second, mixed)):
        np.testing.assert_allclose(angles, ANGLES, atol=1e-12)


def test_angles_are_those_of_scipy():
    first, second = basis(30, 6), basis(30, 9, seed=1)
    expected = np.sort(scipy.linalg.subspace_angles(first.numpy(), second.numpy()))
    np.testing.assert_allclose(principal_angles(first, second), expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50)])
def test_angles_of_a_planted_turn(shape):
    """The two leading left vectors of W' are those of W turned by 0.3; the right ones stay."""
    m, n = shape
    U, V = basis(m, 6), basis(n, 4, seed=1)
    s = torch.tensor([8.0, 7.0, 2.0, 1.0], dtype=torch.float64)
    turned = U.clone()
    turned[:, :2] = math.cos(0.3) * U[:, :2] + math.sin(0.3) * U[:, 4:]
    change = compare(turned[:, :4] * s @ V.mT, U[:, :4] * s @ V.mT, rank=2)[1]
    assert change.left_angles == pytest.approx((0.3, 0.3), abs=1e-9)
    assert change.right_angles == pytest.approx((0, 0), abs=1e-7)
    size = 2 * math.sin(0.15) * math.sqrt(8**2 + 7**2)
    assert change.relative_change == pytest.approx(size / float(s.norm()), rel=1e-9)
    assert change.norm_change == pytest.approx(0, abs=1e-12)
    assert change.update.rank_99 == 2


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (200, 200)])
def test_planted_intruders_are_found_on_their_side(shape):
    """Two strong directions that nothing of W resembles: random in 200 dimensions."""
    m, n = shape
    W = with_spectrum([10 * 0.95**i for i in range(150)], m, n)
    assert intruder_dimensions(W, W) == []
    new = 30 * basis(m, 1, seed=7) @ basis(n, 1, seed=8).mT
    assert intruder_dimensions(W + new, W) == [0]
    assert intruder_dimensions(W + new, W, side="right") == [0]
    new = new + 20 * basis(m, 1, seed=9) @ basis(n, 1, seed=10).mT
    change = compare((W + new).float(), W.float())[1]
    assert change.left_intruders == change.right_intruders == (0, 1)
    assert intruder_dimensions(W + new, W, leading=1) == [0]


def test_intruders_are_those_of_the_published_definition():
    W, trained = draw(40, 30), draw(40, 30, seed=1)
    U0, U = (np.linalg.svd(x.numpy(), full_matrices=False)[0] for x in (W, trained))
    closest = np.abs(U.T @ U0).max(1)
    for leading, threshold in ((10, 0.5), (20, 0.4), (30, 0.45), (5, 0.0), (5, 1.0)):
        expected = [j for j in range(leading) if closest[j] < threshold]
        found = intruder_dimensions(trained, W, leading=leading, threshold=threshold)
        assert found == expected


@pytest.mark.parametrize("alpha", [2.0, 3.5])
def test_the_exponent_of_a_pareto_tail_comes_back(alpha):
    """λ = (1 − u)^(−1/(α−1)) has the density (α − 1) λ^−α from 1 on; below it something flat."""
    draws = np.random.default_rng(0)
    tail = (1 - draws.random(2000)) ** (-1 / (alpha - 1))
    body = draws.random(2000)
    found = power_law_tail(torch.tensor(np.concatenate((tail, body))))
    assert abs(found.alpha - alpha) < 4 * found.error
    assert 0.9 < found.xmin < 1.5
    assert found.count > 500
    assert found.distance < 0.05
    scaled = power_law_tail(torch.tensor(np.concatenate((tail, body))) * 1e-6)
    assert scaled.alpha == pytest.approx(found.alpha, rel=1e-9)


def test_the_fit_is_the_definition_written_out():
    values = np.sort(np.random.default_rng(1).pareto(1.7, 60) + 1)
    best = (math.inf, 0.0, 0.0, 0)
    for xmin in values[:-9]:
        x = values[values >= xmin]
        alpha = 1 + len(x) / np.log(x / xmin).sum()
        fitted = 1 - (x / xmin) ** (1 - alpha)
        steps = np.arange(len(x) + 1) / len(x)
        distance = max(np.abs(steps[1:] - fitted).max(), np.abs(steps[:-1] - fitted).max())
        best = min(best, (distance, alpha, xmin, len(x)))
    found = power_law_tail(torch.tensor(np.random.default_rng(2).permutation(values)))
    assert (found.distance, found.alpha, found.xmin, found.count) == pytest.approx(best)


def test_what_has_no_tail_has_none():
    assert power_law_tail(torch.ones(50)) is None  # equal values
    assert power_law_tail(torch.arange(9.0)) is None  # too few
    assert power_law_tail(torch.cat((torch.zeros(40), torch.arange(1.0, 10)))) is None
    repeated = torch.cat((torch.full((20,), 1.0), torch.full((5,), 2.0), torch.full((5,), 4.0)))
    assert power_law_tail(repeated).count == 10  # a tail holds all that are equal to its xmin


def test_models_are_measured_plain_or_in_factors():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(9, 8), nn.Linear(8, 12), nn.LayerNorm(12), nn.Conv2d(3, 5, 2)
    )
    plain = measure_model(model)
    assert {n: found.shape for n, found in plain.items()} == {
        "0.weight": (9, 8),
        "1.weight": (12, 8),
        "3.weight": (5, 12),
    }
    assert plain["3.weight"] == measure(as_matrix(model[3].weight))
    spectrain.apply(model, spectrain.SST(3), report=None)
    factored = measure_model(model)
    assert set(factored) == set(plain)
    for name, found in factored.items():
        assert found.singular_values == pytest.approx(plain[name].singular_values, rel=1e-5)
    assert all(not matrix.requires_grad for _, matrix in matrices(model))


def test_refusals_are_sentences():
    W = draw(5, 4)
    for wrong in (draw(3), draw(2, 3, 4), torch.ones(2, 2, dtype=torch.int8), torch.ones(0, 3)):
        with pytest.raises(UsageError, match="a matrix of floating-point numbers is needed"):
            singular_values(wrong)
    for bad in (math.nan, math.inf):
        broken = W.clone()
        broken[2, 1] = bad
        for function in (measure, stable_rank, Eigen, lambda x: compare(W, x)):
            with pytest.raises(NonFiniteError, match="NaN or infinite"):
                function(broken)
        with pytest.raises(NonFiniteError):
            power_law_tail(broken.flatten().abs())
    with pytest.raises(UsageError, match="one shape are needed, not 5 × 4 and 4 × 5"):
        compare(W, W.mT)
    with pytest.raises(UsageError, match="rank=0"):
        compare(W, W, rank=0)
    with pytest.raises(UsageError, match="one shape"):
        intruder_dimensions(W, W.mT)
    for options in ({"leading": 0}, {"threshold": 1.5}, {"side": "top"}):
        with pytest.raises(UsageError, match="left or right"):
            intruder_dimensions(W, W, **options)
    with pytest.raises(UsageError, match="not 5 × 4 and 4 × 5"):
        principal_angles(W, W.mT)
    for share in (0.0, 1.01, math.nan):
        with pytest.raises(UsageError, match="share="):
            rank_at_energy(W, share)
    with pytest.raises(UsageError, match="none below 0"):
        power_law_tail(-torch.ones(20))
