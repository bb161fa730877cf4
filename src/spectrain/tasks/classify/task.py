"""Fine-tuning a pretrained model to tell labels of texts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrain.distributed import Processes
from spectrain.errors import UsageError
from spectrain.tasks.classify.scores import SCORES, scores_of
from spectrain.tasks.classify.texts import (
    Text,
    TextBatch,
    batch_of,
    classes_of,
    encode,
    pair_field,
)
from spectrain.tasks.finetune.base import Base
from spectrain.tasks.finetune.builtin import statements
from spectrain.tasks.finetune.options import FinetuneOptions
from spectrain.tasks.finetune.records import divide, read_data
from spectrain.tasks.finetune.saving import save_base_assets
from spectrain.tasks.lm.models import evaluation_mode
from spectrain.tasks.order import EpochOrder
from spectrain.tasks.score import Score

PROBE = 32  # tokens
AT_ONCE = 32  # texts that are measured together


@dataclass
class TextClassification:
    """The task `classify`: cross-entropy of labels, with a head that begins from random weights."""

    options: FinetuneOptions
    base: Base
    classes: tuple[str, ...]
    parts: dict[str, list[Text]]  # by split
    data: str  # its name
    notes: tuple[str, ...] = ()
    name: str = "classify"
    unit: str = "texts"

    @classmethod
    def load(cls, options: FinetuneOptions) -> TextClassification:
        """Find the model and read the data.

        Raises UsageError, in a sentence, for a model or data that cannot be used; RunError if a hub does
        not answer.
        """
        o, base = options, Base.find(options)
        records = statements() if o.data is None else read_data(o.data)
        divided = divide(records.parts, o.validation, o.test, o.split_seed)
        classes, notes = classes_of(divided, o), list(records.notes)
        second = pair_field(divided["train"][0], o)
        if second is not None:
            notes.append(f"each text is read together with its {second}")
        parts = {}
        for split, part in divided.items():
            parts[split], cut = encode(part, classes, base.tokenizer, o)
            if cut:
                notes.append(
                    f"{cut:,} of {len(part):,} {split} texts are longer than {o.max_length} tokens and cut "
                    "(--max-length)"
                )
        task = cls(o, base, tuple(classes), parts, records.name, tuple(notes))
        if task.units_per_step > len(parts["train"]):
            raise UsageError(
                f"a step takes {task.units_per_step:,} texts (--batch-size × --accumulate), and there are "
                f"{len(parts['train']):,} to train on; give a smaller --batch-size"
            )
        return task

    @property
    def scores(self) -> tuple[Score, ...]:
        return tuple(sorted(SCORES, key=lambda score: score.key != self.options.metric))

    # --- data ----------------------------------------------------------------------------------

    @property
    def units_per_step(self) -> int:
        return self.options.batch_size * self.options.accumulate

    @cached_property
    def _longest(self) -> int:
        return max(len(text.tokens) for text in self.parts["train"])

    @property
    def batch_shape(self) -> tuple[int, int, int]:
        return self.options.accumulate, self.options.batch_size, self._longest

    @property
    def is_divisible(self) -> bool:
        return True

    @cached_property
    def _orders(self) -> dict[int, EpochOrder]:
        return {}

    def micro_batches(self, step: int, seed: int) -> list[TextBatch]:
        train, size = self.parts["train"], self.options.batch_size
        if seed not in self._orders:
            self._orders[seed] = EpochOrder(len(train), seed)
        rows = self._orders[seed].rows(step * self.units_per_step, self.units_per_step).tolist()
        return [
            batch_of([train[i] for i in rows[first : first + size]], self.base.pad)
            for first in range(0, len(rows), size)
        ]

    def blank(self) -> TextBatch:
        shape = self.options.batch_size, self._longest
        ids, ones = (fill(shape, dtype=torch.int64) for fill in (torch.zeros, torch.ones))
        types = None if self.parts["train"][0].types is None else torch.zeros_like(ids)
        return TextBatch(ids, ones, types, torch.zeros(shape[0], dtype=torch.int64))

    # --- model ---------------------------------------------------------------------------------

    def build_model(self) -> nn.Module:
        return self.base.build(self.classes)

    def skeleton(self) -> nn.Module:
        return self.base.skeleton(self.classes)

    def start_factors(self, model: nn.Module) -> None:
        if self.base.adapter is not None:
            self.base.adapter.start(model)

    def loss(self, model: nn.Module, batch: TextBatch) -> Tensor:
        return F.cross_entropy(model(**batch.arguments).logits.float(), batch.targets)

    # --- measuring -----------------------------------------------------------------------------

    def evaluate(
        self,
        model: nn.Module,
        split: str,
        *,
        thorough: bool,
        dtype: torch.dtype,
        processes: Processes | None = None,
    ) -> dict[str, float]:
        """All scores, the mean cross-entropy "loss" in nats, and the number of "texts"."""
        o = self.options
        texts = self.parts[split][: o.final_examples if thorough else o.eval_examples]
        rank, size = (0, 1) if processes is None else (processes.rank, processes.size)
        table = torch.zeros(len(self.classes), len(self.classes), dtype=torch.float64)
        loss = torch.zeros((), dtype=torch.float64)
        for batch, logits in self._logits(model, texts[rank::size], dtype):
            table.index_put_(
                (batch.targets, logits.argmax(1)), torch.ones(()).double(), accumulate=True
            )
            loss += F.cross_entropy(logits.double(), batch.targets, reduction="sum")
        sums = torch.cat((table.flatten(), loss[None]))
        if processes is not None:
            processes.mean(sums)
            sums *= size
        found = scores_of(sums[:-1].view_as(table))
        return found | {"loss": float(sums[-1] / len(texts)), "texts": len(texts)}

    @torch.no_grad()
    def _logits(
        self, model: nn.Module, texts: Sequence[Text], dtype: torch.dtype
    ) -> list[tuple[TextBatch, Tensor]]:
        """Batches of about equal length, with the logits (B, classes) of each."""
        device = next(model.parameters()).device
        ordered = sorted(texts, key=lambda text: len(text.tokens))
        found = []
        with (
            evaluation_mode(model),
            torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
        ):
            for first in range(0, len(ordered), AT_ONCE):
                batch = batch_of(ordered[first : first + AT_ONCE], self.base.pad)
                logits = model(**batch.to(device).arguments).logits
                found.append((batch, logits.float().cpu()))
        return found

    @torch.no_grad()
    def probe(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        ids = self.parts["validation"][0].tokens[:PROBE].unsqueeze(0)
        ids = ids.to(next(model.parameters()).device)
        with evaluation_mode(model):
            logits = model(input_ids=ids).logits
        return ids.cpu(), logits.float().cpu()

    # --- what is written -----------------------------------------------------------------------

    def save_assets(self, model: nn.Module, directory: Path) -> None:
        save_base_assets(self.base, model, directory)

    def exhibits(self, model: nn.Module) -> dict[str, bytes]:
        return {}

    def settings(self) -> dict[str, Any]:
        return asdict(self.options)

    def describe(self) -> list[str]:
        """Model and data, in sentences."""
        counts = ", ".join(f"{split} {len(part):,}" for split, part in self.parts.items())
        labels = Counter(text.label for text in self.parts["test"])
        (most, number), *_ = labels.most_common(1)
        share = f"{number / len(self.parts['test']):.1%}".replace("%", " %")
        epoch = len(self.parts["train"]) / self.units_per_step
        return [
            self.base.describe(),
            f"{self.data}: {counts} texts; {len(self.classes)} labels, of which {self.classes[most]!r}, "
            f"the most frequent, is {share} of test; an epoch is {epoch:.1f} steps of "
            f"{self.units_per_step:,} texts",
            *(f"note: {note}" for note in self.notes),
        ]

    @cached_property
    def _fingerprint(self) -> str:
        found = hashlib.sha256(f"{self.base.digest} {self.classes}".encode())
        for split, part in self.parts.items():
            for text in part:
                types = None if text.types is None else text.types.tolist()
                found.update(f"{split} {text.label} {text.tokens.tolist()} {types}\n".encode())
        return found.hexdigest()

    def summary(self) -> dict[str, Any]:
        return {
            "name": self.data,
            "fingerprint": self._fingerprint,
            "base_sha256": self.base.digest,
            "classes": list(self.classes),
            "examples": {split: len(part) for split, part in self.parts.items()},
            "notes": list(self.notes),
        }
