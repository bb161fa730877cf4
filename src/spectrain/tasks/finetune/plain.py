"""The plain form of a fine-tuned causal language model: that of one trained from the start."""

from spectrain.tasks.lm.plain import (
    FACTORED_LOADER,
    FACTORED_SETTINGS,
    FOLDERS,
    LOADER,
    outputs,
    skeleton,
)

__all__ = ["FACTORED_LOADER", "FACTORED_SETTINGS", "FOLDERS", "LOADER", "outputs", "skeleton"]
