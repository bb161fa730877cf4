"""Edits of optimizer state: clear, prune and rotate the moments of single parameters, in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from spectrain.errors import UsageError
from spectrain.sharding import is_sharded, replicated, whole, write_back

# The values that optimizers begin with, by the name of the state; anything else is refused. The last
# four are bitsandbytes': codes of 8 bits and a scale for each block of them, all zero at the start; where
# a parameter is small, float32 without scales.
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
    "row_var": 0.0,
    "col_var": 0.0,
    "variance": 0.0,
    "state1": 0.0,
    "state2": 0.0,
    "absmax1": 0.0,
    "absmax2": 0.0,
}
_CODEBOOKS = ("qmap1", "qmap2")  # what each code of 8 bits stands for: a constant
_BLOCK = 256  # codes that share a scale
_FIRST_ORDER = ("exp_avg", "momentum_buffer", "grad_avg", "state1")
_SECOND_ORDER = (
    *("exp_avg_sq", "max_exp_avg_sq", "square_avg", "variance", "sum", "acc_delta", "state2"),
)
_MOMENTS = (*_FIRST_ORDER, *_SECOND_ORDER)
# The rules of bitsandbytes under which state1 is a first moment of the parameter's shape.
_WITH_FIRST_MOMENT = ("adam", "lion", "momentum")


class Moments:
    """The state of the optimizers that step a model's factors, addressed by parameter.

    All edits are in place (identity of state tensors is what fused kernels, sharding wrappers and
    state-dict collection rely on). A parameter that was not stepped yet has nothing to edit.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = tuple(optimizers)
        self._gathered: dict[int, dict[str, Any]] = {}
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
        if id(parameter) in self._gathered:
            return self._gathered[id(parameter)]
        state: dict[str, Any] = self.optimizer(parameter).state.get(parameter, {})
        return state

    @contextmanager
    def gathered(self, sharded: Tensor, full: Tensor) -> Iterator[None]:
        """Within the block `full` stands for a sharded parameter, and the state of both is whole.

        At the end this process copies its part back. A parameter without state is left alone.
        """
        if sharded not in self:
            yield
            return
        own = self.state(sharded)
        state = {n: whole(v) if isinstance(v, Tensor) else v for n, v in own.items()}
        self._home[id(full)] = self._home[id(sharded)]
        self._gathered |= {id(full): state, id(sharded): state}
        try:
            yield
        finally:
            for parameter in (full, sharded):
                del self._gathered[id(parameter)]
            del self._home[id(full)]
        for name, value in own.items():
            if isinstance(value, Tensor) and is_sharded(value):
                write_back(state[name], value)
            else:
                own[name] = state[name]

    def require_editable(self, parameter: Tensor, *, pruned: bool = False) -> None:
        """Raise UsageError if the state of `parameter` holds something we could not reset, or prune."""
        optimizer = self.optimizer(parameter)
        rule = getattr(optimizer, "optimizer_name", _WITH_FIRST_MOMENT[0])
        state = self.state(parameter)
        unknown = sorted(_name(k, v) for k, v in state.items() if not _known(k, v, rule))
        if unknown:
            raise UsageError(
                f"{type(optimizer).__name__} keeps {', '.join(unknown)} for each parameter, and "
                "spectrain does not know how to reset that at an event of this method; use AdamW, "
                "Adam, SGD, Muon, Adafactor or bitsandbytes' AdamW8bit"
            )
        if pruned and "row_var" in state:
            raise UsageError(
                f"{type(optimizer).__name__} keeps its second moment as a row and a column, of which "
                'single entries cannot be pruned; use moments="reset", or AdamW'
            )

    @torch.no_grad()
    def clear(self, parameter: Tensor, index: Tensor | None = None, dim: int = 0) -> None:
        """Back to the state before the first step: moments and step counter.

        With `index`, numbers or a mask, only the moments of those rows (dim=0) or columns (dim=1), as
        where single vectors are exchanged; the step counter, which a tensor has but one of, stays, and
        so does the part of Adafactor's second moment that belongs to the other dimension.
        """
        self.require_editable(parameter)
        state = self.state(parameter)
        # Adagrad's sum is the one that a setting of the optimizer gives a start.
        start = _AT_START | {"sum": self.group(parameter).get("initial_accumulator_value", 0.0)}
        for name, value in state.items():
            if name in _CODEBOOKS:
                continue
            if index is not None:
                if isinstance(value, Tensor) and _has_entries(value, parameter, dim):
                    mask = replicated(_mask(index.to(value.device), value, dim), value)
                    value.masked_fill_(mask, _zero(state, name))
            elif isinstance(value, Tensor):
                value.fill_(start[name])
            elif value is not None:
                state[name] = type(value)(start[name])

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

        Raises UsageError for Adafactor, whose second moment has no entries of its own.
        """
        self.require_editable(parameter, pruned=True)
        state = self.state(parameter)
        names = [n for n in state if n in _MOMENTS and isinstance(state[n], Tensor)]
        if not names:
            return
        first = _read(state, names[0])
        if by == "random":
            drop = torch.rand(parameter.shape, generator=generator).to(first.device) < ratio
        else:
            drop = torch.zeros(first.numel(), dtype=torch.bool, device=first.device)
            drop[first.abs().flatten().argsort()[: round(ratio * first.numel())]] = True
            drop = drop.view_as(first)
        for name in names:
            state[name].masked_fill_(drop, _zero(state, name))

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
        variance with coordinates taken as uncorrelated (LDAdam, Robert et al. 2025). Adafactor's, which
        is a row times a column, becomes (Q∘Q) V exactly; Adamax's bound u becomes √((Q∘Q) u²). Moments
        in 8 bits are decoded, carried and rounded again, as in every step of their optimizer.
        """
        self.require_editable(parameter)
        state = self.state(parameter)
        mean_weight, square_weight = self._weights(parameter)
        mean = moved = torch.zeros((), device=overlap.device)
        first = next((n for n in _FIRST_ORDER if isinstance(state.get(n), Tensor)), None)
        if first is not None:
            mean = _along(_read(state, first), dim) / mean_weight
            moved = overlap.to(mean.dtype) @ mean
            _write(state, first, _along(moved * mean_weight, dim))
        for name in _SECOND_ORDER:
            if isinstance(state.get(name), Tensor):
                value = _along(_read(state, name), dim)
                spread = (value / square_weight - mean.square()).clamp_(min=0)
                carried = overlap.to(value.dtype).square() @ spread + moved.square()
                _write(state, name, _along(carried * square_weight, dim))
        if "exp_inf" in state:
            bound = _along(state["exp_inf"], dim)
            bound.copy_((overlap.to(bound.dtype).square() @ bound.square()).sqrt_())
        if "row_var" in state:  # V = row · column / mean(row); the mean is taken along dimension 0
            parts = (state["row_var"], state["col_var"])
            own = _along(parts[dim], dim)
            before = own.mean().clamp(min=torch.finfo(own.dtype).tiny)
            own.copy_(overlap.to(own.dtype).square() @ own)
            parts[1 - dim].mul_(own.mean() / before)

    def _weights(self, parameter: Tensor) -> tuple[float, float]:
        """What Adam divides its moments by: 1 − β₁ᵗ and 1 − β₂ᵗ; 1 for other optimizers."""
        betas, step = self.group(parameter).get("betas"), self.state(parameter).get("step")
        if betas is None or not step:
            return 1.0, 1.0
        return 1 - float(betas[0]) ** float(step), 1 - float(betas[1]) ** float(step)


