"""The Lorentz model of hyperbolic space, for any curvature K < 0.

Points are x = (x₀, x₁ … x_d), the time coordinate first, with ⟨x, x⟩ = −x₀² + x₁² + … + x_d² = 1/K and
x₀ > 0. R = 1/√(−K) is the space's radius, (R, 0, …, 0) its origin. Sizes of layers count all coordinates.

Whatever leaves a function here has its time coordinate computed from the others, so that it lies on the
manifold to rounding: |⟨x, x⟩ − 1/K| ≤ `TOLERANCE` · x₀² in float32, however long training goes on.
"""

from __future__ import annotations

import math
from typing import Any

import geoopt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spectrain.errors import UsageError
from spectrain.parametrizations.base import full_precision

TOLERANCE = 1e-6  # of float32, relative to the square of the time coordinate
FARTHEST = 20.0  # from the origin, in radii: its cosh, to the fourth power, is finite in float32
LARGEST = 1e15  # of a coordinate or a step, so that squares and their sums are finite in float32


def radius(curvature: float) -> float:
    """R = 1/√(−K). Raises UsageError unless K is negative and finite."""
    if not (isinstance(curvature, int | float) and -math.inf < curvature < 0):
        raise UsageError(f"curvature is {curvature}; hyperbolic space has one below 0, as -1.0")
    return 1 / math.sqrt(-curvature)


class Lorentz(geoopt.Lorentz):  # type: ignore[misc]
    """geoopt's manifold, for parameters that are points, made fit for float32.

    geoopt asks for double precision: it divides by the distance of a step, whose rounding to zero gives
    NaN, takes roots of squares that can come out negative, and drifts off the manifold. Here a step
    ends on the manifold to rounding, and transport is the closed form that divides by R² − ⟨x, y⟩ ≥ 2R².

    pace: length of a step of Riemannian Adam, in learning rates. At 1, as published, a point moves by the
    rate as a whole, where ordinary Adam moves each of d numbers by it, so a vector by √d times the rate.
    """

    def __init__(self, curvature: float = -1.0, *, pace: float = 1.0) -> None:
        self._radius = radius(curvature)
        super().__init__(k=self._radius**2)
        self.curvature, self.pace = float(curvature), pace

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor | None = None) -> Tensor:
        """⟨u, v⟩/pace² for every coordinate, which scales Adam's steps; of u with itself it is a square."""
        found = inner(u, u if v is None else v)[..., None] / self.pace**2
        return found.clamp(min=0) if v is None else found

    def expmap(self, x: Tensor, u: Tensor, **ignored: Any) -> Tensor:
        """cosh(‖u‖/R) x + R sinh(‖u‖/R) u/‖u‖, the point that the step u leads to.

        Neither the step nor the point's way from the origin gets longer than `FARTHEST` radii.
        """
        u = u.clamp(-LARGEST, LARGEST)
        length = inner(u, u)[..., None].clamp(min=0).sqrt() / self._radius
        length = length.clamp(min=1e-12)
        short = length.clamp(max=FARTHEST)
        space = (torch.cosh(short) * x + torch.sinh(short) / length * u)[..., 1:]
        reach = self._radius * math.sinh(FARTHEST)
        space = space * (reach / space.norm(dim=-1, keepdim=True).clamp(min=reach))
        return lift(space, self.curvature)

    retr = expmap

    def transp(self, x: Tensor, y: Tensor, v: Tensor, **ignored: Any) -> Tensor:
        """Parallel transport of v from x to y: v + ⟨y, v⟩ / (R² − ⟨x, y⟩) (x + y)."""
        share = inner(y, v) / (self._radius**2 - inner(x, y)).clamp(min=self._radius**2)
        return (v + share[..., None] * (x + y)).clamp(-LARGEST, LARGEST)

    def retr_transp(self, x: Tensor, u: Tensor, v: Tensor, *more: Tensor) -> Any:
        """The point that the step u leads to, and vectors carried along to it."""
        y = self.retr(x, u)
        return (y, *(self.transp(x, y, w) for w in (v, *more)))


def inner(
    x: Tensor,  # (…, d + 1)
    y: Tensor,  # (…, d + 1), broadcast
) -> Tensor:  # (…)
    """⟨x, y⟩ = −x₀ y₀ + x₁ y₁ + … + x_d y_d."""
    product = x * y
    return product[..., 1:].sum(-1) - product[..., 0]


