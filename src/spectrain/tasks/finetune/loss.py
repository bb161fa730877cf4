"""The loss of responses, given their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from spectrain.distributed import Processes
from spectrain.linalg import working
from spectrain.tasks.finetune.batches import Rows, rows_of
from spectrain.tasks.finetune.encoding import Example
from spectrain.tasks.finetune.sight import packed_mask, require_apart, require_causal
from spectrain.tasks.lm.loss import chunked_cross_entropy, decoder_and_head
from spectrain.tasks.lm.models import evaluation_mode


def response_loss(
    model: nn.Module,  # a transformers causal language model
    rows: Rows,
    chunk: int,  # tokens whose logits there are at a time; 0: all
) -> Tensor:
    """The sum of the cross-entropies of all predictions, in nats, over `rows.divisor`; a scalar.

    Filling needs no mask, since it stands behind everything that attends. Raises UsageError as
    `require_causal`, `require_apart` and `decoder_and_head`.
    """
    require_causal(model, rows)
    seen: dict[str, Any] = {}
    if rows.members is not None:
        require_apart(model, rows)
        seen = {"attention_mask": packed_mask(rows.members), "position_ids": rows.positions}
    if chunk:
        decoder, head = decoder_and_head(model, rows.inputs)
        output = decoder(input_ids=rows.inputs, use_cache=False, **seen)
        hidden = output.last_hidden_state.flatten(0, 1)[rows.places]
        total = chunked_cross_entropy(hidden, head, rows.targets, chunk, "sum")
    else:
        logits = model(input_ids=rows.inputs, use_cache=False, **seen).logits.flatten(0, 1)
        total = cross_entropy(working(logits[rows.places]), rows.targets, reduction="sum")
    return total / rows.divisor


@torch.no_grad()
def mean_loss(
    model: nn.Module,
    examples: Sequence[Example],
    *,
    size: int,
    pad: int,
    chunk: int,
    dtype: torch.dtype,
    processes: Processes | None = None,
) -> float:
    """Nats per predicted token over all the examples, in batches of `size` of about equal length.

    With `processes` each takes every so manieth batch.
    """
    device = next(model.parameters()).device
    ordered = sorted(examples, key=lambda example: len(example.tokens))
    batches = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    rank, count = (0, 1) if processes is None else (processes.rank, processes.size)
    sums = torch.zeros(2, dtype=torch.float64)
    with evaluation_mode(model):
        for batch in batches[rank::count]:
            rows = rows_of([[example] for example in batch], pad, packed=False).to(device)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                loss = response_loss(model, rows, chunk)
            sums += torch.tensor((loss.item() * rows.divisor, rows.divisor), dtype=torch.float64)
    if processes is not None:
        processes.mean(sums)
    return float(sums[0] / sums[1])
