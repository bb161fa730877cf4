"""An optimizer's scaling of a projected gradient, carried over to the whole gradient; its limiter.

What Fira (Chen et al. 2024, sections 4.2 and 4.3) and APOLLO (Zhu et al. 2025, section 4) share.
"""

from __future__ import annotations

import torch
from torch import Tensor


def scaling(
    update: Tensor,  # of the shape of `gradient`: the optimizer's, of a projected gradient
    gradient: Tensor,  # (r, n) or (m, r)
    dim: int | None,  # the rank's dimension: a factor for each channel; None: one for all
) -> Tensor:  # (1, n), (m, 1) or (1, 1)
    """‖update‖ / (‖gradient‖ + 10⁻⁸), by how much the optimizer scales."""
    ratio: Tensor = _norm(update, dim) / (_norm(gradient, dim) + 1e-8)
    return ratio


def _norm(matrix: Tensor, dim: int | None) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(matrix, dim=dim, keepdim=True)
    return norm


@torch.no_grad()
def limit_growth(
    step: Tensor,  # (m, n), scaled in place
    previous: Tensor,  # (): the norm of the last step, 0 before there was one; overwritten
    rate: float,  # the learning rate, which `step` has in it, and norms have not
    most: float,  # γ
) -> None:
    """Shorten `step` so that its norm is at most γ times the previous one's.

    A step of zero leaves `previous` as it is; one that is not finite does, too, and becomes zero.
    """
    norm = torch.linalg.vector_norm(step) / rate
    bound = most * previous
    limited = torch.where((previous > 0) & (norm > bound), bound, norm)
    sound = norm.isfinite()
    step.mul_(limited / norm.clamp(min=torch.finfo(norm.dtype).tiny)).masked_fill_(~sound, 0.0)
    previous.copy_(torch.where(sound & (norm > 0), limited, previous))
