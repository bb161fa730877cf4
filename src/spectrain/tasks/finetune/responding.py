"""Responses as the model gives them, and which of them are right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spectrain.tasks.finetune.answers import final_number
from spectrain.tasks.finetune.encoding import Example
from spectrain.tasks.lm.models import evaluation_mode

SAMPLES = 12  # responses in the report


class Reply(NamedTuple):
    """What a model responded."""

    text: str
    complete: bool  # False if it was cut off at the limit


@torch.no_grad()
def respond(
    model: nn.Module,  # a transformers causal language model
    tokenizer: Any,
    prompts: Sequence[Tensor],  # (n,) tokens each
    *,
    pad: int,
    batch_size: int,
    max_new_tokens: int,
    dtype: torch.dtype = torch.float32,  # of autocast; float32: none
) -> list[Reply]:
    """The most likely continuation of each prompt, token by token (greedy), with keys and values kept.

    Prompts of about equal length go together, filled up on the left. A response ends at the tokenizer's or
    the model's own end, after `max_new_tokens`, or where the model has no more positions.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found = [Reply("", False)] * len(prompts)
    with evaluation_mode(model):
        for first in range(0, len(order), batch_size):
            own = order[first : first + batch_size]
            ids, mask = _filled([prompts[i] for i in own], pad)
            how = _greedy(model, tokenizer, pad, _room(model, ids.shape[1], max_new_tokens))
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                tokens = model.generate(  # type: ignore[operator]
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    generation_config=how,
                )
            new = tokens[:, ids.shape[1] :].cpu()
            texts = tokenizer.batch_decode(new, skip_special_tokens=True)
            complete = torch.isin(new, torch.tensor(how.eos_token_id)).any(1).tolist()
            for i, *reply in zip(own, texts, complete, strict=True):
                found[i] = Reply(*reply)
    return found


@dataclass(frozen=True)
class Responses:
    """What a model responded to examples."""

    examples: Sequence[Example]
    replies: Sequence[Reply]
    dtype: torch.dtype  # of the arithmetic

    @property
    def right(self) -> list[bool]:
        """Whether a response's final number is that of the reference."""
        pairs = zip(self.examples, self.replies, strict=True)
        return [final_number(*reply) == final_number(e.reference) for e, reply in pairs]

    def files(self) -> dict[str, bytes]:
        """responses.jsonl with all of them, and samples.json with some, evenly spread."""
        found = list(zip(self.examples, self.replies, self.right, strict=True))
        lines = [
            {"where": e.where, "reference": e.reference, **reply._asdict(), "right": right}
            for e, reply, right in found
        ]
        rows = [
            (e.reference, reply.text, "yes" if right else "no")
            for e, reply, right in found[:: max(1, len(found) // SAMPLES)][:SAMPLES]
        ]
        samples = {"columns": ["reference", "response", "right"], "rows": rows}
        return {
            "responses.jsonl": "".join(
                f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines
            ).encode(),
            "samples.json": json.dumps(samples, ensure_ascii=False, indent=1).encode(),
        }


def _filled(prompts: Sequence[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    """Tokens and mask (B, T), filled up on the left."""
    length = max(map(len, prompts))
    ids = torch.full((len(prompts), length), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = 1
    return ids, mask


def _room(model: nn.Module, length: int, wanted: int) -> int:
    longest = getattr(model.config, "max_position_embeddings", None)
    return wanted if longest is None else max(1, min(wanted, longest - length))


def _greedy(model: nn.Module, tokenizer: Any, pad: int, limit: int) -> Any:
    from transformers import GenerationConfig

    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=limit,
        eos_token_id=sorted(ends),
        pad_token_id=pad,
    )
