"""Cross-entropy of an output head, taken a few tokens at a time, so that no whole logits exist.

The logits of T tokens over a vocabulary of V are T · V numbers, and the plain loss keeps three such
arrays at its peak (logits, their log-softmax, their gradient): with a small model they are most of
the memory. Here a chunk of tokens goes through the head, into the loss and back before the next one
starts, so that chunk · V numbers are in use at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from spectrain.abstract import is_abstract
from spectrain.errors import UsageError
from spectrain.linalg import working
from spectrain.parametrizations.base import compute_dtype
from spectrain.parametrizations.dense import Dense
from spectrain.tasks.lm.models import evaluation_mode

Reduction = Literal["mean", "sum", "none"]
Decoder = Callable[..., Any]  # (input_ids, use_cache) -> an output with .last_hidden_state

AGREE = 1e-6  # largest difference of logits that passes for rounding, relative to the largest logit
TRIAL_TOKENS = 8


def chunked_cross_entropy(
    hidden: Tensor,  # (T, d)
    head: nn.Module,  # (..., d) -> logits (..., V)
    targets: Tensor,  # (T,), int64
    chunk: int,
    reduction: Reduction = "mean",
) -> Tensor:  # a scalar, or (T,) for "none"
    """cross_entropy(head(hidden), targets), `chunk` tokens at a time, in at least float32.

    A linear head's gradients are formed in the forward pass, chunk by chunk: three products as in
    the plain loss, and nothing kept but the gradients themselves; so backward can be called once.
    Any other head (one that a method has exchanged, or with hooks) runs its own forward and
    backward, and each chunk's forward a second time; so does "none", whose rows' weights are not
    known before. Differentiable once.
    """
    if torch.is_grad_enabled() and reduction != "none" and _is_plain(head):
        total: Tensor = _LinearCrossEntropy.apply(hidden, head.weight, head.bias, targets, chunk)  # type: ignore[no-untyped-call]
        return total / len(targets) if reduction == "mean" else total
    parts: list[Tensor] = []
    for rows, wanted in zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True):
        if torch.is_grad_enabled():
            parts.append(checkpoint(_losses, head, rows, wanted, use_reentrant=False))
        else:
            parts.append(_losses(head, rows, wanted))
    losses = torch.cat(parts)
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


def decoder_and_head(model: nn.Module, token_ids: Tensor) -> tuple[Decoder, nn.Module]:
    """What computes hidden states (batch, T, d) and what makes logits of them.

    The model is a transformers causal language model, or such a one from torch.compile (then the
    decoder is compiled). The first time a model comes, its logits on the beginning of `token_ids`
    (batch, T) are compared with head(decoder).

    Raises UsageError if they differ, as with soft-capped or scaled logits.
    """
    whole = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    if model not in _decoders:
        decoder: Any = getattr(whole, "base_model", whole)
        if decoder is whole or not isinstance(_head(whole), nn.Module):
            raise UsageError(
                f"{type(whole).__name__} has no output head apart from the rest of the model, which "
                "a loss by chunks needs: give --loss-chunk 0"
            )
        if not is_abstract(token_ids):
            _compare(whole, decoder, token_ids[:1, :TRIAL_TOKENS])
        _decoders[model] = decoder if whole is model else torch.compile(decoder)
    head: nn.Module = _head(whole)  # looked up each time, since methods exchange it
    return _decoders[model], head


_decoders: WeakKeyDictionary[nn.Module, Decoder] = WeakKeyDictionary()


def _head(model: Any) -> Any:
    find = getattr(model, "get_output_embeddings", None)
    return find() if callable(find) else None


@torch.no_grad()
def _compare(model: nn.Module, decoder: nn.Module, token_ids: Tensor) -> None:
    """Raise UsageError unless the model's logits are head(decoder(tokens)), and nothing else."""
    autocast = torch.autocast(token_ids.device.type, enabled=False)
    with evaluation_mode(model), autocast:  # dropout would differ, and use up random numbers
        logits = model(input_ids=token_ids, use_cache=False).logits
        output = decoder(input_ids=token_ids, use_cache=False)
        hidden = getattr(output, "last_hidden_state", None)
        found = None if hidden is None else _head(model)(hidden)
    if found is None or (found - logits).abs().max() > AGREE * logits.abs().max():
        raise UsageError(
            f"the logits of {type(model).__name__} are not its output head's alone (they are scaled "
            "or capped, say), and a loss by chunks would miss that: give --loss-chunk 0"
        )


def _is_plain(head: nn.Module) -> bool:
    """True if the head is x Wᵀ + b and calling it would do nothing beside."""
    forward = head._forward_hooks or head._forward_pre_hooks
    backward = head._backward_hooks or head._backward_pre_hooks
    return type(head) in (nn.Linear, Dense) and not (forward or backward)


def _losses(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(working(head(hidden)), targets, reduction="none")


class _LinearCrossEntropy(torch.autograd.Function):
    """The sum of the losses, with the gradients of hidden, weight and bias beside it.

    6 T d V operations, as the plain loss has over forward and backward. At the peak: chunk · V
    numbers (under autocast the same in its dtype, too), W in autocast's dtype, and the gradients.
    The weight's gradient is summed over chunks in at least float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # (T, d)
        weight: Tensor,  # (V, d)
        bias: Tensor | None,  # (V,)
        targets: Tensor,  # (T,)
        chunk: int,
    ) -> Tensor:
        dtype = compute_dtype(hidden)
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        x, W = hidden.to(dtype), weight.to(dtype)
        exact = working(x.new_empty(0)).dtype
        grad_hidden = torch.empty_like(x) if of_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=exact) if of_weight else None
        grad_bias = torch.zeros_like(bias, dtype=exact) if bias is not None and of_bias else None
        losses = x.new_empty(len(x), dtype=exact)
        # One buffer for all chunks: new memory of this size costs the CPU more than what is
        # computed in it.
        buffer = x.new_empty(min(chunk, len(x)), len(W))
        for start in range(0, len(x), chunk):
            part = slice(start, start + chunk)
            rows = x[part]
            logits = buffer[: len(rows)]
            if bias is None:
                torch.mm(rows, W.mT, out=logits)
            else:
                torch.addmm(bias.to(dtype), rows, W.mT, out=logits)
            losses[part], gradient = _softmax_(working(logits), targets[part])
            gradient = gradient.to(dtype)
            if grad_hidden is not None:
                torch.mm(gradient, W, out=grad_hidden[part])
            if grad_weight is not None and dtype == exact:
                grad_weight.addmm_(gradient.mT, rows)
            elif grad_weight is not None:
                grad_weight += gradient.mT @ rows
            if grad_bias is not None:
                grad_bias += gradient.sum(0, dtype=exact)
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # In place, since a second copy of the weight's gradient would be the peak; autograd notices
        # if backward is called again with the graph retained.
        gradients = (
            None if g is None else g.mul_(upstream).to(dtype)
            for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *gradients, None, None


def _softmax_(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (T,) and softmax(logits) − onehot(targets) (T, V), which takes the logits' place."""
    index = targets[:, None]
    logits -= logits.amax(-1, keepdim=True)
    of_target = logits.gather(-1, index).squeeze(-1)
    total = logits.exp_().sum(-1, keepdim=True)
    logits /= total
    logits.scatter_add_(-1, index, logits.new_full((1, 1), -1.0).expand_as(index))
    return total.squeeze(-1).log() - of_target, logits
