"""The spectral form W = U diag(s) Vᵀ: r active triples of singular vectors and k − r frozen ones.

Singular vectors are rows, active ones first: U (k, m), V (k, n), W = Uᵀ diag(s) V. The gradients of
the vectors are the exact ones or the enhanced ones of Sparse Spectral Training (Zhao et al. 2025,
eq. 9), which leave out the factor s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrain.linalg import svd, working
from spectrain.parametrizations.base import Factored, compute_dtype

if TYPE_CHECKING:
    from spectrain.method import Method


class Spectral(Factored):
    """All k = min(m, n) triples: `s` (k,) trains, of the vectors the first r rows do.

    `U_active` (r, m), `V_active` (r, n) trainable; `U_frozen` (k − r, m), `V_frozen` (k − r, n) not,
    stored in `frozen_dtype`. Buffer `sampled_at` (k,): clock at which each triple was last made
    active, −1 for never. k (m + n) + k numbers are stored for the m n of a dense layer.
    """

    sampled_at: Tensor

    def __init__(
        self,
        linear: nn.Module,
        method: Method,
        *,
        rank: int,
        enhanced: bool = True,
        frozen_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(linear, method)
        weight = self.take_weight()
        self.enhanced = enhanced
        U, s, V = svd(weight)
        frozen = frozen_dtype or self.weight_dtype
        self.U_active = nn.Parameter(U[:rank].clone())
        self.s = nn.Parameter(s)
        self.V_active = nn.Parameter(V[:rank].clone())
        self.U_frozen = nn.Parameter(U[rank:].to(frozen, copy=True), requires_grad=False)
        self.V_frozen = nn.Parameter(V[rank:].to(frozen, copy=True), requires_grad=False)
        self.register_buffer("sampled_at", torch.full((self.size,), -1, device=weight.device))

    @property
    def rank(self) -> int:
        """r, the number of active triples."""
        return self.U_active.shape[0]

    def dense(self) -> Tensor:
        U = torch.cat((working(self.U_active), working(self.U_frozen)))
        V = torch.cat((working(self.V_active), working(self.V_frozen)))
        return (U.mT * self.s) @ V

    def forward(self, x: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        rows = x.reshape(-1, self.in_features).to(dtype)
        matrices = self.s, self.U_active, self.V_active, self.U_frozen, self.V_frozen
        if self._dense_route_is_cheaper(rows.shape[0]):
            y: Tensor = _DenseRoute.apply(rows, *matrices, self.enhanced)  # type: ignore[no-untyped-call]
        else:
            y = _FactoredRoute.apply(rows, *matrices, self.enhanced)  # type: ignore[no-untyped-call]
        y = y if self.bias is None else y + self.bias.to(dtype)
        return y.view(*x.shape[:-1], self.out_features)

    def _dense_route_is_cheaper(self, tokens: int) -> bool:
        """Compare the products of forward and backward, per the operation counts of both routes."""
        m, n, k, r = self.out_features, self.in_features, self.size, self.rank
        factored = 4 * tokens * k * (m + n) + 2 * tokens * r * (m + n)
        dense = 6 * tokens * m * n + 4 * m * n * k + 2 * m * n * r
        return dense < factored

    @torch.no_grad()
    def activate(
        self,
        chosen: Tensor,  # (r,) distinct positions in 0 … k − 1
        clock: int,
    ) -> None:
        """Make the triples at `chosen` the active ones: a swap in place; the function is unchanged.

        Triples that are active already stay where they are; the others change places with active
        triples that were not chosen (the paper's section 4.6).
        """
        if chosen.is_meta:
            return
        keep = torch.zeros(self.size, dtype=torch.bool, device=chosen.device)
        keep[chosen] = True
        leaving = (~keep[: self.rank]).nonzero().squeeze(1)
        entering = keep[self.rank :].nonzero().squeeze(1)
        for active, frozen in (
            (self.U_active, self.U_frozen),
            (self.V_active, self.V_frozen),
            (self.s[: self.rank], self.s[self.rank :]),
            (self.sampled_at[: self.rank], self.sampled_at[self.rank :]),
        ):
            rows = active[leaving]
            active[leaving] = frozen[entering].to(active.dtype)
            frozen[entering] = rows.to(frozen.dtype)
        self.sampled_at[: self.rank] = clock

    @torch.no_grad()
    def redecompose(self) -> None:
        """W = U diag(s) V decomposed anew: orthonormal vectors again, largest s first, none sampled."""
        U, s, V = svd(self.dense())
        self.U_active.copy_(U[: self.rank])
        self.U_frozen.copy_(U[self.rank :])
        self.V_active.copy_(V[: self.rank])
        self.V_frozen.copy_(V[self.rank :])
        self.s.copy_(s)
        self.sampled_at.fill_(-1)

    def project(self) -> None:
        """Back to unit vectors and s ≥ 0, after an optimizer step."""
        project_triples(self.U_active, self.s, self.V_active)


class SpectralResidual(Factored):
    """Only the r active triples in factors, the rest of W as one dense frozen matrix.

    `base` (m, n) frozen, `U_active` (r, m), `s` (r,), `V_active` (r, n) trainable: LoRA's memory and
    operations, at the price that frozen singular values do not move.
    """

    def __init__(
        self, linear: nn.Module, method: Method, *, rank: int, enhanced: bool = True
    ) -> None:
        super().__init__(linear, method)
        weight = self.take_weight()
        self.enhanced = enhanced
        self.base = self.parameter(weight, trainable=False)
        self.U_active = nn.Parameter(weight.new_zeros(rank, self.out_features))
        self.s = nn.Parameter(weight.new_zeros(rank))
        self.V_active = nn.Parameter(weight.new_zeros(rank, self.in_features))

    @property
    def rank(self) -> int:
        """r, the number of active triples."""
        return self.U_active.shape[0]

    def dense(self) -> Tensor:
        U, V = working(self.U_active), working(self.V_active)
        return torch.addmm(working(self.base), U.mT * self.s, V)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.base, self.bias)
        dtype = compute_dtype(x)
        rows = x.reshape(-1, self.in_features).to(dtype)
        none = rows.new_empty(0, self.out_features), rows.new_empty(0, self.in_features)
        factors = self.s, self.U_active, self.V_active, *none
        update: Tensor = _FactoredRoute.apply(rows, *factors, self.enhanced)  # type: ignore[no-untyped-call]
        return y + update.view_as(y)

    @torch.no_grad()
    def hold(
        self,
        U: Tensor,  # (k, m)
        s: Tensor,  # (k,)
        V: Tensor,  # (k, n)
        chosen: Tensor,  # (r,)
    ) -> None:
        """Make the triples at `chosen` of W's decomposition the active ones, the rest the base."""
        W = (U.mT * s) @ V
        self.U_active.copy_(U[chosen])
        self.s.copy_(s[chosen])
        self.V_active.copy_(V[chosen])
        self.base.copy_(W.addmm_(self.U_active.mT * self.s, self.V_active, alpha=-1))

    def project(self) -> None:
        """Back to unit vectors and s ≥ 0, after an optimizer step."""
        project_triples(self.U_active, self.s, self.V_active)


@torch.no_grad()
def project_triples(U: Tensor, s: Tensor, V: Tensor) -> None:
    """Scale every row of U and V to unit length and clamp s at zero, in place; zero rows stay zero."""
    for rows in (U, V):
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        rows.div_(norms.clamp_(min=torch.finfo(rows.dtype).tiny))
    s.clamp_(min=0)


class _FactoredRoute(torch.autograd.Function):
    """y = ((x Vᵀ) · s) U, token by token: 4 B k (m + n) + 2 B r (m + n) operations.

    Kept for the backward pass: x (B, n) and z = x Vᵀ (B, k).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (B, n)
        s: Tensor,  # (k,)
        U_active: Tensor,  # (r, m)
        V_active: Tensor,  # (r, n)
        U_frozen: Tensor,  # (k − r, m)
        V_frozen: Tensor,  # (k − r, n)
        enhanced: bool,
    ) -> Tensor:  # (B, m)
        r = U_active.shape[0]
        scale = s.to(x.dtype)
        z = torch.cat((x @ V_active.mT.to(x.dtype), x @ V_frozen.mT.to(x.dtype)), dim=1)
        y = (z[:, :r] * scale[:r]) @ U_active.to(x.dtype)
        if U_frozen.shape[0]:
            y.addmm_(z[:, r:] * scale[r:], U_frozen.to(x.dtype))
        ctx.save_for_backward(x, z, s, U_active, V_active, U_frozen, V_frozen)
        ctx.enhanced = enhanced
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, z, s, U_active, V_active, U_frozen, V_frozen = ctx.saved_tensors
        r, dtype = U_active.shape[0], x.dtype
        gy = gy.to(dtype)
        p_active = gy @ U_active.mT.to(dtype)  # (B, r)
        p_frozen = gy @ U_frozen.mT.to(dtype)  # (B, k − r)
        grad_s = torch.cat((_column_dots(p_active, z[:, :r]), _column_dots(p_frozen, z[:, r:])))
        grad_U, grad_V = z[:, :r].mT @ gy, p_active.mT @ x
        if not ctx.enhanced:
            grad_U, grad_V = grad_U * s[:r, None].to(dtype), grad_V * s[:r, None].to(dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:
            scale = s.to(dtype)
            grad_x = (p_active * scale[:r]) @ V_active.to(dtype)
            if V_frozen.shape[0]:
                grad_x.addmm_(p_frozen * scale[r:], V_frozen.to(dtype))
        grads = grad_s.to(s.dtype), grad_U.to(U_active.dtype), grad_V.to(V_active.dtype)
        return grad_x, *grads, None, None, None


class _DenseRoute(torch.autograd.Function):
    """y = x Wᵀ with W built for the call, and the factors' gradients read off M = gyᵀ x.

    6 B m n + about 4 m n k operations; M (m, n) exists only inside the layer's backward pass.
    Kept for the backward pass: x (B, n) and W (m, n).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (B, n)
        s: Tensor,  # (k,)
        U_active: Tensor,  # (r, m)
        V_active: Tensor,  # (r, n)
        U_frozen: Tensor,  # (k − r, m)
        V_frozen: Tensor,  # (k − r, n)
        enhanced: bool,
    ) -> Tensor:  # (B, m)
        r, dtype = U_active.shape[0], x.dtype
        W = U_active.mT.to(dtype) @ (V_active * s[:r, None]).to(dtype)
        if U_frozen.shape[0]:
            W.addmm_(U_frozen.mT.to(dtype), (V_frozen * s[r:, None]).to(dtype))
        ctx.save_for_backward(x, W, s, U_active, V_active, U_frozen, V_frozen)
        ctx.enhanced = enhanced
        return x @ W.mT

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, W, s, U_active, V_active, U_frozen, V_frozen = ctx.saved_tensors
        r, dtype = U_active.shape[0], x.dtype
        gy = gy.to(dtype)
        M = gy.mT @ x  # (m, n), the gradient of W
        grad_U = V_active.to(dtype) @ M.mT  # (r, m)
        frozen = V_frozen.to(dtype) @ M.mT  # (k − r, m)
        grad_V = U_active.to(dtype) @ M  # (r, n)
        grad_s = torch.cat((_row_dots(U_active, grad_U), _row_dots(U_frozen, frozen)))
        if not ctx.enhanced:
            grad_U, grad_V = grad_U * s[:r, None].to(dtype), grad_V * s[:r, None].to(dtype)
        grad_x = gy @ W if ctx.needs_input_grad[0] else None
        grads = grad_s.to(s.dtype), grad_U.to(U_active.dtype), grad_V.to(V_active.dtype)
        return grad_x, *grads, None, None, None


def _column_dots(a: Tensor, b: Tensor) -> Tensor:
    """Dot product of every pair of columns, summed in at least float32."""
    total = torch.float64 if a.dtype == torch.float64 else torch.float32
    return (a * b).sum(0, dtype=total)


def _row_dots(a: Tensor, b: Tensor) -> Tensor:
    """Dot product of every pair of rows, summed in at least float32."""
    total = torch.float64 if b.dtype == torch.float64 else torch.float32
    return (a.to(b.dtype) * b).sum(1, dtype=total)
