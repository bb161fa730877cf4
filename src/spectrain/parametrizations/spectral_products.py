"""Products with W = Uᵀ diag(s) V and their gradients, by the cheapest route.

Operations for B tokens, W (m, n), k = min(m, n), r active triples, forward and backward together
(a dense trained layer: 6 B m n):

    factored    4 B k (m + n) + 2 B r (m + n)           y = ((x Vᵀ) · s) U, W is never built
    dense       6 B m n + 4 m n k + 2 m n r             W is built, its gradient M = gyᵀ x transient
    active only 4 B m n + 4 B r (m + n) + 2 m n k       W is built, frozen s get no gradient

Gradients of the vectors are the exact ones, or with `enhanced` those without the factor s (Zhao et
al. 2025, eq. 9). Tensors are named by shape: x (B, n), gy (B, m), U (·, m), V (·, n), s (·,),
bias (m,). All products run in the dtype of x; dot products are summed in at least float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from spectrain.parametrizations.base import Gradients, own_backward, thin_product


def dense_route_is_cheaper(tokens: int, m: int, n: int, rank: int, training: bool) -> bool:
    """Compare both routes' operations: of forward and backward, or of an inference alone."""
    k = min(m, n)
    if not training:
        return 2 * m * n * (tokens + k) < 2 * tokens * k * (m + n)
    factored = 4 * tokens * k * (m + n) + 2 * tokens * rank * (m + n)
    return 6 * tokens * m * n + 4 * m * n * k + 2 * m * n * rank < factored


def built(
    parts: tuple[tuple[Tensor, Tensor, Tensor], ...],  # (U, s, V) of the active, the frozen triples
    dtype: torch.dtype,
) -> Tensor:  # (m, n)
    """Σ Uᵀ diag(s) V over the parts."""
    (U, s, V), *others = parts
    W = U.mT.to(dtype) @ (V * s[:, None]).to(dtype)
    for U, s, V in others:
        if s.shape[0]:
            W.addmm_(U.mT.to(dtype), (V * s[:, None]).to(dtype))
    return W


