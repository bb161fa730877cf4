"""Parameter groups: factors at their rates, ordinary parameters at theirs."""

from __future__ import annotations

from typing import Any

from torch import nn

from spectrain.errors import UsageError
from spectrain.method import Method
from spectrain.surgery import parametrized


def param_groups(
    model: nn.Module, lr: float, *, weight_decay: float = 0.0, factor_lr: float | None = None
) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimizer.

    First the ordinary parameters (embeddings, head, norms, biases) at rate `lr`, vectors without
    weight decay; then the factors of the exchanged layers at `factor_lr` (default `lr`), times what
    the method asks for each of them. For a full-rank model the matrices are the factors.
    """
    layers = dict(parametrized(model))
    if not layers:
        raise UsageError("param_groups: no exchanged layers; call spectrain.apply first")
    base = lr if factor_lr is None else factor_lr
    # Methods that meet in one model keep groups of their own: each warms its rates up by itself.
    groups: dict[tuple[Method, float, float], list[nn.Parameter]] = {}
    factors: set[int] = set()
    for layer in layers.values():
        for name, p in layer.factors().items():
            factors.add(id(p))
            rate = base * layer.method.rate_scale(name)
            decay = weight_decay * layer.method.decay_scale(name)
            groups.setdefault((layer.method, rate, decay), []).append(p)
    ordinary = [p for p in model.parameters() if p.requires_grad and id(p) not in factors]
    matrices = [p for p in ordinary if p.ndim > 1]
    vectors = [p for p in ordinary if p.ndim <= 1]
    made = [(matrices, lr, weight_decay), (vectors, lr, 0.0)]
    made += [(params, rate, decay) for (_, rate, decay), params in groups.items()]
    return [{"params": p, "lr": rate, "weight_decay": decay} for p, rate, decay in made if p]