def _known(name: str, value: Any, rule: str) -> bool:
    """True for state whose first value we know; `rule` is bitsandbytes' name of the update."""
    if name in _CODEBOOKS or value is None:
        return True
    if name == "state1" and rule not in _WITH_FIRST_MOMENT:
        return False
    wrapped: bool = is_traceable_wrapper_subclass(value)
    if wrapped and not is_sharded(value):
        return False  # numbers in a form of their own, as torchao's
    return name in _AT_START and isinstance(value, Tensor | float | int)


def _name(name: str, value: Any) -> str:
    return f"{name} (a {type(value).__name__})" if is_traceable_wrapper_subclass(value) else name


def _has_entries(value: Tensor, parameter: Tensor, dim: int) -> bool:
    """True if `value` has numbers for each row (dim=0) or column (dim=1) of the parameter."""
    return value.ndim == parameter.ndim and value.shape[dim] == parameter.shape[dim]


def _mask(index: Tensor, value: Tensor, dim: int) -> Tensor:
    """The rows (dim=0) or columns (dim=1) of `value` as a mask that broadcasts over the others."""
    mask = index
    if index.dtype != torch.bool:
        mask = torch.zeros(value.shape[dim], dtype=torch.bool, device=index.device)
        mask[index] = True
    return mask.view([-1 if d == dim else 1 for d in range(value.ndim)])


def _is_coded(value: Tensor) -> bool:
    return value.dtype == torch.uint8


def _zero(state: dict[str, Any], name: str) -> float:
    """What stands for zero in the moment called `name`."""
    if not _is_coded(state[name]):
        return 0.0
    return int(state[f"qmap{name[-1]}"].abs().argmin())


def _read(state: dict[str, Any], name: str) -> Tensor:
    """The moment called `name`, in numbers: the state's own tensor, or decoded."""
    value: Tensor = state[name]
    if not _is_coded(value):
        return value
    codebook, scales = state[f"qmap{name[-1]}"], state[f"absmax{name[-1]}"]
    scale = scales.repeat_interleave(_BLOCK)[: value.numel()].view_as(value)
    entries: Tensor = codebook[value.int()] * scale
    return entries


def _write(state: dict[str, Any], name: str, value: Tensor) -> None:
    """Overwrite the moment called `name`, in 8 bits with the nearest code."""
    stored: Tensor = state[name]
    if not _is_coded(stored):
        stored.copy_(value)
        return
    codebook, scales = state[f"qmap{name[-1]}"], state[f"absmax{name[-1]}"]
    flat = value.reshape(-1)
    blocks = F.pad(flat, (0, len(scales) * _BLOCK - len(flat))).view(-1, _BLOCK)
    scales.copy_(blocks.abs().amax(1))
    parts = (blocks / scales[:, None].clamp(min=torch.finfo(scales.dtype).tiny)).view(-1)
    codes = torch.bucketize(parts[: len(flat)], (codebook[1:] + codebook[:-1]) / 2)
    stored.copy_(codes.view_as(stored))


def _along(matrix: Tensor, dim: int) -> Tensor:
    """A view whose first dimension is `dim`."""
    return matrix if dim == 0 else matrix.mT
