"""What to switch on next to need less memory: the first thing that acts on the largest part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spectrain.memory.live import ACTIVATIONS, CACHED, FROZEN, GRADIENTS, OPTIMIZER, WEIGHTS
from spectrain.memory.rehearsal import LOGITS
from spectrain.memory.segments import WORKSPACE
from spectrain.method import Method


def next_to_switch_on(
    ranking: Sequence[str], method: Method, setting: Mapping[str, Any], event: str
) -> str:
    """One step for the largest part that there is one for.

    ranking: the parts, largest first. event: what happens in the step with the peak, "" if nothing.
    """
    if event and getattr(method, "stagger", True) is False:
        return f"stagger=True, since {event} of all layers at once makes the peak"
    steps = (_step(part, method, setting) for part in ranking)
    return next((step for step in steps if step), "a smaller model")


def _step(part: str, method: Method, setting: Mapping[str, Any]) -> str:
    if part == LOGITS:
        return "a loss by chunks of tokens (train lm: --loss-chunk 512, or a smaller one)"
    if part == ACTIVATIONS:
        return _for_activations(setting)
    if part == CACHED and method.gathers:
        alone = setting["accumulate"] == 1 and not setting["layerwise"]
        return "layers stepped in the backward pass (--layerwise)" if alone else ""
    if part in (FROZEN, CACHED):
        return _for_frozen(method)
    if part in (WEIGHTS, GRADIENTS, OPTIMIZER):
        rank = getattr(method, "rank", None)
        if rank is None:
            return "a low-rank method (sst, relora, lora, galore)"
        return "a lower rank, or an optimizer with fewer moments" if rank > 1 else ""
    if part == WORKSPACE:
        return ""
    raise ValueError(part)


def _for_activations(setting: Mapping[str, Any]) -> str:
    if not setting["gradient_checkpointing"]:
        return "gradient checkpointing (--gradient-checkpointing)"
    if setting["batch_size"] > 1:
        return "a smaller --batch-size with a larger --accumulate"
    return "shorter sequences (--sequence-length)"


def _for_frozen(method: Method) -> str:
    if getattr(method, "residual", None) is False:
        return "residual=True: the frozen part as one matrix"
    if getattr(method, "frozen_dtype", "") is None and not getattr(method, "residual", False):
        return "frozen_dtype='bfloat16'"
    return ""
