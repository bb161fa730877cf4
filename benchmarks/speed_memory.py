"""Bytes of a training step: the peak by category, and what the exchanged layers hold."""

from __future__ import annotations

import torch
from speed_arms import Arm
from speed_timing import Feed, train_step
from torch import Tensor, nn

from spectrain.memory.live import CACHED, OPTIMIZER, LiveBytes
from spectrain.surgery import parametrized


def peak(arm: Arm, feed: Feed) -> dict[str, int]:
    """Peak of live bytes in one step, by category; on a GPU the allocator's, undivided.

    The arm must have been stepped before, so that its moments exist.
    """
    train_step(arm, feed)
    bases = _bases(arm)
    if feed.x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        train_step(arm, feed)
        states = [v for state in arm.optimizer.state.values() for v in state.values()]
        held = sum(_bytes(value) for value in (*arm.model.parameters(), *states, *bases))
        # Other arms' tensors are allocated, too: only what this one holds and adds is its own.
        return {"peak": torch.cuda.max_memory_allocated() - before + held}
    own = {id(basis) for basis in bases}
    with LiveBytes(
        arm.model, arm.optimizer, classify=lambda t: OPTIMIZER if id(t) in own else None
    ) as live:
        for basis in bases:
            basis.detach()  # seen, and counted from here on
        live.reset_peak()
        train_step(arm, feed)
    return {"peak": live.peak, **live.peak_by_category}


def replaced_layers(arm: Arm, feed: Feed) -> dict[str, int]:
    """Bytes that the linear layers stand for: weights with frozen factors, cached W, gradients, moments."""
    cached = peak(arm, feed).get(CACHED, 0)
    layers: list[nn.Module] = [layer for _, layer in parametrized(arm.model)]
    if not layers:
        layers = [m for m in arm.model.modules() if isinstance(m, nn.Linear)]
    factors = [
        p for layer in layers for name, p in layer.named_parameters(recurse=False) if name != "bias"
    ]
    trained = [p for p in factors if p.requires_grad]
    return {
        "weights": sum(_bytes(p) for p in factors),
        "cached W": cached,
        "gradients": sum(_bytes(p) for p in trained),
        "moments": sum(_bytes(v) for p in trained for v in arm.optimizer.state[p].values()),
    }


def _bases(arm: Arm) -> list[Tensor]:
    """The matrices that galore-torch's and apollo-torch's projector objects hold."""
    projectors = (state.get("projector") for state in arm.optimizer.state.values())
    return [p.ortho_matrix for p in projectors if p is not None]


def _bytes(value: object) -> int:
    return value.nbytes if isinstance(value, Tensor) else 0
