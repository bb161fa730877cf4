"""Gradient checkpointing, as transformers' models have it."""

from __future__ import annotations

from typing import Any

from torch import nn

from spectrain.errors import UsageError


def checkpoint_blocks(model: nn.Module) -> None:
    """Keep only what goes into each block, and compute the block again in the backward pass.

    Raises UsageError if the model has no such switch, which is transformers'.
    """
    # Some releases of transformers 5 have the older name alone, others warn of it.
    older: Any = getattr(model, "gradient_checkpointing_enable", None)
    switch: Any = getattr(model, "activation_checkpointing_enable", older)
    if switch is None or not getattr(model, "supports_gradient_checkpointing", True):
        raise UsageError(
            f"{type(model).__name__} does not support gradient checkpointing in transformers: leave "
            "--gradient-checkpointing out, and take smaller micro-batches and more of them"
        )
    switch({"use_reentrant": False})
