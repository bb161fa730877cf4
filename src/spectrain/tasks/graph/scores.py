"""What predictions are worth: F1 and accuracy of nodes, ROC AUC and average precision of links.

As scikit-learn has them, without the checks that take most of its time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from spectrain.errors import RunError, UsageError


def node_scores(
    logits: Tensor,  # (N, C)
    labels: Tensor,  # (N,) int64
) -> dict[str, float]:
    """F1 and accuracy in 0 … 1. F1 is that of class 1 of two classes, and micro F1 of more.

    Raises UsageError if there are no nodes, RunError if logits are not numbers.
    """
    if not len(labels):
        raise UsageError("there are no nodes to measure on")
    if logits.isnan().any():
        raise RunError(_DIVERGED)
    predicted, truth = logits.argmax(dim=1).cpu().numpy(), labels.cpu().numpy()
    accuracy = float(np.mean(predicted == truth))
    if logits.shape[1] != 2:
        return {"f1": accuracy, "accuracy": accuracy}  # one guess a node: micro F1 is accuracy
    both = int(np.sum((predicted == 1) & (truth == 1)))
    either = int(np.sum(predicted == 1) + np.sum(truth == 1))
    return {"f1": 2 * both / either if either else 0.0, "accuracy": accuracy}


def link_scores(
    positive: Tensor,  # (P,) scores of edges, higher for a likelier one
    negative: Tensor,  # (Q,) scores of pairs without an edge
) -> dict[str, float]:
    """ROC AUC and average precision in 0 … 1; equal scores are one threshold.

    Raises UsageError if either is empty, RunError if scores are not numbers.
    """
    if not len(positive) or not len(negative):
        raise UsageError("there are no edges to measure on, or no other pairs to tell them from")
    edges, others = _sorted(positive), _sorted(negative)
    if np.isnan(edges[-1]) or np.isnan(others[-1]):  # sorted last
        raise RunError(_DIVERGED)
    # For each edge's score as the threshold: how many score at least as much.
    above = len(others) - np.searchsorted(others, edges, side="right")
    others_found = len(others) - np.searchsorted(others, edges, side="left")
    edges_found = len(edges) - np.searchsorted(edges, edges, side="left")
    area = 1 - float(np.mean(above + others_found)) / (2 * len(others))
    precision = edges_found / (edges_found + others_found)
    return {"roc_auc": area, "average_precision": float(np.mean(precision))}


def _sorted(scores: Tensor) -> np.ndarray[Any, Any]:
    return np.sort(scores.detach().double().cpu().numpy())


_DIVERGED = "the model's outputs are not numbers (NaN): training diverged; lower the learning rate"
