"""The spectral form W = U diag(s) Vᵀ: r active triples of singular vectors and k − r frozen ones.

Singular vectors are rows, active ones first: U (k, m), V (k, n), W = Uᵀ diag(s) V. How products and
gradients are formed is in `spectral_products`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spectrain.abstract import is_abstract
from spectrain.linalg import orthogonality_error, svd, working
from spectrain.parametrizations.base import Factored, compute_dtype, of_equal_shape
from spectrain.parametrizations.spectral_products import (
    ActiveRoute,
    DenseRoute,
    FactoredRoute,
    built,
    dense_route_is_cheaper,
)
from spectrain.sharding import local

if TYPE_CHECKING:
    from spectrain.method import Method


class Spectral(Factored):
    """All k = min(m, n) triples: every singular value trains, of the vectors the first r rows do.

    `s_active` (r,), `U_active` (r, m), `V_active` (r, n), `s_frozen` (k − r,) trainable; `U_frozen`
    (k − r, m), `V_frozen` (k − r, n) not, stored in `frozen_dtype`. Buffer `sampled_at` (k,): clock at
    which each triple was last made active, −1 for never. k (m + n) + k numbers are stored for the
    m n of a dense layer.

    Where W itself is needed it is built once for an optimizer step and shared by its micro-batches,
    while the layer is attached and in training mode; `release` drops it.
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
        recompute: bool = False,
    ) -> None:
        super().__init__(linear, method)
        weight = self.take_weight()
        self.enhanced = enhanced
        self.recompute = recompute
        self.frozen_s_rest = False  # True in steps that leave frozen singular values alone
        # The state that W was built from, its storages, and W.
        self.kept: tuple[object, object, Tensor] | None = None
        U, s, V = svd(weight)
        frozen = frozen_dtype or self.weight_dtype
        self.s_active = nn.Parameter(s[:rank].clone())
        self.U_active = nn.Parameter(U[:rank].clone())
        self.V_active = nn.Parameter(V[:rank].clone())
        # Without numbers there is nothing to train; fully_shard cannot reduce an empty gradient.
        self.s_frozen = nn.Parameter(s[rank:].clone(), requires_grad=rank < self.size)
        self.U_frozen = nn.Parameter(U[rank:].to(frozen, copy=True), requires_grad=False)
        self.V_frozen = nn.Parameter(V[rank:].to(frozen, copy=True), requires_grad=False)
        self.register_buffer("sampled_at", torch.full((self.size,), -1, device=weight.device))

    @property
    def rank(self) -> int:
        """r, the number of active triples."""
        return self.U_active.shape[0]

    @property
    def s(self) -> Tensor:
        """All singular values (k,), the active ones first; a copy."""
        return torch.cat((self.s_active, self.s_frozen))

    def dense(self) -> Tensor:
        U = torch.cat((working(self.U_active), working(self.U_frozen)))
        V = torch.cat((working(self.V_active), working(self.V_frozen)))
        return (U.mT * self.s) @ V

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features).to(compute_dtype(x))
        m, n, tokens = self.out_features, self.in_features, rows.shape[0]
        training = self.training or torch.is_grad_enabled()
        active = self.s_active, self.U_active, self.V_active
        frozen = self.s_frozen, self.U_frozen, self.V_frozen
        if self.frozen_s_rest and self.training:
            W = self._matrix(rows.dtype)
            # s_frozen gets zeros, not None: several processes wait for every gradient.
            y = ActiveRoute.apply(rows, W, *active, self.bias, self.s_frozen, self.enhanced, False)  # type: ignore[no-untyped-call]
        elif dense_route_is_cheaper(tokens, m, n, self.rank, training):
            W = self._matrix(rows.dtype)
            y = DenseRoute.apply(rows, W, *active, *frozen, self.bias, self.enhanced)  # type: ignore[no-untyped-call]
        else:
            flags = self.bias, self.enhanced, self.recompute
            y = FactoredRoute.apply(rows, *active, *frozen, *flags)  # type: ignore[no-untyped-call]
        whole: Tensor = y.view(*x.shape[:-1], m)
        return whole

    def _matrix(self, dtype: torch.dtype) -> Tensor:
        """W (m, n) in `dtype`, the one of this optimizer step where that may be kept.

        Not in evaluation, where weights may be exchanged by means that leave no trace (an average of
        weights copied into `.data`), and not under torch.compile, whose graphs hold no such state.
        """
        parts = (
            (self.U_active, self.s_active, self.V_active),
            (self.U_frozen, self.s_frozen, self.V_frozen),
        )
        lasting = self.attached and self.training and torch.is_grad_enabled()
        with torch.no_grad():
            if not lasting or torch.compiler.is_compiling():
                return built(parts, dtype)
            # Storage and version tell a tensor's state; the storages are held, lest that of another
            # tensor come to lie where one of them was.
            tensors = [p for part in parts for p in part]
            storages = [p.untyped_storage() for p in tensors]
            state = dtype, *((s._cdata, p._version) for s, p in zip(storages, tensors, strict=True))
            if self.kept is None or self.kept[0] != state:
                self.kept = state, storages, built(parts, dtype)
            return self.kept[2]

    def resting(self) -> tuple[nn.Parameter, ...]:
        return (self.s_frozen,) if self.frozen_s_rest else ()

    def drift(self) -> Tensor:
        return torch.maximum(
            orthogonality_error(self.U_active, self.U_frozen),
            orthogonality_error(self.V_active, self.V_frozen),
        )

    def sampled(self) -> Tensor:
        order = self.s.detach().argsort(descending=True)
        return order.argsort()[: self.rank]

    def release(self) -> None:
        self.kept = None

    def forget(self) -> None:
        self.kept = None
        self.frozen_s_rest = False

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
        if is_abstract(chosen):
            return
        keep = torch.zeros(self.size, dtype=torch.bool, device=chosen.device)
        keep[chosen] = True
        leaving = (~keep[: self.rank]).nonzero().squeeze(1)
        entering = keep[self.rank :].nonzero().squeeze(1)
        for active, frozen in (
            (self.U_active, self.U_frozen),
            (self.V_active, self.V_frozen),
            (self.s_active, self.s_frozen),
            (self.sampled_at[: self.rank], self.sampled_at[self.rank :]),
        ):
            rows = active[leaving]
            active[leaving] = frozen[entering].to(active.dtype)
            frozen[entering] = rows.to(frozen.dtype)
        self.sampled_at[: self.rank] = clock

    @torch.no_grad()
    def hold(
        self,
        U: Tensor,  # (k, m)
        s: Tensor,  # (k,)
        V: Tensor,  # (k, n)
    ) -> None:
        """Take a new decomposition of W: the first r triples active, none sampled yet."""
        for values, active, frozen in (
            (U, self.U_active, self.U_frozen),
            (s, self.s_active, self.s_frozen),
            (V, self.V_active, self.V_frozen),
        ):
            active.copy_(values[: self.rank])
            frozen.copy_(values[self.rank :])
        self.sampled_at.fill_(-1)


@torch.no_grad()
def redecompose(layers: Sequence[Spectral]) -> None:
    """Every W = U diag(s) V decomposed anew: orthonormal vectors again, the largest s first."""
    for group in of_equal_shape(layers):
        decomposed = svd(torch.stack([layer.dense() for layer in group]))
        for layer, *triples in zip(group, *decomposed, strict=True):
            layer.hold(*triples)


@torch.no_grad()
def project(vectors: list[Tensor], singular_values: list[Tensor]) -> None:
    """Rows of all `vectors` back to unit length, all s ≥ 0, in place; rows that are zero stay zero."""
    vectors, singular_values = [local(v) for v in vectors], [local(s) for s in singular_values]
    norms: list[Tensor] = [torch.linalg.vector_norm(p, dim=1, keepdim=True) for p in vectors]
    torch._foreach_clamp_min_(norms, max(torch.finfo(norm.dtype).tiny for norm in norms))
    torch._foreach_div_(vectors, norms)
    torch._foreach_clamp_min_(singular_values, 0.0)
