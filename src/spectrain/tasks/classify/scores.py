"""Scores of a classifier from the table of what was taken for what."""

from __future__ import annotations

import torch
from torch import Tensor

from spectrain.tasks.score import Score

ACCURACY = Score("accuracy", "accuracy", "points", True, 100.0, 2)
F1 = Score("f1", "F1", "points", True, 100.0, 2)
MATTHEWS = Score("matthews", "Matthews correlation", "points", True, 100.0, 2)
SCORES = (ACCURACY, F1, MATTHEWS)


def scores_of(
    table: Tensor,  # (C, C): examples of class i that were taken for class j
) -> dict[str, float]:
    """Accuracy; F1, of the second class where there are two and else the mean over classes; and Matthews'
    correlation coefficient (Matthews 1975; for several classes Gorodkin 2004).

    What is 0/0 is 0: the F1 of a class that is neither there nor guessed, the correlation with a constant.
    """
    table = table.double()
    total, right = table.sum(), table.diagonal()
    true, taken = table.sum(1), table.sum(0)
    f1 = _ratio(2 * right, true + taken)
    over = right.sum() * total - (true * taken).sum()
    under = (total.square() - taken.square().sum()) * (total.square() - true.square().sum())
    return {
        "accuracy": float(right.sum() / total),
        "f1": float(f1[1] if len(table) == 2 else f1.mean()),
        "matthews": float(_ratio(over, under.sqrt())),
    }


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / b.clamp(min=torch.finfo(b.dtype).tiny), torch.zeros_like(b))
