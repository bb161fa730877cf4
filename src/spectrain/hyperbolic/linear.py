"""The Lorentz linear layer: an ordinary linear map between hyperboloids."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from spectrain.errors import UsageError
from spectrain.hyperbolic.lorentz import LARGEST, dot, radius
from spectrain.parametrizations.base import full_precision

SHORTEST = 1e-8  # squared length below which a direction is not made longer
OFFSET = 1.1  # the least time coordinate in radii; above 1, so that every direction shows


class LorentzLinear(nn.Module):
    """a = W drop(act(x)) + b (+ residual); time t = R (σ(a₀) eᶜ + 1.1); space a₁… scaled to fit it.

    The layer of HyboNet (Chen et al. 2021, section 3.1). W is the weight of `dense`, an ordinary
    nn.Linear over all coordinates, time included, which `spectrain.apply` exchanges like any other. `scale`
    c is learned.

    heads: the output is so many points side by side, (…, heads, out_features / heads), each on a
    hyperboloid of its own. times: at which of the input's coordinates times stand; their columns of W begin
    as zeros.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        curvature: float = -1.0,
        bias: bool = True,
        dropout: float = 0.0,
        activation: Callable[[Tensor], Tensor] | None = None,
        heads: int = 1,
        times: slice | int = 0,
        scale: float = 10.0,
    ) -> None:
        """scale: eᶜ at the start. Weights begin uniform in ±1/√out_features.

        Raises UsageError if the heads do not divide out_features into two coordinates or more each.
        """
        super().__init__()
        if heads < 1 or out_features % heads or out_features // heads < 2:
            raise UsageError(
                f"LorentzLinear: {out_features} coordinates cannot be divided into {heads} points of at "
                "least 2"
            )
        self.radius = radius(curvature)
        self.heads = heads
        self.activation = activation
        self.dropout = dropout
        self.dense = nn.Linear(in_features, out_features, bias)
        self.scale = nn.Parameter(torch.tensor(math.log(scale)))
        bound = 1 / math.sqrt(out_features)
        with torch.no_grad():
            self.dense.weight.uniform_(-bound, bound)
            self.dense.weight[:, times] = 0
            if bias:
                self.dense.bias.zero_()

    def forward(
        self,
        x: Tensor,  # (…, in_features)
        residual: Tensor | None = None,  # (…, out_features), added before the time is formed
    ) -> Tensor:  # (…, out_features), or (…, heads, out_features / heads)
        if self.activation is not None:
            x = self.activation(x)
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        a = self.dense(x)
        if residual is not None:
            a = a + residual
        if self.heads > 1:
            a = a.unflatten(-1, (self.heads, -1))
        return on_hyperboloid(a, self.scale, self.radius)


def on_hyperboloid(
    a: Tensor,  # (…, d + 1)
    scale: Tensor,  # c, of no dimension
    R: float,
) -> Tensor:  # (…, d + 1)
    """t = R (σ(a₀) eᶜ + 1.1), and the direction of a₁ … a_d at the length √(t² − R²) that belongs to it.

    A vector shorter than √SHORTEST keeps its share of that length, and the time is the one that
    belongs to what is left; so zeros go to the origin and nothing is divided by zero. Under autocast the
    result is in float32, where half precision would leave the manifold.
    """
    wide = a.float() if a.dtype in (torch.float16, torch.bfloat16) else a
    with full_precision(a):
        found: Tensor = _OnHyperboloid.apply(wide, scale.to(wide.dtype), R)  # type: ignore[no-untyped-call]
    return found


class _OnHyperboloid(torch.autograd.Function):
    """`on_hyperboloid`; keeps one array of the input's size and five numbers a point for the backward pass.

    With s = (0, a₁ …), n = max(‖s‖², SHORTEST), q = t² − R², f = √(q/n): space f s, time √(f² ‖s‖² + R²).
    Everything runs over whole rows, the time's place holding 0: rows without it are not contiguous.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, scale: Tensor, R: float) -> Tensor:
        s = a.clamp(-LARGEST, LARGEST)
        s[..., 0] = 0
        squares = dot(s, s)
        sigma = torch.sigmoid(a[..., :1])
        reach = sigma * scale.exp()
        q = (reach + OFFSET).square_().sub_(1).mul_(R * R)
        f = (q / squares.clamp(min=SHORTEST)).sqrt_()
        time = (f.square() * squares).add_(R * R).sqrt_()
        y = s * f
        y[..., :1] = time
        ctx.save_for_backward(s, squares, f, time, sigma, reach)
        ctx.R = R
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        s, squares, f, time, sigma, reach = ctx.saved_tensors
        # The time depends on the space coordinates alone: its gradient adds `extra` s to theirs.
        extra = g[..., :1] / time * f
        along = dot(g, s).addcmul_(extra, squares)
        n = squares.clamp(min=SHORTEST)
        by_length = along / n
        by_reach = by_length / f * (ctx.R * ctx.R) * (reach + OFFSET) * reach
        by_length = torch.where(
            squares > SHORTEST, by_length, 0.0
        )  # n is fixed where it is clamped
        grad = (g * f).addcmul_((extra - by_length).mul_(f), s)
        grad[..., :1] = by_reach * (1 - sigma)
        return grad, by_reach.sum(), None
