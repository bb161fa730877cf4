"""Two thin factors that learn from the frozen matrix in whose place they stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrain.linalg import svd, working
from spectrain.parametrizations.base import Factored, compute_dtype, full_precision, is_autocast
from spectrain.sharding import divided

if TYPE_CHECKING:
    from spectrain.method import Method


class Distilled(Factored):
    """W = B A with `A` (r, n) and `B` (m, r) trainable, and beside it `teacher` (m, n), frozen.

    They begin as √s Vᵀ and U √s of the teacher's r leading triples, its best approximation of that rank.

    Between `listen` and `learn` the forward passes of an attached layer in training mode sum up the
    gradient that the distance D = B A − teacher gives the factors: of the mean over tokens and outputs of
    (x Dᵀ)², and of what the largest |D_ij| has above a tolerance, squared. x is the layer's own
    input, for both. 2 T m n + 4 T r (m + n) + 2 m n r operations for T tokens, and D, made for the call.
    """

    resident = ("gradient_A", "gradient_B", "tokens")
    _passing = (*Factored._passing, *resident)

    def __init__(
        self,
        linear: nn.Module,
        method: Method,
        *,
        rank: int,
        feature: float,
        perturbation: float,
        tolerance: float,
    ) -> None:
        """`feature` and `perturbation` are the weights of the two losses; 0 leaves one out."""
        super().__init__(linear, method)
        weight = self.take_weight()
        self.rank = rank
        self.feature, self.perturbation, self.tolerance = feature, perturbation, tolerance
        self.teacher = self.parameter(weight, trainable=False)
        U, s, V = svd(weight)
        roots = s[:rank].sqrt()
        self.A = self.parameter(roots[:, None] * V[:rank], trainable=True)
        self.B = self.parameter(U[:rank].mT * roots, trainable=True)
        self.gradient_A: Tensor | None = None  # sums over the tokens of this optimizer step
        self.gradient_B: Tensor | None = None
        self.tokens: Tensor | None = None

    def dense(self) -> Tensor:
        return working(self.B) @ working(self.A)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.gradient_A is not None and torch.is_grad_enabled():
            with torch.no_grad(), full_precision(x):
                self._hear(x.detach().reshape(-1, self.in_features).to(compute_dtype(x)))
        if is_autocast(x) or x.dtype == self.A.dtype:
            return F.linear(F.linear(x, self.A), self.B, self.bias)
        # A half-precision model, whose factors are in float32.
        y = F.linear(F.linear(x.to(self.A.dtype), self.A), self.B).to(x.dtype)
        return y if self.bias is None else y + self.bias

    def _hear(self, x: Tensor) -> None:
        """Add the gradients that the tokens x (T, n) give the factors."""
        assert self.gradient_A is not None and self.gradient_B is not None  # noqa: PT018
        assert self.tokens is not None
        A, B = working(self.A), working(self.B)
        distance = torch.addmm(working(self.teacher), B, A, beta=-1)
        count, m = x.shape[0], self.out_features
        self.tokens.add_(count)
        if self.feature:
            errors = x @ distance.to(x.dtype).mT  # (T, m)
            scale = 2 * self.feature / m
            grad_B = errors.mT @ (x @ A.to(x.dtype).mT)
            grad_A = (errors @ B.to(x.dtype)).mT @ x
            self.gradient_B.add_(grad_B, alpha=scale)
            self.gradient_A.add_(grad_A, alpha=scale)
        if self.perturbation:
            flat = distance.flatten()
            where = flat.abs().argmax().view(1)
            worst = flat[where]
            excess = (worst.abs() - self.tolerance).clamp(min=0) * worst.sign()
            row, column = where // self.in_features, where % self.in_features
            scale = (
                2 * self.perturbation * count
            )  # of every token, so that the mean is over all the same
            self.gradient_B.index_add_(0, row, excess * A[:, column].mT, alpha=scale)
            self.gradient_A.index_add_(1, column, excess * B[row].mT, alpha=scale)

    def listen(self) -> None:
        """Begin to sum up."""
        if self.gradient_A is None:
            like = torch.empty(0, dtype=working(self.A).dtype, device=self.clock.device)
            self.gradient_A = like.new_zeros(self.rank, self.in_features)
            self.gradient_B = like.new_zeros(self.out_features, self.rank)
            self.tokens = like.new_zeros(())

    def reduce(self, mean: Callable[[Tensor], None]) -> None:
        for tensor in (self.gradient_A, self.gradient_B, self.tokens):
            if tensor is not None:
                mean(tensor)

    @torch.no_grad()
    def learn(self, weight: float) -> None:
        """Add `weight` times the mean of what was summed up to the factors' gradients, and forget it."""
        tokens = self.tokens
        for factor, summed in ((self.A, self.gradient_A), (self.B, self.gradient_B)):
            if factor.grad is not None and summed is not None and tokens is not None:
                own = summed.mul_(weight / tokens.clamp(min=1))
                factor.grad.add_(divided(own, factor.grad))
        self.forget()

    def forget(self) -> None:
        super().forget()
        self.gradient_A = self.gradient_B = self.tokens = None
