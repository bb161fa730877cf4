"""Riemannian Adam for points, which goes on after a resume as if nothing had been; and what it steps."""

from __future__ import annotations

from typing import Any

import geoopt
from torch import Tensor

Groups = list[dict[str, Any]]


def divided(groups: Groups) -> tuple[Groups, Groups]:
    """(groups of points, groups of everything else): parameter groups, by what has to step them.

    Points are not decayed: there is no zero for them to go to.
    """
    points, others = [], []
    for group in groups:
        curved = [p for p in group["params"] if hasattr(p, "manifold")]
        flat = [p for p in group["params"] if not hasattr(p, "manifold")]
        if curved:
            points.append({**group, "params": curved, "weight_decay": 0.0})
        if flat:
            others.append({**group, "params": flat})
    return points, others


class RiemannianAdam(geoopt.optim.RiemannianAdam):  # type: ignore[misc]
    """geoopt's RiemannianAdam (Bécigneul and Ganea 2019), with its count of steps kept a number.

    torch's Adam, which it inherits from, makes the count a float32 tensor when state is loaded, and
    then the bias corrections round otherwise than before. Give it the groups of points, beside
    any optimizer for everything else (`divided`).
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for kept in self.state.values():
            if isinstance(kept.get("step"), Tensor):
                kept["step"] = int(kept["step"])
