"""What a trained model is judged by."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """A number that tells how good a model is; results hold validation_<key> and test_<key>.

    Of a task's scores the first decides: over learning rates, over checkpoints, when to stop.
    """

    key: str
    title: str  # in tables and on axes
    unit: str  # of a difference, in words: "nats", "points"
    higher_is_better: bool = False
    factor: float = 1.0  # shown is factor × value: 100 for per cent
    digits: int = 3  # decimals shown
    exponential: bool = False  # shown is exp(value): perplexity

    @property
    def plural(self) -> str:
        """The title of several."""
        return "losses" if self.title == "loss" else f"{self.title} values"

    def cost(self, value: float) -> float:
        """The value as a number of which less is better, in the unit of differences."""
        return -self.factor * value if self.higher_is_better else self.factor * value

    def shown(self, cost: float) -> float:
        """What people read, from a cost; infinity where an exponential overflows."""
        value = -cost if self.higher_is_better else cost
        if not self.exponential:
            return value
        return math.exp(value) if value < 700 else math.inf


LOSS = Score("loss", "loss", "nats")
PERPLEXITY = Score("loss", "perplexity", "nats", digits=2, exponential=True)
