"""Starts for the additive form that leave the function unchanged."""

import torch

from spectrain.linalg import kaiming_uniform
from spectrain.parametrizations.additive import Additive


@torch.no_grad()
def kaiming_zero(layer: Additive, generator: torch.Generator) -> None:
    """B = 0 and A ~ U(−1/√n, 1/√n): the start of LoRA's released code (Hu et al. 2022)."""
    layer.A.copy_(kaiming_uniform((layer.A.shape[0], layer.in_features), generator, like=layer.A))
    layer.B.zero_()
