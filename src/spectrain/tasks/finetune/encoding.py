"""Prompts and responses in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectrain.errors import UsageError
from spectrain.tasks.finetune.prompts import Pair, Wording


@dataclass(frozen=True)
class Example:
    """A prompt with its response."""

    tokens: Tensor  # (n,), int64: prompt, response, end
    start: int  # where the response begins; at least 1
    reference: str  # the response as the data have it
    where: str

    @property
    def prompt(self) -> Tensor:
        """(start,)"""
        return self.tokens[: self.start]

    @property
    def answered(self) -> int:
        """Tokens to predict: those of the response and its end."""
        return len(self.tokens) - self.start


def encode(pairs: Sequence[Pair], wording: Wording) -> list[Example]:
    """All pairs in tokens, whatever their lengths.

    Prompt and response are tokenised apart, so that a prompt has the same tokens as when it is asked for
    a response; special tokens come from the chat template, or from the tokenizer where there is none.
    The response ends with the end of text, unless the template has ended it by a special token.
    Raises UsageError for a tokenizer without end of text.
    """
    tokenizer = wording.tokenizer
    end = tokenizer.eos_token_id
    if end is None:
        raise UsageError(
            "the tokenizer has no end-of-text token, by which a response ends: set tokenizer.eos_token "
            "and save it again"
        )
    prompts = _ids(tokenizer, [pair.prompt for pair in pairs], special=not wording.by_chat)
    responses = _ids(tokenizer, [pair.response for pair in pairs], special=False)
    known = set(tokenizer.all_special_ids)
    found = []
    for pair, prompt, response in zip(pairs, prompts, responses, strict=True):
        if not wording.by_chat and prompt and prompt[-1] == end:
            prompt = prompt[:-1]  # some tokenizers end every text
        if not prompt:
            raise UsageError(f"{pair.where}: the prompt has no tokens; remove the line")
        if not response or response[-1] not in known:
            response = [*response, end]
        tokens = torch.tensor([*prompt, *response])
        found.append(Example(tokens, len(prompt), pair.reference, pair.where))
    return found


def _ids(tokenizer: Any, texts: list[str], *, special: bool) -> list[list[int]]:
    ids: list[list[int]] = (
        tokenizer(texts, add_special_tokens=special)["input_ids"] if texts else []
    )
    return ids
