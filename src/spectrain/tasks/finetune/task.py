"""Fine-tuning a causal language model to respond to prompts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectrain.distributed import Processes
from spectrain.errors import UsageError
from spectrain.integrations.peft import Adapters
from spectrain.tasks.finetune.answers import ends_in_number, final_number
from spectrain.tasks.finetune.base import Base
from spectrain.tasks.finetune.batches import Batches, Rows
from spectrain.tasks.finetune.builtin import problems
from spectrain.tasks.finetune.encoding import Example, encode
from spectrain.tasks.finetune.loss import mean_loss, response_loss
from spectrain.tasks.finetune.options import FinetuneOptions
from spectrain.tasks.finetune.prompts import Wording
from spectrain.tasks.finetune.records import divide, read_data
from spectrain.tasks.finetune.responding import Responses, respond
from spectrain.tasks.finetune.saving import save_base_assets
from spectrain.tasks.lm.evaluate import evaluate as evaluate_text
from spectrain.tasks.lm.files import read_documents
from spectrain.tasks.lm.tokenizer import tokenize
from spectrain.tasks.reading import user_path
from spectrain.tasks.score import LOSS, Score

EXACT_MATCH = Score("exact_match", "exact match", "points", True, 100.0, 1)
OTHER_TEXT = Score("other_loss", "second text perplexity", "nats", digits=2, exponential=True)
PROBE = 32  # tokens
BEFORE = "before.json"  # what the model scored on test data before training


@dataclass
class FineTuning:
    """The task `finetune`: cross-entropy of responses, given their prompts.

    The loss on validation data decides over rates and checkpoints. At the end responses are generated and
    judged by their final number, and the perplexity of a second text is measured: of its first half
    beside validation data, of the second half beside test data.
    """

    options: FinetuneOptions
    base: Base
    parts: dict[str, list[Example]]  # by split; all short enough
    data: str  # its name
    notes: tuple[str, ...] = ()  # on what was left out
    other: Tensor | None = None  # tokens of the second text
    name: str = "finetune"
    unit: str = "tokens"

    @classmethod
    def load(cls, options: FinetuneOptions) -> FineTuning:
        """Find the model and read the data.

        Raises UsageError, in a sentence, for a model or data that cannot be used; RunError if a hub does
        not answer.
        """
        o, base = options, Base.find(options)
        records = problems() if o.data is None else read_data(o.data)
        wording = Wording(base.tokenizer, o)
        notes = [*records.notes, f"prompts are {wording.describe()}"]
        examples: dict[str, list[Example]] = {}
        for split, part in records.parts.items():
            found = encode([wording.pair(record) for record in part], wording)
            examples[split] = [e for e in found if len(e.tokens) <= o.max_length]
            if long := len(found) - len(examples[split]):
                notes.append(
                    f"{long:,} of {len(found):,} {split} examples are longer than {o.max_length} tokens "
                    "and left out (--max-length)"
                )
            if not examples[split]:
                raise UsageError(
                    f"no {split} example is short enough for --max-length {o.max_length}; give more"
                )
        parts = divide(examples, o.validation, o.test, o.split_seed)
        other = None if o.forgetting is None else _text(o.forgetting, base, o.forgetting_tokens)
        task = cls(o, base, parts, records.name, tuple(notes), other)
        _ = task.answers, task.batches(o.split_seed)  # refuse now what cannot be
        return task

    # --- scores --------------------------------------------------------------------------------

    @cached_property
    def answers(self) -> bool:
        """Whether responses are generated, and judged by their final number."""
        held = [*self.parts["validation"], *self.parts["test"]]
        if self.options.answer == "none" or self.options.generate == 0:
            return False
        if self.options.answer == "auto":
            return all(ends_in_number(e.reference) for e in (*held, *self.parts["train"]))
        if wrong := [e.where for e in held if final_number(e.reference) is None]:
            raise UsageError(f"--answer number: there is no number in the response of {wrong[0]}")
        return True

    @property
    def scores(self) -> tuple[Score, ...]:
        found = [LOSS]
        if self.answers:
            found.append(EXACT_MATCH)
        if self.other is not None:
            found.append(OTHER_TEXT)
        return tuple(found)

    # --- data ----------------------------------------------------------------------------------

    @cached_property
    def _orders(self) -> dict[int, Batches]:
        return {}

    def batches(self, seed: int) -> Batches:
        """The training batches in the order of a seed."""
        o = self.options
        if seed not in self._orders:
            self._orders[seed] = Batches(
                self.parts["train"],
                size=o.batch_size,
                accumulate=o.accumulate,
                pad=self.base.pad,
                seed=seed,
                capacity=o.max_length if o.packing else None,
            )
        return self._orders[seed]

    @cached_property
    def units_per_step(self) -> int:
        """Tokens without filling, on average."""
        count = sum(len(e.tokens) for e in self.parts["train"])
        return max(1, round(count / self.batches(self.options.split_seed).steps_per_epoch))

    @property
    def batch_shape(self) -> tuple[int, int, int]:
        o = self.options
        return o.accumulate, o.batch_size, self._largest[0]

    @cached_property
    def _largest(self) -> tuple[int, int]:
        return self.batches(self.options.split_seed).largest

    @property
    def is_divisible(self) -> bool:
        return True

    def micro_batches(self, step: int, seed: int) -> list[Rows]:
        return self.batches(seed).step(step)

    def blank(self) -> Rows:
        size, (length, answered) = self.options.batch_size, self._largest
        inputs = torch.zeros(size, length, dtype=torch.int64)
        places = torch.arange(size * answered)
        rows = Rows(inputs, places, torch.zeros_like(places), 1.0)
        if not self.options.packing:
            return rows
        positions = torch.arange(length).expand(size, length).contiguous()
        return Rows(rows.inputs, places, rows.targets, 1.0, torch.zeros_like(inputs), positions)

    # --- model ---------------------------------------------------------------------------------

    def build_model(self) -> nn.Module:
        return self.base.build()

    def skeleton(self) -> nn.Module:
        return self.base.skeleton()

    def start_factors(self, model: nn.Module) -> None:
        if self.base.adapter is not None:
            self.base.adapter.start(model)

    def loss(self, model: nn.Module, batch: Rows) -> Tensor:
        return response_loss(model, batch, self.options.loss_chunk)

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
        o = self.options
        examples = self.parts[split][: o.final_examples if thorough else o.eval_examples]
        loss = mean_loss(
            model,
            examples,
            size=o.batch_size,
            pad=self.base.pad,
            chunk=o.loss_chunk,
            dtype=dtype,
            processes=processes,
        )
        found = {"loss": loss}
        if thorough and self.answers:
            found |= self._exact_match(model, split, dtype, processes)
        if thorough and self.other is not None:
            half = self.other.chunk(2)[split == "test"]
            found["other_loss"] = evaluate_text(
                model,
                half,
                min(o.max_length, len(half) - 1),
                o.batch_size,
                device=next(model.parameters()).device,
                autocast=None if dtype == torch.float32 else dtype,
                chunk=o.loss_chunk,
                processes=processes,
            ).loss
        return found

    def _exact_match(
        self, model: nn.Module, split: str, dtype: torch.dtype, processes: Processes | None
    ) -> dict[str, float]:
        """The share of right final numbers among so many generated responses."""
        o = self.options
        rank, size = (0, 1) if processes is None else (processes.rank, processes.size)
        own = self.parts[split][: o.generate][rank::size]
        replies = respond(
            model,
            self.base.tokenizer,
            [example.prompt for example in own],
            pad=self.base.pad,
            batch_size=o.batch_size,
            max_new_tokens=o.max_new_tokens,
            dtype=dtype,
        )
        self._latest[split] = Responses(own, replies, dtype)
        right = sum(self._latest[split].right)
        sums = torch.tensor((right, len(own)), dtype=torch.float64)
        if processes is not None:
            processes.mean(sums)
        return {"exact_match": float(sums[0] / sums[1]), "responses": round(float(sums[1]) * size)}

    @cached_property
    def _latest(self) -> dict[str, Responses]:
        """By split, what this process generated last."""
        return {}

    @cached_property
    def _before(self) -> dict[str, dict[str, float]]:
        """By the dtype of arithmetic, the scores of the model on test data before training."""
        return {}

    def before(self, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
        """What the model scores on test data as it was, measured once in a process."""
        if str(dtype) not in self._before:
            model = self.build_model().to(device)
            if self.base.adapter is not None:
                adapters = Adapters(model)
                adapters.load("before", self.base.adapter.folder)
                adapters.use("before")
            found = self.evaluate(model, "test", thorough=True, dtype=dtype)
            self._before[str(dtype)] = {f"test_{key}": value for key, value in found.items()}
        return self._before[str(dtype)]

    @torch.no_grad()
    def probe(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        ids = self.parts["validation"][0].tokens[:PROBE].unsqueeze(0)
        ids = ids.to(next(model.parameters()).device)
        training = model.training
        logits = model.eval()(input_ids=ids, use_cache=False).logits
        model.train(training)
        return ids.cpu(), logits.float().cpu()

    # --- what is written -----------------------------------------------------------------------

    def save_assets(self, model: nn.Module, directory: Path) -> None:
        save_base_assets(self.base, model, directory)

    def exhibits(self, model: nn.Module) -> dict[str, bytes]:
        """All test responses, some of them for the report, and what the model scored before."""
        found: dict[str, bytes] = {}
        responses = self._latest.get("test")
        if responses is not None:
            found |= responses.files()
        if self.options.before:
            dtype = torch.float32 if responses is None else responses.dtype
            scores = self.before(next(model.parameters()).device, dtype)
            found[BEFORE] = json.dumps(scores, indent=1).encode()
        return found

    def settings(self) -> dict[str, Any]:
        return asdict(self.options)

    def describe(self) -> list[str]:
        """Model and data, in sentences."""
        o = self.options
        counts = ", ".join(f"{split} {len(part):,}" for split, part in self.parts.items())
        order = self.batches(o.split_seed)
        answered = sum(e.answered for e in self.parts["train"])
        total = sum(len(e.tokens) for e in self.parts["train"])
        rows = f" in {len(order.groups):,} packed rows" if o.packing else ""
        return [
            self.base.describe(),
            f"{self.data}: {counts} examples{rows}; {answered / total:.0%} of the training tokens are of "
            f"responses, which the loss is of; an epoch is {order.steps_per_epoch:.1f} steps of about "
            f"{self.units_per_step:,} tokens",
            *(f"note: {note}" for note in self.notes),
        ]

    @cached_property
    def _fingerprint(self) -> str:
        found = hashlib.sha256(self.base.digest.encode())
        for split, part in self.parts.items():
            for example in part:
                found.update(f"{split} {example.start} {example.tokens.tolist()}\n".encode())
        found.update(repr(None if self.other is None else self.other.tolist()).encode())
        return found.hexdigest()

    def summary(self) -> dict[str, Any]:
        return {
            "name": self.data,
            "fingerprint": self._fingerprint,
            "base_sha256": self.base.digest,
            "examples": {split: len(part) for split, part in self.parts.items()},
            "notes": list(self.notes),
        }


def _text(name: str, base: Base, most: int) -> Tensor:
    """The first tokens of the second text. Raises UsageError if it is too short or none."""
    path = user_path(name)
    if not path.is_file():
        raise UsageError(f"--forgetting: there is no file {name!r}")
    if base.tokenizer.eos_token_id is None:
        raise UsageError(
            "--forgetting needs a tokenizer with an end-of-text token between documents"
        )
    tokens = tokenize(base.tokenizer, read_documents(path))[:most]
    if len(tokens) < 4:
        raise UsageError(f"--forgetting {name} has {len(tokens)} tokens; give a longer text")
    return tokens
