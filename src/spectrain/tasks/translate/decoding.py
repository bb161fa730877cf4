"""Beam search; greedy with one beam."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from spectrain.tasks.translate.batches import padded
from spectrain.tasks.translate.transformer import Translator
from spectrain.tasks.translate.vocabulary import END, PAD, START

ROWS = 256  # beams that are computed at a time
Length = TypeVar("Length", int, Tensor)
SPARE = 8  # tokens by which a translation may be longer than twice its source


def translate(
    model: Translator,
    source: Sequence[Tensor],  # texts as `Vocabularies.encode_source` makes them
    *,
    beam: int,
    penalty: float,
    most: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[list[int]]:
    """Tokens of the best translation found of each text, without start and end.

    Best is the highest log p / ((5 + length)/6)^penalty (Wu et al. 2016), the end counted as a token.
    most: tokens of a translation, the end among them. `progress` hears how many texts are done.
    Texts of about equal length are translated together.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(source)), key=lambda i: len(source[i]))
    size = max(1, ROWS // beam)
    found: dict[int, list[int]] = {}
    training = model.training
    model.eval()
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        texts, _ = padded(source, source, rows)
        best = search(model, texts.to(device), beam=beam, penalty=penalty, most=most)
        found |= dict(zip(rows, best, strict=True))
        progress(len(found))
    model.train(training)
    return [found[i] for i in range(len(source))]


@torch.no_grad()
def search(
    model: Translator,
    source: Tensor,  # (N, S)
    *,
    beam: int,
    penalty: float,
    most: int,
) -> list[list[int]]:
    """The best translation of each row, in which at every length `beam` beginnings survive.

    A row is done when no beginning can become better than the best end it has found, or as long as it may
    become: `most`, and not more than twice its source and `SPARE`.
    """
    limits = (2 * (source != PAD).sum(1) + SPARE).clamp(max=most)
    state = model.begin(source)
    device, texts, K = source.device, len(source), beam
    best: list[list[int]] = [[] for _ in range(texts)]
    best_scores = torch.full((texts,), -torch.inf, device=device)
    alive = torch.arange(texts, device=device)
    scores = torch.full((texts, K), -torch.inf, device=device)
    scores[:, 0] = 0.0  # all beams begin alike: only the first may branch
    tokens = torch.full((texts, K, 1), START, device=device)
    for length in range(1, int(limits.max()) + 1):
        logits = model.step(tokens[..., -1], state).float()
        logits[..., [PAD, START]] = -torch.inf
        total = scores[..., None] + logits.log_softmax(-1)
        ended, which = (total[..., END] / _norm(length, penalty)).max(1)
        better = ended > best_scores[alive]
        for row in better.nonzero()[:, 0].tolist():
            best[int(alive[row])] = tokens[row, which[row], 1:].tolist()
        best_scores[alive] = torch.where(better, ended, best_scores[alive])

        total[..., END] = -torch.inf
        scores, places = total.flatten(1).topk(K)
        parents, chosen = places // total.shape[2], places % total.shape[2]
        # log p only falls, so no later end of a beginning scores more than this.
        reachable = scores[:, 0] / _norm(limits, penalty)
        open_ = (reachable > best_scores[alive]) & (length < limits)
        if not open_.any():
            break
        rows = torch.arange(len(alive), device=device)[:, None]
        tokens = torch.cat((tokens[rows, parents], chosen[..., None]), 2)
        beams = rows * K + parents
        if open_.all():
            state.select(None, beams.flatten())
            continue
        keep = open_.nonzero()[:, 0]
        alive, limits, scores, tokens = alive[keep], limits[keep], scores[keep], tokens[keep]
        state.select(keep, beams[keep].flatten())
    return best


def _norm(length: Length, penalty: float) -> Length:
    found: Length = ((5 + length) / 6) ** penalty
    return found
