"""Floating-point operations of one training step, counted layer by layer.

Only products of matrices are counted, 2 a b c for (a, b) times (b, c): those of the linear layers,
forward and backward, the building of W and of transient matrices, and those of step rules. Attention,
norms and activations are the same in every arm and are left out, as is all that works number by
number. B tokens a step, W (m, n), k = min(m, n), rank r. `tests/test_benchmark_speed.py` compares the
counts with the products that a step really runs.
"""

from __future__ import annotations

from collections.abc import Callable

Count = Callable[[int, int, int, int], float]  # of (B, m, n, r)


def full(B: int, m: int, n: int, r: int) -> float:
    """y, the gradient of x, the gradient of W."""
    return 6 * B * m * n


def sst(B: int, m: int, n: int, r: int) -> float:
    """The cheaper of the factored and the dense route."""
    return min(_factored(B, m, n, r), _dense(B, m, n, r))


def sst_recompute(B: int, m: int, n: int, r: int) -> float:
    """x Vᵀ a second time where the route is the factored one."""
    factored = _factored(B, m, n, r)
    if _dense(B, m, n, r) < factored:
        return _dense(B, m, n, r)
    return factored + 2 * B * min(m, n) * n


def sst_frozen_s_every(period: int) -> Count:
    """SST's step once, then period − 1 steps on a W that is built once each, frozen s at rest."""

    def count(B: int, m: int, n: int, r: int) -> float:
        k = min(m, n)
        at_rest = 4 * B * m * n + 2 * m * n * k + _pair(B, m, n, r)
        return (sst(B, m, n, r) + (period - 1) * at_rest) / period

    return count


def update(B: int, m: int, n: int, r: int) -> float:
    """Frozen matrix plus a low-rank product that is added to it for the call, forward and backward."""
    return 4 * B * m * n + 4 * m * n * r + _pair(B, m, n, r)


def residual(B: int, m: int, n: int, r: int) -> float:
    """The same, or the triples multiplied by themselves where a layer has few tokens for its size."""
    if m * n < B * (m + n):
        return update(B, m, n, r)
    through_M = 2 * B * m * n + 4 * m * n * r
    token_by_token = 4 * B * r * (m + n)  # of which gy Uᵀ also serves the gradient of x
    alone = through_M < token_by_token
    gradients = through_M + 2 * B * r * m if alone else token_by_token
    return 4 * B * m * n + 2 * B * r * (m + n) + 2 * B * r * n + gradients


def lora(B: int, m: int, n: int, r: int) -> float:
    """The same, or token by token where a layer has few tokens for its size."""
    if 2 * m * n < B * (m + 2 * n):
        return update(B, m, n, r)
    inner = 2 * B * r * m  # shared by the gradients of A and of x
    gradients = min(2 * B * m * n + 4 * m * n * r, 4 * B * r * (m + n) - inner)
    return 4 * B * m * n + 4 * B * r * n + 2 * B * r * m + inner + gradients


def galore(B: int, m: int, n: int, r: int) -> float:
    """The gradient formed in the subspace, and the fold."""
    return 4 * B * m * n + 2 * B * r * (m + n) + 2 * m * n * r


def three_products(B: int, m: int, n: int, r: int) -> float:
    """x V, · Uᵀ, and autograd's gradients of both factors, frozen columns included."""
    return 6 * B * min(m, n) * (m + n)


def peft_lora(B: int, m: int, n: int, r: int) -> float:
    """The frozen product, and both factors with autograd's gradients, token by token."""
    return 4 * B * m * n + 6 * B * r * (m + n)


def galore_torch(B: int, m: int, n: int, r: int) -> float:
    """The dense gradient, projected and its step projected back."""
    return full(B, m, n, r) + 4 * m * n * r


def apollo_torch(B: int, m: int, n: int, r: int) -> float:
    """The dense gradient, projected."""
    return full(B, m, n, r) + 2 * m * n * r


def total(count: Count, matrices: list[tuple[int, int]], tokens: int, rank: int) -> float:
    """The operations of one step of all layers."""
    return sum(count(tokens, m, n, rank) for m, n in matrices)


def _factored(B: int, m: int, n: int, r: int) -> float:
    return 4 * B * min(m, n) * (m + n) + 2 * B * r * (m + n)


def _dense(B: int, m: int, n: int, r: int) -> float:
    return 6 * B * m * n + 4 * m * n * min(m, n) + 2 * m * n * r


def _pair(B: int, m: int, n: int, r: int) -> float:
    """Gradients of a low-rank pair: token by token, or through the dense gradient where cheaper."""
    return min(4 * B * r * (m + n), 2 * B * m * n + 4 * m * n * r)
