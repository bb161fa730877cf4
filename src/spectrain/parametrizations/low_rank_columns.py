"""The product form beside a few whole columns of W."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrain.errors import UsageError
from spectrain.linalg import working
from spectrain.parametrizations.base import Factored, is_autocast

if TYPE_CHECKING:
    from spectrain.method import Method


class LowRankColumns(Factored):
    """y = γ B σ(A x) + (1 − γ) C x_I + b, with x_I the inputs of the channels I (Li et al. 2025).

    `A` (r, n), `B` (m, r) and `columns` C (m, c) trainable; `channels` I (c,) int64, ascending. All are
    zero until an initializer fills them. σ is SiLU, or the identity, with which W = γ B A and (1 − γ) C
    added to its columns I. 2 T r (m + n) + 2 T m c operations for T tokens, and twice as many backward.
    """

    channels: Tensor

    def __init__(
        self,
        linear: nn.Module,
        method: Method,
        *,
        rank: int,
        channels: int,
        mixing: float,  # γ
        curved: bool,  # True: σ is SiLU
    ) -> None:
        super().__init__(linear, method)
        weight = self.take_weight()
        self.mixing, self.curved = mixing, curved
        self.A = self.parameter(weight.new_zeros(rank, self.in_features), trainable=True)
        self.B = self.parameter(weight.new_zeros(self.out_features, rank), trainable=True)
        self.columns = self.parameter(weight.new_zeros(self.out_features, channels), trainable=True)
        self.register_buffer(
            "channels", torch.zeros(channels, dtype=torch.int64, device=weight.device)
        )

    def dense(self) -> Tensor:
        if self.curved:
            raise UsageError(
                "a layer with SiLU between its factors is no matrix: there is no W of it"
            )
        W = working(self.B) @ working(self.A) * self.mixing
        return W.index_add(1, self.channels, working(self.columns), alpha=1 - self.mixing)

    def forward(self, x: Tensor) -> Tensor:
        cast = not is_autocast(x)
        given = x.to(self.A.dtype) if cast else x
        inner = F.linear(given, self.A)
        inner = F.silu(inner) if self.curved else inner
        bias = None if self.bias is None else self.bias.to(self.B.dtype)
        y = F.linear(inner * self.mixing, self.B, bias)
        chosen = given.index_select(-1, self.channels) * (1 - self.mixing)
        y = y + F.linear(chosen, self.columns)
        return y.to(x.dtype) if cast else y
