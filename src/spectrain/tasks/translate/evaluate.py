"""Loss by token, and BLEU by sacrebleu."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrain.tasks.translate.batches import Batches
from spectrain.tasks.translate.vocabulary import PAD

UNSPACED = ("ja", "th", "lo", "km", "my", "bo", "dz")  # written without spaces, beside Chinese


def token_loss(
    model: nn.Module,
    source: Tensor,  # (B, S)
    target: Tensor,  # (B, T + 1)
    *,
    smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy in float32 of each token behind the start, end included, padding left out.

    smoothing: share of a label that is spread over all tokens (Szegedy et al. 2016).
    """
    logits = model(source, target[:, :-1])
    return F.cross_entropy(
        logits.flatten(0, 1).float(),
        target[:, 1:].flatten(),
        ignore_index=PAD,
        label_smoothing=smoothing,
        reduction=reduction,
    )


@torch.no_grad()
def mean_loss(
    model: nn.Module,
    source: Sequence[Tensor],
    target: Sequence[Tensor],
    *,
    tokens: int,
    dtype: torch.dtype,
) -> float:
    """Nats per target token over all these pairs, in batches of so many tokens."""
    device = next(model.parameters()).device
    most = max(tokens, *map(len, source), *map(len, target))
    batches = Batches(source, target, tokens=most, size=0, accumulate=1, seed=0)
    training = model.training
    model.eval()
    total, count = 0.0, 0
    for number in range(len(batches)):
        (batch,) = batches.step(number)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            loss = token_loss(
                model, batch.inputs.to(device), batch.targets.to(device), reduction="sum"
            )
        total += loss.item()
        count += int((batch.targets[:, 1:] != PAD).sum())
    model.train(training)
    return total / count


def bleu_metric(target: str, lowercase: bool) -> Any:
    """sacrebleu's BLEU for texts in a language, which it names in its signature.

    Its tokenizer is "13a", as usual; "zh" for Chinese and single characters for other languages that are
    written without spaces.
    """
    from sacrebleu.metrics.bleu import BLEU

    language = re.split("[-_]", target.lower())[0]
    tokenizer = "zh" if language == "zh" else "char" if language in UNSPACED else "13a"
    return BLEU(lowercase=lowercase, tokenize=tokenizer)


def bleu(hypotheses: Sequence[str], references: Sequence[str], metric: Any) -> float:
    """Corpus BLEU in per cent, as sacrebleu computes it from raw text (Post 2018)."""
    score: float = metric.corpus_score(list(hypotheses), [list(references)]).score
    return score


def bleu_signature(metric: Any) -> str:
    """How `bleu` is computed, in sacrebleu's words."""
    metric.corpus_score(["a"], [["a"]])  # it knows its number of references afterwards
    return str(metric.get_signature())