class FactoredRoute(torch.autograd.Function):
    """y = ((x Vᵀ) · s) U + bias, token by token.

    Kept for the backward pass: x (B, n) and z = x Vᵀ (B, k), or x alone with `recompute`, at the
    price of one more product, 2 B k n.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        s_active: Tensor,
        U_active: Tensor,
        V_active: Tensor,
        s_frozen: Tensor,
        U_frozen: Tensor,
        V_frozen: Tensor,
        bias: Tensor | None,
        enhanced: bool,
        recompute: bool,
    ) -> Tensor:  # (B, m)
        factors = s_active, U_active, V_active, s_frozen, U_frozen, V_frozen
        z = x @ _stacked(V_active, V_frozen, x.dtype).mT
        # s goes onto the rows of U, not onto z: fewer numbers where B > m, and z stays as it is.
        scaled = _scaled(U_active, s_active, U_frozen, s_frozen, x.dtype)
        y = F.linear(z, scaled.mT, None if bias is None else bias.to(x.dtype))
        ctx.save_for_backward(x, None if recompute else z, *factors)
        ctx.enhanced, ctx.bias_dtype = enhanced, None if bias is None else bias.dtype
        return y

    @staticmethod
    @own_backward
    def backward(ctx: Any, gy: Tensor) -> Gradients:
        x, z, s_active, U_active, V_active, s_frozen, U_frozen, V_frozen = ctx.saved_tensors
        r, dtype = U_active.shape[0], x.dtype
        gy = gy.to(dtype)
        if z is None:
            z = x @ _stacked(V_active, V_frozen, dtype).mT
        p = gy @ _stacked(U_active, U_frozen, dtype).mT  # (B, k)
        grad_U, grad_V = thin_product(z[:, :r], gy), thin_product(p[:, :r], x)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = p @ _scaled(V_active, s_active, V_frozen, s_frozen, dtype)
        grad_s = p.mul_(z).sum(0, dtype=_sums(dtype))
        vectors = _vector_gradients(grad_U, grad_V, s_active, U_active, V_active, ctx.enhanced)
        grad_s = grad_s.to(s_active.dtype)
        bias = _bias_gradient(ctx, gy, 7)
        return grad_x, grad_s[:r], *vectors, grad_s[r:], None, None, bias, None, None


class DenseRoute(torch.autograd.Function):
    """y = x Wᵀ + bias, and the factors' gradients read off M = gyᵀ x.

    M (m, n) exists only inside the layer's backward pass. Kept for it: x (B, n) and W (m, n).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W: Tensor,  # (m, n), built from the factors that follow
        s_active: Tensor,
        U_active: Tensor,
        V_active: Tensor,
        s_frozen: Tensor,
        U_frozen: Tensor,
        V_frozen: Tensor,
        bias: Tensor | None,
        enhanced: bool,
    ) -> Tensor:  # (B, m)
        ctx.save_for_backward(x, W, s_active, U_active, V_active, s_frozen, U_frozen, V_frozen)
        ctx.enhanced, ctx.bias_dtype = enhanced, None if bias is None else bias.dtype
        return F.linear(x, W, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @own_backward
    def backward(ctx: Any, gy: Tensor) -> Gradients:
        x, W, s_active, U_active, V_active, s_frozen, U_frozen, V_frozen = ctx.saved_tensors
        dtype = x.dtype
        gy = gy.to(dtype)
        M = gy.mT @ x  # (m, n), the gradient of W
        grad_U = V_active.to(dtype) @ M.mT  # (r, m)
        grad_V = U_active.to(dtype) @ M  # (r, n)
        frozen = V_frozen.to(dtype) @ M.mT  # (k − r, m)
        del M
        grad_s = (U_active.to(dtype) * grad_U).sum(1, dtype=_sums(dtype)).to(s_active.dtype)
        grad_s_frozen = frozen.mul_(U_frozen).sum(1, dtype=_sums(dtype)).to(s_frozen.dtype)
        vectors = _vector_gradients(grad_U, grad_V, s_active, U_active, V_active, ctx.enhanced)
        grad_x = gy @ W if ctx.needs_input_grad[0] else None
        bias = _bias_gradient(ctx, gy, 8)
        return grad_x, None, grad_s, *vectors, grad_s_frozen, None, None, bias, None


class ActiveRoute(torch.autograd.Function):
    """y = x Wᵀ + bias with gradients for the active triples alone.

    `weight` is W (m, n), or with `adds` what the active triples come on top of: added to it for the
    call, in the forward and again in the backward pass (4 m n r operations, and no second matrix is
    kept), or multiplied by themselves where the tokens are few. Kept for the backward pass: x (B, n).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        s: Tensor,
        U: Tensor,
        V: Tensor,
        bias: Tensor | None,
        resting: Tensor | None,  # (·,), a factor whose gradient is zero by intention
        enhanced: bool,
        adds: bool,
    ) -> Tensor:  # (B, m)
        ctx.save_for_backward(x, weight, s, U, V, resting)
        ctx.enhanced, ctx.adds = enhanced, adds
        ctx.bias_dtype = None if bias is None else bias.dtype
        bias = None if bias is None else bias.to(x.dtype)
        if not adds:
            return F.linear(x, weight, bias)
        if _adding_is_cheaper(x, weight):
            return F.linear(x, _added(weight, s, U, V, x.dtype), bias)
        z = (x @ V.mT.to(x.dtype)) * s.to(x.dtype)
        return F.linear(x, weight.to(x.dtype), bias).addmm_(z, U.to(x.dtype))

    @staticmethod
    @own_backward
    def backward(ctx: Any, gy: Tensor) -> Gradients:
        x, weight, s, U, V, resting = ctx.saved_tensors
        dtype, (m, n), r = x.dtype, weight.shape, s.shape[0]
        gy = gy.to(dtype)
        grad_x = None
        apart = ctx.needs_input_grad[0] and ctx.adds and not _adding_is_cheaper(x, weight)
        if apart:
            grad_x = gy @ weight.to(dtype)
        elif ctx.needs_input_grad[0]:
            grad_x = gy @ (_added(weight, s, U, V, dtype) if ctx.adds else weight)
        p = None
        if 2 * m * n * (x.shape[0] + 2 * r) < 4 * x.shape[0] * r * (m + n):  # from about r = d/4
            M = gy.mT @ x
            grad_U, grad_V = V.to(dtype) @ M.mT, U.to(dtype) @ M
            grad_s = (U.to(dtype) * grad_U).sum(1, dtype=_sums(dtype))
        else:
            p, z = gy @ U.mT.to(dtype), x @ V.mT.to(dtype)  # (B, r) each
            grad_U, grad_V = thin_product(z, gy), thin_product(p, x)
            grad_s = z.mul_(p).sum(0, dtype=_sums(dtype))
        if grad_x is not None and apart:
            p = gy @ U.mT.to(dtype) if p is None else p
            grad_x.addmm_(p.mul_(s.to(dtype)), V.to(dtype))
        vectors = _vector_gradients(grad_U, grad_V, s, U, V, ctx.enhanced)
        bias = _bias_gradient(ctx, gy, 5)
        rest = None if resting is None else torch.zeros_like(resting)
        return grad_x, None, grad_s.to(s.dtype), *vectors, bias, rest, None, None


def _stacked(active: Tensor, frozen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.cat((active.to(dtype), frozen.to(dtype)))


def _scaled(
    active: Tensor, s_active: Tensor, frozen: Tensor, s_frozen: Tensor, dtype: torch.dtype
) -> Tensor:
    """Both parts' rows times their singular values, below each other."""
    return torch.cat(
        ((active * s_active[:, None]).to(dtype), (frozen * s_frozen[:, None]).to(dtype))
    )


def _adding_is_cheaper(x: Tensor, weight: Tensor) -> bool:
    """2 m n r operations for W in one matrix, against 2 B r (m + n) for a product with the triples."""
    m, n = weight.shape
    return m * n < x.shape[0] * (m + n)


def _added(weight: Tensor, s: Tensor, U: Tensor, V: Tensor, dtype: torch.dtype) -> Tensor:
    """weight + Uᵀ diag(s) V."""
    return torch.addmm(weight.to(dtype), U.mT.to(dtype), (V * s[:, None]).to(dtype))


def _vector_gradients(
    grad_U: Tensor, grad_V: Tensor, s: Tensor, U: Tensor, V: Tensor, enhanced: bool
) -> tuple[Tensor, Tensor]:
    if not enhanced:
        scale = s[:, None].to(grad_U.dtype)
        grad_U, grad_V = grad_U * scale, grad_V * scale
    return grad_U.to(U.dtype), grad_V.to(V.dtype)


def _bias_gradient(ctx: Any, gy: Tensor, position: int) -> Tensor | None:
    if ctx.bias_dtype is None or not ctx.needs_input_grad[position]:
        return None
    return gy.sum(0, dtype=_sums(gy.dtype)).to(ctx.bias_dtype)


def _sums(dtype: torch.dtype) -> torch.dtype:
    """What sums over many numbers of `dtype` are taken in."""
    return torch.float64 if dtype == torch.float64 else torch.float32
