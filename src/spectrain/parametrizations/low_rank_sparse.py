"""The product form with single entries added at fixed places."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrain.linalg import working
from spectrain.parametrizations.base import (
    Factored,
    Gradients,
    compute_dtype,
    full_precision,
    own_backward,
)

if TYPE_CHECKING:
    from spectrain.method import Method


class LowRankSparse(Factored):
    """y = x Wᵀ + b with W = scale · B A + S, S being zero but for `values` at `places`.

    `A` (r, n), `B` (m, r) and `values` (p,) trainable; `places` (p,) are positions in W read row by row,
    ascending, int32 where that suffices. All are zero until an initializer fills them.
    """

    places: Tensor

    def __init__(
        self, linear: nn.Module, method: Method, *, rank: int, scale: float, entries: int
    ) -> None:
        super().__init__(linear, method)
        weight = self.take_weight()
        self.scale = scale
        self.A = self.parameter(weight.new_zeros(rank, self.in_features), trainable=True)
        self.B = self.parameter(weight.new_zeros(self.out_features, rank), trainable=True)
        self.values = self.parameter(weight.new_zeros(entries), trainable=True)
        kind = torch.int32 if weight.numel() < 2**31 else torch.int64
        self.register_buffer("places", torch.zeros(entries, dtype=kind, device=weight.device))

    def dense(self) -> Tensor:
        product = working(self.B) @ working(self.A) * self.scale
        return product.flatten().index_add(0, self.places, working(self.values)).view_as(product)

    def forward(self, x: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        rows = x.reshape(-1, self.in_features).to(dtype)
        parts = self.A, self.B, self.values, self.places
        y: Tensor = _Product.apply(rows, *parts, self.bias, self.scale)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], self.out_features)


class _Product(torch.autograd.Function):
    """y = x Wᵀ + b for T tokens, with W (m, n) built for the call and built again in backward.

    6 T m n + 8 m n r operations in all; x (T, n) and the parts of W are all that is kept. What W takes, and
    in backward its gradient, is there for one layer at a time. benchmarks/sparse_products.py measures
    products with S alone: where they would be cheaper, and by how much.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (T, n)
        A: Tensor,  # (r, n)
        B: Tensor,  # (m, r)
        values: Tensor,  # (p,)
        places: Tensor,  # (p,)
        bias: Tensor | None,  # (m,)
        scale: float,
    ) -> Tensor:  # (T, m)
        ctx.save_for_backward(x, A, B, values, places)
        ctx.scale, ctx.bias_dtype = scale, None if bias is None else bias.dtype
        with full_precision(x):
            W = _whole(A, B, values, places, scale).to(x.dtype)
        return F.linear(x, W, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @own_backward
    def backward(ctx: Any, gy: Tensor) -> Gradients:
        x, A, B, values, places = ctx.saved_tensors
        gy = gy.to(x.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = gy @ _whole(A, B, values, places, ctx.scale).to(x.dtype)
        grad_W = (gy.mT @ x).to(A.dtype)
        grad_A = (B.mT @ grad_W).mul_(ctx.scale)
        grad_B = (grad_W @ A.mT).mul_(ctx.scale)
        grad_values = grad_W.view(-1).index_select(0, places)
        grad_bias = gy.sum(0).to(ctx.bias_dtype) if ctx.needs_input_grad[5] else None
        return grad_x, grad_A, grad_B, grad_values, None, grad_bias, None


def _whole(A: Tensor, B: Tensor, values: Tensor, places: Tensor, scale: float) -> Tensor:
    """W (m, n), in the factors' precision."""
    W = (B @ A).mul_(scale)
    W.view(-1).index_add_(0, places, values)
    return W
