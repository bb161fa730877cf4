"""Loss and perplexity of a causal language model, averaged over tokens exactly.

Each token but the first of a text is predicted once, from at most `sequence_length` tokens before
it, and weighs the same in the mean, however the text falls into windows and batches. (A mean over
batches, as common evaluators take it, gives the tokens of a short last batch too much weight.)
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from spectrain.errors import UsageError
from spectrain.tasks.lm.batches import windows


@dataclass(frozen=True)
class Evaluation:
    loss: float  # nats per token
    tokens: int  # predicted tokens, over which the loss is the mean

    @property
    def perplexity(self) -> float:
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf


def token_loss(
    model: nn.Module,
    token_ids: Tensor,  # (batch, T + 1), int64
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:  # a scalar, or (batch * T,) for "none"
    """Cross-entropy, in nats, of predicting each token but a row's first from those before it.

    The model is called as transformers' causal language models are, and returns `.logits`
    (batch, T, vocabulary). The loss is taken in float32 whatever dtype they have.
    """
    logits = model(input_ids=token_ids[:, :-1], use_cache=False).logits
    targets = token_ids[:, 1:]
    return cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction=reduction)


@torch.no_grad()  # not inference_mode: its tensors must not outlive it, and caches keep some
def evaluate(
    model: nn.Module,
    tokens: Tensor,  # (n,), any integer dtype
    sequence_length: int,
    batch_size: int,
    *,
    max_tokens: int | None = None,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
) -> Evaluation:
    """Loss on the first `max_tokens` of `tokens` (None: all), in evaluation mode.

    `device` is the model's; `autocast` the dtype of mixed precision, None for none. The modules'
    training flags are as before afterwards. Raises UsageError if there is no token to predict.
    """
    text = tokens[:max_tokens]
    if len(text) < 2:
        raise UsageError(f"an evaluation needs at least 2 tokens, not {len(text)}")
    total = 0.0
    count = 0
    with _evaluation_mode(model):
        for token_ids in windows(text, sequence_length, batch_size):
            with torch.autocast(torch.device(device).type, autocast, enabled=autocast is not None):
                losses = token_loss(model, token_ids.to(device), "none")
            total += losses.cpu().double().sum().item()
            count += losses.numel()
    return Evaluation(loss=total / count, tokens=count)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Flags are restored module by module: a part may be kept in evaluation mode on purpose."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
