"""Statistics over seeds, against tables and hand calculations."""

import math

import pytest

from spectrain.runs.statistics import (
    Noise,
    gap_closed,
    mean,
    seed_noise,
    separable,
    standard_deviation,
    t_cdf,
    t_quantile,
)


@pytest.mark.parametrize(
    ("probability", "dof", "expected"),
    [  # printed in any table of Student's t
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 3, 3.182),
        (0.975, 4, 2.776),
        (0.975, 5, 2.571),
        (0.975, 10, 2.228),
        (0.975, 30, 2.042),
        (0.975, 120, 1.980),
        (0.95, 7, 1.895),
        (0.995, 8, 3.355),
        (0.025, 10, -2.228),
        (0.5, 6, 0.0),
    ],
)
def test_t_quantile_equals_the_printed_table(probability, dof, expected):
    assert t_quantile(probability, dof) == pytest.approx(expected, abs=6e-4)


def test_t_tends_to_the_normal_distribution():
    assert t_quantile(0.975, 100_000) == pytest.approx(1.95996, abs=1e-4)


@pytest.mark.parametrize("dof", [1, 2, 3, 4, 7, 12])
def test_t_cdf_equals_the_integral_of_its_density(dof):
    scale = math.exp(math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2)) / math.sqrt(dof * math.pi)
    count, t = 4000, 1.7
    points = [t * i / count for i in range(count + 1)]
    density = [scale * (1 + x * x / dof) ** (-(dof + 1) / 2) for x in points]
    inside = t / count * (math.fsum(density) - (density[0] + density[-1]) / 2)  # trapezoids
    assert t_cdf(t, dof) == pytest.approx(0.5 + inside, abs=1e-7)
    assert t_cdf(-t, dof) == pytest.approx(0.5 - inside, abs=1e-7)


def test_mean_and_standard_deviation():
    assert mean([1.0, 2.0, 6.0]) == 3.0
    assert math.isnan(mean([]))
    assert standard_deviation([1.0, 2.0, 6.0]) == pytest.approx(math.sqrt(7))
    assert standard_deviation([1.0]) is None


def test_noise_is_pooled_over_methods():
    noise = seed_noise([[1.0, 3.0], [5.0, 5.0, 8.0], [9.0], []])
    assert noise is not None
    assert noise.dof == 3
    assert noise.deviation == pytest.approx(math.sqrt((2 + 6) / 3))
    assert noise.floor(2, 3) == pytest.approx(
        3.18245 * noise.deviation * math.sqrt(5 / 6), rel=1e-5
    )


def test_one_seed_has_no_noise_floor():
    assert seed_noise([[1.0], [2.0]]) is None
    assert not separable([1.0], [2.0], None)


def test_separable_on_both_sides_of_the_floor():
    noise = Noise(deviation=0.01, dof=10)
    floor = noise.floor(3, 3)
    assert separable([3.0] * 3, [3.0 + 1.01 * floor] * 3, noise)
    assert not separable([3.0] * 3, [3.0 + 0.99 * floor] * 3, noise)
    assert not separable([3.0] * 3, [], noise)


@pytest.mark.parametrize(
    ("method", "expected"), [(3.0, 1.0), (3.2, 0.5), (3.4, 0.0), (3.6, -0.5), (2.8, 1.5)]
)
def test_gap_closed(method, expected):
    noise = Noise(deviation=0.01, dof=4)
    share = gap_closed([method] * 3, [3.0] * 3, [[3.4] * 3, [3.9] * 3], noise)
    assert share == pytest.approx(expected)


@pytest.mark.parametrize(
    ("full", "others", "deviation"),
    [
        ([3.39] * 3, [[3.4] * 3], 0.1),  # full rank is better, but within the noise
        ([3.8] * 3, [[3.4] * 3], 0.01),  # full rank is worse
        ([], [[3.4] * 3], 0.01),
        ([3.0] * 3, [], 0.01),
    ],
)
def test_no_gap_to_close(full, others, deviation):
    assert gap_closed([3.2] * 3, full, others, Noise(deviation, dof=4)) is None


def test_no_gap_without_a_noise_floor():
    assert gap_closed([3.2], [3.0], [[3.4]], None) is None


def test_seed_noise_leaves_out_what_a_seed_does_to_all_methods_alike() -> None:
    shifted = [[1.0 + shift, 2.0 + shift] for shift in (0.0, 5.0)]
    noise = seed_noise(shifted)
    assert noise is not None
    assert noise.deviation == pytest.approx(0.0, abs=1e-12)
    assert noise.dof == 1
    # Row means 3 and 3, column means 1.5, 2.5, 5: residuals −.5, −.5, 1 and .5, .5, −1.
    noise = seed_noise([[1.0, 2.0, 6.0], [2.0, 3.0, 4.0]])
    assert noise is not None
    assert noise.dof == 2
    assert noise.deviation == pytest.approx((3.0 / 2) ** 0.5)
