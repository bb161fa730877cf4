"""The plain form of a fine-tuned causal language model: that of one trained from the start."""

from spectrain.tasks.lm.plain import FOLDERS, LOADER, outputs, skeleton

__all__ = ["FOLDERS", "LOADER", "outputs", "skeleton"]
