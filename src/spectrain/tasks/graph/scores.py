"""What predictions are worth: F1 and accuracy of nodes, ROC-AUC and average precision of links."""

from __future__ import annotations

import torch
from torch import Tensor


def node_scores(
    logits: Tensor,  # (n, C)
    labels: Tensor,  # (n,)
) -> dict[str, float]:
    """F1 (of class 1 where there are two classes, else over all, micro) and accuracy, from 0 to 1."""
    guess = logits.argmax(1)
    accuracy = (guess == labels).double().mean().item()
    if logits.shape[1] != 2:
        return {"f1": accuracy, "accuracy": accuracy}  # with one guess a node, micro F1 is accuracy
    hits = int(((guess == 1) & (labels == 1)).sum())
    named = int((guess == 1).sum()) + int((labels == 1).sum())
    return {"f1": 2 * hits / named if named else 0.0, "accuracy": accuracy}


def link_scores(
    positive: Tensor,  # (P,) scores of edges
    negative: Tensor,  # (Q,) scores of other pairs
) -> dict[str, float]:
    """Area under the ROC curve and average precision, from 0 to 1; equal scores count as one threshold."""
    scores = torch.cat((positive, negative)).double()
    truth = torch.zeros_like(scores)
    truth[: len(positive)] = 1
    order = torch.argsort(scores, descending=True)
    scores, truth = scores[order], truth[order]
    last = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    last[:-1] = scores[1:] != scores[:-1]  # the ends of runs of equal scores
    hits = truth.cumsum(0)[last]
    seen = (torch.nonzero(last).squeeze(1) + 1).double()
    false = seen - hits
    zero = hits.new_zeros(1)
    steps = torch.diff(false, prepend=zero), torch.cat((zero, hits[:-1]))
    area = (steps[0] * (hits + steps[1]) / 2).sum() / (len(positive) * len(negative))
    recall = torch.diff(hits, prepend=zero) / len(positive)
    return {"roc_auc": area.item(), "average_precision": (recall * hits / seen).sum().item()}
