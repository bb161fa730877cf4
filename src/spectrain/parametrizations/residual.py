"""The residual form of the spectral one: r active triples beside a dense frozen matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spectrain.linalg import orthogonality_error, randomized_svd, svd, working
from spectrain.parametrizations.base import Factored, compute_dtype
from spectrain.parametrizations.spectral_products import ActiveRoute
from spectrain.sampling import draw

if TYPE_CHECKING:
    from spectrain.method import Method


class SpectralResidual(Factored):
    """Only the r active triples in factors, the rest of W as one dense frozen matrix.

    `base` (m, n) frozen, `U_active` (r, m), `s_active` (r,), `V_active` (r, n) trainable: LoRA's
    memory and operations, at the price that frozen singular values do not move. `places` (r,) tells which
    of W's triples, counted from the largest, were drawn.
    """

    def __init__(
        self, linear: nn.Module, method: Method, *, rank: int, enhanced: bool = True
    ) -> None:
        super().__init__(linear, method)
        weight = self.take_weight()
        self.enhanced = enhanced
        self.base = self.parameter(weight, trainable=False)
        self.s_active = nn.Parameter(weight.new_zeros(rank))
        self.U_active = nn.Parameter(weight.new_zeros(rank, self.out_features))
        self.V_active = nn.Parameter(weight.new_zeros(rank, self.in_features))
        self.places: Tensor
        self.register_buffer("places", torch.arange(rank, device=weight.device))

    @property
    def rank(self) -> int:
        """r, the number of active triples."""
        return self.U_active.shape[0]

    @property
    def s(self) -> Tensor:
        """The active singular values (r,)."""
        return self.s_active

    def drift(self) -> Tensor:
        return torch.maximum(orthogonality_error(self.U_active), orthogonality_error(self.V_active))

    def sampled(self) -> Tensor:
        return self.places

    def dense(self) -> Tensor:
        U, V = working(self.U_active), working(self.V_active)
        return torch.addmm(working(self.base), U.mT * self.s_active, V)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features).to(compute_dtype(x))
        factors = self.s_active, self.U_active, self.V_active
        y = ActiveRoute.apply(rows, self.base, *factors, self.bias, None, self.enhanced, True)  # type: ignore[no-untyped-call]
        whole: Tensor = y.view(*x.shape[:-1], self.out_features)
        return whole

    @torch.no_grad()
    def renew(
        self,
        sampling: str,  # one of sampling.SCHEMES, but "sequential"
        generator: torch.Generator,
        candidates: int | None = None,
    ) -> None:
        """Draw r triples of W anew and make them the active ones, the rest of W the base.

        From all of W's triples, or from so many `candidates`, the leading ones of a randomised SVD.
        """
        W = self.dense()
        U, s, V = svd(W) if candidates is None else randomized_svd(W, candidates, generator)
        chosen = draw(sampling, s, self.rank, generator)
        self.places.copy_(chosen)
        self.U_active.copy_(U[chosen])
        self.s_active.copy_(s[chosen])
        self.V_active.copy_(V[chosen])
        # Of the factors as they were stored: what that rounded off goes into the base.
        U, s, V = (working(p) for p in (self.U_active, self.s_active, self.V_active))
        self.base.copy_(W.addmm_(U.mT * s, V, alpha=-1))
