"""Adam's bias correction for rows or columns that began later than the rest of their tensor."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW

from spectrain.moments import Moments
from spectrain.sharding import replicated


@torch.no_grad()
def correct_bias(
    parameter: nn.Parameter,  # (m, n)
    moments: Moments,
    ages: Tensor,  # (m,) of the rows or (n,) of the columns: updates since their moments were zero
    dim: int,  # 0 for rows, 1 for columns
) -> None:
    """Right after an update: make it the one of step counters of their own, instead of the tensor's.

    Adam's step is M / (1 − β₁ᵗ) / (√(V / (1 − β₂ᵗ)) + ε), and torch keeps one t for a whole tensor, so
    that a row which began anew takes up to (1 − β₁) / √(1 − β₂) = 3.2 times the step that it should.
    Here the step of the tensor's t is taken back and that of the row's own is made, from the moments
    as they are. Whatever else the update did, as decoupled weight decay, stays.

    Exact for torch's Adam and AdamW in all of their forms, fused and amsgrad included. Optimizers without
    such a correction (SGD, Lion, Adagrad, RMSprop …) need none; others that have one (NAdam, RAdam,
    Adamax, Adafactor, 8-bit Adam) are left as they are.
    """
    state = moments.state(parameter)
    if not isinstance(moments.optimizer(parameter), Adam | AdamW) or not state:
        return
    group = moments.group(parameter)
    first = state["exp_avg"]
    second = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    dtype = torch.promote_types(first.dtype, torch.float32)
    step = replicated(torch.as_tensor(state["step"]).to(parameter.device, dtype), parameter)
    own = torch.minimum(replicated(ages.to(parameter.device), parameter), step)
    root, betas = second.sqrt(), group["betas"]

    def divisor(steps: Tensor) -> Tensor:
        weights = [-torch.expm1(steps * _log(float(beta))) for beta in betas]
        roots: Tensor = root / weights[1].sqrt()
        return roots.add_(group["eps"]).mul_(weights[0])

    taken = first / divisor(step)
    due = first / divisor(own.clamp(min=1).view((-1, 1) if dim == 0 else (1, -1)))
    parameter.add_(taken.sub_(due).mul_(group["lr"]))


def _log(beta: float) -> float:
    return math.log(beta) if beta else -math.inf
