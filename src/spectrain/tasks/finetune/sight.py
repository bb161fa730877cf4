"""What a model's places see: nothing behind them, and no other example of a packed row."""

from __future__ import annotations

from weakref import WeakSet

import torch
from torch import Tensor, nn

from spectrain.abstract import is_abstract
from spectrain.errors import UsageError
from spectrain.tasks.finetune.batches import Rows
from spectrain.tasks.lm.models import evaluation_mode

EQUAL = 1e-4  # largest difference of logits that passes for rounding, relative to the largest logit
TRIAL_TOKENS = 16

_causal: WeakSet[nn.Module] = WeakSet()
_apart: WeakSet[nn.Module] = WeakSet()


def packed_mask(
    members: Tensor,  # (B, T): which example of its row; −1: filling
) -> Tensor:  # (B, 1, T, T)
    """True where a place may look: at itself and what is before it in its own example."""
    length = members.shape[1]
    same = members[:, None, :, None] == members[:, None, None, :]
    return same & torch.ones(length, length, dtype=torch.bool, device=members.device).tril()


@torch.no_grad()
def require_causal(model: nn.Module, rows: Rows) -> None:
    """Raise UsageError if the model's logits depend on tokens behind their place.

    Looked at once for each model, on the beginning of a row. Filling on the right and the loss itself
    ask for it.
    """
    if model in _causal or is_abstract(rows.inputs):
        return
    ids = rows.inputs[:1, :TRIAL_TOKENS]
    short = ids[:, : (ids.shape[1] + 1) // 2]
    with evaluation_mode(model), torch.autocast(ids.device.type, enabled=False):
        whole, part = (model(input_ids=i, use_cache=False).logits for i in (ids, short))
    if not _equal(whole[:, : short.shape[1]], part):
        raise UsageError(
            f"{type(model).__name__} sees the tokens it is to predict, as encoders do: give a causal "
            "language model, or --classify to learn labels"
        )
    _causal.add(model)


@torch.no_grad()
def require_apart(model: nn.Module, rows: Rows) -> None:
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
    with evaluation_mode(model), torch.autocast(ids.device.type, enabled=False):
        alone = torch.cat([model(input_ids=part, use_cache=False).logits for part in parts], 1)
        try:
            packed = model(
                input_ids=ids,
                attention_mask=packed_mask(members),
                position_ids=positions,
                use_cache=False,
            ).logits[:, : alone.shape[1]]
        except (TypeError, ValueError, RuntimeError):  # it knows no such mask or positions
            packed = torch.full_like(alone, torch.inf)
    if not _equal(packed, alone):
        raise UsageError(
            f"{type(model).__name__} does not keep packed examples apart: leave --packing out"
        )
    _apart.add(model)


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= EQUAL * b.abs().max())
