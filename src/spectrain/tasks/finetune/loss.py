"""The loss of responses, given their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from spectrain.abstract import is_abstract
from spectrain.distributed import Processes
from spectrain.errors import UsageError
from spectrain.linalg import working
from spectrain.tasks.finetune.batches import Rows, rows_of
from spectrain.tasks.finetune.encoding import Example
from spectrain.tasks.lm.loss import chunked_cross_entropy, decoder_and_head
from spectrain.tasks.lm.models import evaluation_mode

APART = 1e-4  # largest difference of logits that passes for rounding, relative to the largest logit


def response_loss(
    model: nn.Module,  # a transformers causal language model
    rows: Rows,
    chunk: int,  # tokens whose logits there are at a time; 0: all
) -> Tensor:
    """The sum of the cross-entropies of all predictions, in nats, over `rows.divisor`; a scalar.

    Filling needs no mask, since it stands behind everything that attends. Raises UsageError if the model
    does not keep packed examples apart, or as `decoder_and_head`.
    """
    seen: dict[str, Any] = {}
    if rows.members is not None:
        _require_apart(model, rows)
        seen = {"attention_mask": _mask(rows.members), "position_ids": rows.positions}
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


def _mask(members: Tensor) -> Tensor:
    """(B, 1, T, T), true where a place may look: at itself and what is before it in its own example."""
    length = members.shape[1]
    same = members[:, None, :, None] == members[:, None, None, :]
    return same & torch.ones(length, length, dtype=torch.bool, device=members.device).tril()


_apart: WeakSet[nn.Module] = WeakSet()


@torch.no_grad()
def _require_apart(model: nn.Module, rows: Rows) -> None:
    """Raise UsageError unless the model's logits for a packed row are those of its examples alone.

    Looked at once for each model, on the first row that holds two examples.
    """
    assert rows.members is not None
    if model in _apart or is_abstract(rows.members) or not (rows.members > 0).any():
        return
    row = int((rows.members > 0).any(1).int().argmax())
    ids, members = rows.inputs[row : row + 1], rows.members[row : row + 1]
    positions = None if rows.positions is None else rows.positions[row : row + 1]
    parts = [ids[members == number][None] for number in range(int(members.max()) + 1)]
    autocast = torch.autocast(ids.device.type, enabled=False)
    with evaluation_mode(model), autocast:
        alone = torch.cat([model(input_ids=part, use_cache=False).logits for part in parts], 1)
        try:
            packed = model(
                input_ids=ids,
                attention_mask=_mask(members),
                position_ids=positions,
                use_cache=False,
            ).logits[:, : alone.shape[1]]
        except (TypeError, ValueError, RuntimeError):  # it knows no such mask or positions
            packed = torch.full_like(alone, torch.inf)
    if not (packed - alone).abs().max() <= APART * alone.abs().max():
        raise UsageError(
            f"{type(model).__name__} does not keep packed examples apart: leave --packing out"
        )
    _apart.add(model)