def lift(
    space: Tensor,  # (…, d)
    curvature: float = -1.0,
) -> Tensor:  # (…, d + 1)
    """The point with these space coordinates: x₀ = √(R² + ‖x₁ … x_d‖²)."""
    squares = space.square().sum(-1, keepdim=True)
    return torch.cat((torch.sqrt(squares + radius(curvature) ** 2), space), -1)


def from_tangent(
    u: Tensor,  # (…, d)
    curvature: float = -1.0,
) -> Tensor:  # (…, d + 1)
    """exp_o((0, u)) = R (cosh(‖u‖/R), sinh(‖u‖/R) u/‖u‖), the exponential map at the origin.

    Vectors longer than `FARTHEST` radii are shortened to that.
    """
    R = radius(curvature)
    length = (u.norm(dim=-1, keepdim=True) / R).clamp(min=1e-12)
    stretched = R * torch.sinh(length.clamp(max=FARTHEST)) / (length * R)
    return lift(u * stretched, curvature)


def squared_distance(
    x: Tensor,  # (…, d + 1)
    y: Tensor,  # (…, d + 1), broadcast
    curvature: float = -1.0,
) -> Tensor:  # (…)
    """d² = 2/K − 2⟨x, y⟩, the squared Lorentzian distance (Law et al. 2019): 0 for equal points."""
    return 2 / curvature - 2 * inner(x, y)


def distance(
    x: Tensor,  # (…, d + 1)
    y: Tensor,  # (…, d + 1), broadcast
    curvature: float = -1.0,
) -> Tensor:  # (…)
    """The geodesic distance R · arcosh(K⟨x, y⟩), as 2R · arsinh(√(−K) ‖x − y‖/2) with the Lorentzian norm.

    ‖x − y‖² is summed from differences, so that near points keep their digits.
    """
    R = radius(curvature)
    difference = x - y
    squares = inner(difference, difference).clamp(min=torch.finfo(x.dtype).tiny)
    return 2 * R * torch.asinh(squares.sqrt() / (2 * R))


def to_poincare(
    x: Tensor,  # (…, d + 1)
    curvature: float = -1.0,
) -> Tensor:  # (…, d)
    """The same point in the Poincaré ball of radius 1: (x₁ … x_d) / (x₀ + R)."""
    return x[..., 1:] / (x[..., :1] + radius(curvature))


def dot(
    x: Tensor,  # (…, d)
    y: Tensor,  # (…, d)
) -> Tensor:  # (…, 1)
    """x · y over the last dimension. A product with ones is faster than a sum over few numbers."""
    return (x * y) @ x.new_ones(x.shape[-1], 1)


def centroid(
    z: Tensor,  # (…, d + 1): Σⱼ wⱼ xⱼ with wⱼ ≥ 0 and Σⱼ wⱼ = 1
    curvature: float = -1.0,
) -> Tensor:  # (…, d + 1)
    """R z / √|⟨z, z⟩|, the mean by squared Lorentzian distance (Chen et al. 2021, eq. 6)."""
    with full_precision(z):
        found: Tensor = _Centroid.apply(z, radius(curvature))  # type: ignore[no-untyped-call]
    return found


class _Centroid(torch.autograd.Function):
    """`centroid`, over whole rows. −⟨z, z⟩ ≥ R² for every mean of points; what is less is rounding."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, R: float) -> Tensor:
        s = z.clone()
        s[..., 0] = 0
        squares = dot(s, s)
        shrink = R / (z[..., :1].square() - squares).clamp_(min=R * R).sqrt_()  # R/√−⟨z, z⟩
        time = torch.sqrt(squares * shrink.square() + R * R)
        y = s * shrink
        y[..., :1] = time
        ctx.save_for_backward(z, squares, shrink, time)
        ctx.R = R
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        z, squares, shrink, time = ctx.saved_tensors
        # The time depends on the space coordinates alone: its gradient adds `extra` z to theirs.
        extra = g[..., :1] / time * shrink
        along = dot(g, z) - g[..., :1] * z[..., :1] + extra * squares
        along = along * shrink.pow(3) / (ctx.R * ctx.R)
        grad = (g * shrink).addcmul_((extra * shrink).add_(along), z)
        grad[..., :1] = -along * z[..., :1]
        return grad, None
