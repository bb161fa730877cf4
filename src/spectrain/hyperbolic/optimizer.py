"""Riemannian Adam for points, which goes on after a resume as if nothing had been."""

from __future__ import annotations

from typing import Any

import geoopt
from torch import Tensor


class RiemannianAdam(geoopt.optim.RiemannianAdam):  # type: ignore[misc]
    """geoopt's RiemannianAdam (Bécigneul and Ganea 2019), with its count of steps kept a number.

    torch's Adam, which it inherits from, makes the count a float32 tensor when state is loaded, and
    then the bias corrections round otherwise than before. Give it the parameters that are points
    (`geoopt.ManifoldParameter`), beside any optimizer for everything else.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for kept in self.state.values():
            if isinstance(kept.get("step"), Tensor):
                kept["step"] = int(kept["step"])
