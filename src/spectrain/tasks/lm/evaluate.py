"""Loss and perplexity of a causal language model, averaged over tokens exactly.

Each token but the first of a text is predicted once, from at most `sequence_length` tokens before
it, and weighs the same in the mean, however the text falls into windows and batches. (A mean over
batches, as common evaluators take it, gives the tokens of a short last batch too much weight.)
"""

import math
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from spectrain.distributed import Processes
from spectrain.errors import UsageError
from spectrain.linalg import working
from spectrain.tasks.lm.batches import windows
from spectrain.tasks.lm.loss import Reduction, chunked_cross_entropy, decoder_and_head
from spectrain.tasks.lm.models import evaluation_mode


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
    reduction: Reduction = "mean",
    *,
    chunk: int = 0,
) -> Tensor:  # a scalar, or (batch * T,) for "none"
    """Cross-entropy, in nats, of predicting each token but a row's first from those before it.

    The model is called as transformers' causal language models are, and returns `.logits`
    (batch, T, vocabulary). The loss is taken in at least float32 whatever dtype they have.
    chunk: tokens whose logits there are at a time; 0: all.

    Raises UsageError if `chunk` is given and the model's logits are not its output head's alone.
    """
    inputs, targets = token_ids[:, :-1], token_ids[:, 1:].flatten()
    if chunk:
        decoder, head = decoder_and_head(model, inputs)
        hidden = decoder(input_ids=inputs, use_cache=False).last_hidden_state
        return chunked_cross_entropy(hidden.flatten(0, 1), head, targets, chunk, reduction)
    logits = model(input_ids=inputs, use_cache=False).logits
    return cross_entropy(working(logits.flatten(0, 1)), targets, reduction=reduction)


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
    chunk: int = 0,
    processes: Processes | None = None,
) -> Evaluation:
    """Loss on the first `max_tokens` of `tokens` (None: all), in evaluation mode.

    `device` is the model's; `autocast` the dtype of mixed precision, None for none; `chunk` as in
    `token_loss`. With `processes`, each takes its share of the batches and all get the result; they
    call the model equally often, as a sharded one asks for. The modules' training flags are as before
    afterwards. Raises UsageError if there is no token to predict, or as `token_loss` does.
    """
    text = tokens[:max_tokens]
    if len(text) < 2:
        raise UsageError(f"an evaluation needs at least 2 tokens, not {len(text)}")
    rank, size = (0, 1) if processes is None else (processes.rank, processes.size)
    own = islice(windows(text, sequence_length, batch_size), rank, None, size)
    whole, rest = divmod(len(text) - 1, sequence_length)
    turns = -(-(-(-whole // batch_size) + bool(rest)) // size)
    total, count = 0.0, 0
    with evaluation_mode(model):
        for _ in range(turns):
            token_ids = next(own, None)
            ids = text[:2][None].long() if token_ids is None else token_ids
            with torch.autocast(torch.device(device).type, autocast, enabled=autocast is not None):
                losses = token_loss(model, ids.to(device), "none", chunk=chunk)
            if token_ids is not None:
                total += losses.cpu().double().sum().item()
                count += losses.numel()
    if processes is not None:
        sums = torch.tensor((total, count), dtype=torch.float64)
        processes.mean(sums)
        total, count = float(sums[0]) * size, round(float(sums[1]) * size)
    return Evaluation(loss=total / count, tokens=count)
