"""Edits of optimizer state: clear, prune and rotate the moments of single parameters, in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from spectrain.errors import UsageError

# The values that torch's optimizers begin with, by the name of the state; anything else is refused.
_AT_START: dict[str, float] = {
    "step": 0.0,
    "exp_avg": 0.0,
    "exp_avg_sq": 0.0,
    "max_exp_avg_sq": 0.0,
    "exp_inf": 0.0,
    "momentum_buffer": 0.0,
    "square_avg": 0.0,
    "acc_delta": 0.0,
    "grad_avg": 0.0,
    "sum": 0.0,
    "prev": 0.0,
    "mu_product": 1.0,
}
_FIRST_ORDER = ("exp_avg", "momentum_buffer", "grad_avg")
_SECOND_ORDER = ("exp_avg_sq", "max_exp_avg_sq", "square_avg")
_MOMENTS = (*_FIRST_ORDER, *_SECOND_ORDER)


class Moments:
    """The state of the optimizers that step a model's factors, addressed by parameter.

    All edits are in place (identity of state tensors is what fused kernels, sharding wrappers and
    state-dict collection rely on). A parameter that was not stepped yet has nothing to edit.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = tuple(optimizers)
        self._home = {
            id(p): (optimizer, index)
            for optimizer in optimizers
            for index, group in enumerate(optimizer.param_groups)
            for p in group["params"]
        }

    def __contains__(self, parameter: Tensor) -> bool:
        return id(parameter) in self._home

    def group(self, parameter: Tensor) -> dict[str, Any]:
        """The parameter group that holds `parameter`."""
        optimizer, index = self._home[id(parameter)]
        group: dict[str, Any] = optimizer.param_groups[index]
        return group

    def optimizer(self, parameter: Tensor) -> Optimizer:
        """The optimizer that steps `parameter`."""
        return self._home[id(parameter)][0]

    def state(self, parameter: Tensor) -> dict[str, Any]:
        """The optimizer's state of `parameter`; empty before its first step."""
        state: dict[str, Any] = self.optimizer(parameter).state.get(parameter, {})
        return state

    def require_editable(self, parameter: Tensor) -> None:
        """Raise UsageError if the state of `parameter` holds something we could not reset."""
        optimizer = self.optimizer(parameter)
        unknown = sorted(k for k, v in self.state(parameter).items() if not _known(k, v))
        if unknown:
            raise UsageError(
                f"{type(optimizer).__name__} keeps {', '.join(unknown)} for each parameter, and "
                "spectrain does not know how to reset that at an event of this method; use AdamW, "
                "Adam, SGD, RMSprop, NAdam or RAdam"
            )

    @torch.no_grad()
    def clear(self, parameter: Tensor, index: Tensor | None = None, dim: int = 0) -> None:
        """Back to the state before the first step: moments and step counter.

        With `index`, only the moments of those rows (dim=0) or columns (dim=1), as where single
        vectors are exchanged; the step counter, which a tensor has but one of, stays.
        """
        self.require_editable(parameter)
        state = self.state(parameter)
        for name, value in state.items():
            if index is not None:
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.index_fill_(dim, index.to(value.device), _AT_START[name])
            elif isinstance(value, Tensor):
                value.fill_(_AT_START[name])
            elif value is not None:
                state[name] = type(value)(_AT_START[name])

    def clear_all(self) -> None:
        """`clear` for every parameter of every optimizer: as if they were made anew."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    self.clear(parameter)

    @torch.no_grad()
    def prune(self, parameter: Tensor, ratio: float, by: str, generator: torch.Generator) -> None:
        """Zero a share `ratio` of the moments, drawn at random or the smallest of the first moment.

        The step counter stays (Lialin et al. 2024, section 3). The same entries go from all moments: a
        first moment left without its second would be divided by ε alone wherever the next gradient is
        zero, as A's is right after a merge. (The released code draws for each moment by itself.)
        """
        self.require_editable(parameter)
        moments = {n: v for n, v in self.state(parameter).items() if n in _MOMENTS}
        first = next((v for v in moments.values() if isinstance(v, Tensor)), None)
        if first is None:
            return
        if by == "random":
            drop = torch.rand(parameter.shape, generator=generator).to(first.device) < ratio
        else:
            drop = torch.zeros(first.numel(), dtype=torch.bool, device=first.device)
            drop[first.abs().flatten().argsort()[: round(ratio * first.numel())]] = True
            drop = drop.view_as(first)
        for value in moments.values():
            if isinstance(value, Tensor):
                value.masked_fill_(drop, 0.0)

    @torch.no_grad()
    def rotate(
        self,
        parameter: Tensor,
        overlap: Tensor,  # (r, r): new basis · old basisᵀ
        *,
        dim: int,  # the dimension of the parameter that the basis indexes
    ) -> None:
        """Carry moments into a new basis: M ← Q M, V ← (Q∘Q)(V − M²)₊ + (Q M)².

        M and V here are the bias-corrected ones. The second moment follows from transporting mean and
        variance with coordinates taken as uncorrelated (LDAdam, Robert et al. 2025).
        """
        self.require_editable(parameter)
        state = self.state(parameter)
        first = next((state[n] for n in _FIRST_ORDER if isinstance(state.get(n), Tensor)), None)
        mean_weight, square_weight = self._weights(parameter)
        mean = torch.zeros((), device=overlap.device)
        moved = mean
        if first is not None:
            mean = _along(first, dim) / mean_weight
            moved = overlap.to(first.dtype) @ mean
            _along(first, dim).copy_(moved * mean_weight)
        for name in _SECOND_ORDER:
            value = state.get(name)
            if isinstance(value, Tensor):
                spread = (_along(value, dim) / square_weight - mean.square()).clamp_(min=0)
                carried = overlap.to(value.dtype).square() @ spread + moved.square()
                _along(value, dim).copy_(carried * square_weight)

    def _weights(self, parameter: Tensor) -> tuple[float, float]:
        """What Adam divides its moments by: 1 − β₁ᵗ and 1 − β₂ᵗ; 1 for other optimizers."""
        betas, step = self.group(parameter).get("betas"), self.state(parameter).get("step")
        if betas is None or not step:
            return 1.0, 1.0
        return 1 - float(betas[0]) ** float(step), 1 - float(betas[1]) ** float(step)


def _known(name: str, value: object) -> bool:
    return value is None or (name in _AT_START and isinstance(value, Tensor | float | int))


def _along(matrix: Tensor, dim: int) -> Tensor:
    """A view whose first dimension is `dim`."""
    return matrix if dim == 0 else matrix.mT
