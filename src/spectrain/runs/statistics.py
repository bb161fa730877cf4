"""What a few seeds can tell: means, the noise floor, which differences stand out, gaps closed.

Results are costs, of which less is better: losses, or scores times −1 where more is better
(`Score.cost`), in the score's unit. Pure functions of numbers; nothing here knows about runs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95  # two-sided, for each pair of methods on its own


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean Σ xᵢ / n; NaN for no values."""
    return math.fsum(values) / len(values) if values else math.nan


def standard_deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation √(Σ (xᵢ − x̄)² / (n − 1)); None for fewer than two values."""
    if len(values) < 2:
        return None
    return math.sqrt(_squares(values) / (len(values) - 1))


def _squares(values: Sequence[float]) -> float:
    """Σ (xᵢ − x̄)²."""
    centre = mean(values)
    return math.fsum((value - centre) ** 2 for value in values)


def t_cdf(t: float, dof: int) -> float:
    """P(T ≤ t) for Student's t with a whole number of degrees of freedom ν, as a finite sum.

    With θ = arctan(t / √ν), P(|T| ≤ t) is, for odd ν,
    2/π · (θ + sin θ · (cos θ + 2/3 cos³ θ + … )) and, for even ν,
    sin θ · (1 + 1/2 cos² θ + 1·3/(2·4) cos⁴ θ + … ); the last power of cos θ is ν − 2.
    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    theta = math.atan(t / math.sqrt(dof))
    cos, odd = math.cos(theta), dof % 2
    total, term = 0.0, cos if odd else 1.0
    for power in range(odd, dof - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * cos**2
    inside = math.sin(theta) * total
    if odd:
        inside = 2 / math.pi * (theta + inside)
    return 0.5 + 0.5 * inside


def t_quantile(probability: float, dof: int) -> float:
    """The t with P(T ≤ t) = ``probability`` in (0, 1), by bisection of `t_cdf`; dof ≥ 1."""
    if probability < 0.5:
        return -t_quantile(1 - probability, dof)
    low, high = 0.0, 1.0
    while t_cdf(high, dof) < probability:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if t_cdf(middle, dof) < probability:
            low = middle
        else:
            high = middle
    return high


@dataclass(frozen=True)
class Noise:
    """How much the seed moves one method's result against another's: a standard deviation."""

    deviation: float  # in the unit of the costs
    dof: int  # degrees of freedom behind it, ≥ 1

    def floor(self, a: int, b: int) -> float:
        """The least difference between means of ``a`` and ``b`` seeds that stands out of the noise:
        t(97.5 %, dof) · deviation · √(1/a + 1/b)."""
        quantile = t_quantile(0.5 + CONFIDENCE / 2, self.dof)
        return quantile * self.deviation * math.sqrt(1 / a + 1 / b)


def seed_noise(groups: Sequence[Sequence[float]]) -> Noise | None:
    """The noise in differences between methods, whose costs (one per seed) are ``groups``.

    Where every method has all seeds, in the same order, a seed gives all of them the same initial
    weights and data, and what it does to all alike cancels in a difference. So the residuals of the
    two-way table count (a randomised block design):
    √(Σⱼ Σᵢ (xⱼᵢ − x̄ⱼ − x̄ᵢ + x̄)² / ν) with ν = (methods − 1)(seeds − 1).
    Otherwise the standard deviation pooled over methods: √(Σⱼ Σᵢ (xⱼᵢ − x̄ⱼ)² / ν) with
    ν = Σⱼ (nⱼ − 1). None if ν = 0: one seed shows no noise.
    """
    groups = [group for group in groups if group]
    seeds = {len(group) for group in groups}
    if len(groups) > 1 and len(seeds) == 1 and max(seeds) > 1:
        methods, overall = [mean(g) for g in groups], mean([mean(g) for g in groups])
        effects = [mean(column) - overall for column in zip(*groups, strict=True)]
        residuals = [
            [x - centre - effect for x, effect in zip(group, effects, strict=True)]
            for group, centre in zip(groups, methods, strict=True)
        ]
        dof = (len(groups) - 1) * (len(effects) - 1)
        return Noise(math.sqrt(math.fsum(r * r for row in residuals for r in row) / dof), dof)
    dof = sum(len(group) - 1 for group in groups)
    if dof < 1:
        return None
    return Noise(math.sqrt(math.fsum(_squares(group) for group in groups) / dof), dof)


def separable(a: Sequence[float], b: Sequence[float], noise: Noise | None) -> bool:
    """Whether two methods' mean costs differ by more than the noise floor of their seed counts."""
    if noise is None or not a or not b:
        return False
    return abs(mean(a) - mean(b)) > noise.floor(len(a), len(b))


def gap_closed(
    method: Sequence[float],
    full: Sequence[float],
    others: Sequence[Sequence[float]],
    noise: Noise | None,
) -> float | None:
    """Share of the gap to full rank that a low-rank method closes, from costs (one per seed):

    (best other low-rank − method) / (best other low-rank − full).

    1 is as good as full rank, 0 as good as the best other low-rank method; it can exceed 1 and be
    negative. None unless full rank beats the best of ``others`` by more than the noise: otherwise
    there is no gap to close.
    """
    others = [other for other in others if other]
    if not method or not full or not others:
        return None
    best = min(others, key=mean)
    if mean(full) >= mean(best) or not separable(full, best, noise):
        return None
    return (mean(best) - mean(method)) / (mean(best) - mean(full))
