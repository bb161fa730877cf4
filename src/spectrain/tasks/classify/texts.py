"""Labelled texts in tokens, and in batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from spectrain.errors import UsageError
from spectrain.tasks.finetune.options import FinetuneOptions
from spectrain.tasks.finetune.records import LABELS, Record, text_of

TEXTS = ("text", "sentence", "sentence1", "premise")
PAIRS = ("hypothesis", "sentence2", "text_pair")
MOST_CLASSES = 1000


@dataclass(frozen=True)
class Text:
    """A labelled text, or two that are read together."""

    tokens: Tensor  # (n,), int64
    types: (
        Tensor | None
    )  # (n,), int64: 0 for the first text, 1 for the second; None: not told apart
    label: int


@dataclass(frozen=True)
class TextBatch:
    """Texts of one backward pass, filled up on the right."""

    inputs: Tensor  # (B, T), int64
    mask: Tensor  # (B, T), int64: 1 for text, 0 for filling
    types: Tensor | None  # (B, T), int64
    targets: Tensor  # (B,), int64: labels

    def to(self, device: torch.device, /) -> Self:
        types = None if self.types is None else self.types.to(device)
        inputs, mask, targets = (t.to(device) for t in (self.inputs, self.mask, self.targets))
        return replace(self, inputs=inputs, mask=mask, types=types, targets=targets)

    def chunk(self, chunks: int, /) -> list[Self]:
        parts = zip(self.inputs.chunk(chunks), self.mask.chunk(chunks), strict=True)
        types = [None] * chunks if self.types is None else self.types.chunk(chunks)
        rest = zip(parts, types, self.targets.chunk(chunks), strict=False)
        return [replace(self, inputs=i, mask=m, types=t, targets=y) for (i, m), t, y in rest]

    @property
    def arguments(self) -> dict[str, Tensor]:
        """What transformers' models are called with."""
        types = {} if self.types is None else {"token_type_ids": self.types}
        return {"input_ids": self.inputs, "attention_mask": self.mask, **types}


def classes_of(parts: Mapping[str, Sequence[Record]], options: FinetuneOptions) -> list[str]:
    """The labels of the training records, in order; numbers by their size.

    Raises UsageError if there are fewer than two, or if another split has one more.
    """
    found = {split: [label_of(r, options) for r in part] for split, part in parts.items()}
    names = sorted(set(found["train"]))
    if all(name.removeprefix("-").isdecimal() for name in names):
        names.sort(key=int)
    if not 2 <= len(names) <= MOST_CLASSES:
        raise UsageError(
            f"there are {len(names):,} labels to learn ({', '.join(names[:3])}); there must be from 2 to "
            f"{MOST_CLASSES:,}: choose their field by --label-field"
        )
    for split, labels in found.items():
        for record, label in zip(parts[split], labels, strict=True):
            if label not in names:
                raise UsageError(
                    f"{record.where} has the label {label[:40]!r}, which no training example has"
                )
    return names


def label_of(record: Record, options: FinetuneOptions) -> str:
    """The record's label as text. Raises UsageError if it has none."""
    candidates = LABELS if options.label_field is None else (options.label_field,)
    name = next((c for c in candidates if c in record.fields), None)
    value = None if name is None else record.fields[name]
    if isinstance(value, bool | int):
        return str(value).lower()
    if value is None:
        text_of(record, candidates, "--label-field")  # raises
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{record.where}: the label {str(value)[:40]!r} is no text and no number")
    return value.strip()


def pair_field(record: Record, options: FinetuneOptions) -> str | None:
    """The field of the second text, if there is one."""
    if options.pair_field is not None:
        return options.pair_field
    return next((name for name in PAIRS if name in record.fields), None)


def encode(
    records: Sequence[Record], classes: Sequence[str], tokenizer: Any, options: FinetuneOptions
) -> tuple[list[Text], int]:
    """The records in tokens, with special tokens, and how many were cut at `options.max_length`.

    Raises UsageError, naming file and line, for a record without text.
    """
    texts, seconds = [], []
    fields = TEXTS if options.text_field is None else (options.text_field,)
    second = pair_field(records[0], options)
    for record in records:
        _, text = text_of(record, fields, "--text-field")
        if not text.strip():
            raise UsageError(f"{record.where}: the text is empty; remove the line")
        texts.append(text)
        if second is not None:
            seconds.append(text_of(record, (second,), "--pair-field")[1])
    whole = tokenizer(texts, seconds or None)
    cut = tokenizer(texts, seconds or None, truncation=True, max_length=options.max_length)
    types = cut.get("token_type_ids", [None] * len(texts))
    place = {name: i for i, name in enumerate(classes)}
    found = [
        Text(
            torch.tensor(ids),
            None if kinds is None else torch.tensor(kinds),
            place[label_of(record, options)],
        )
        for record, ids, kinds in zip(records, cut["input_ids"], types, strict=True)
    ]
    lengths = zip(whole["input_ids"], cut["input_ids"], strict=True)
    return found, sum(len(a) > len(b) for a, b in lengths)


def batch_of(texts: Sequence[Text], pad: int) -> TextBatch:
    """The texts as one batch, as long as the longest of them."""
    shape = len(texts), max(len(text.tokens) for text in texts)
    inputs, mask = torch.full(shape, pad), torch.zeros(shape, dtype=torch.int64)
    types = torch.zeros_like(mask)
    for row, text in enumerate(texts):
        inputs[row, : len(text.tokens)] = text.tokens
        mask[row, : len(text.tokens)] = 1
        if text.types is not None:
            types[row, : len(text.tokens)] = text.types
    known = None if texts[0].types is None else types
    return TextBatch(inputs, mask, known, torch.tensor([text.label for text in texts]))
