"""Language modelling: next-token prediction on a corpus."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectrain.distributed import Processes
from spectrain.tasks.lm.batches import Batches
from spectrain.tasks.lm.corpus import Corpus, load_corpus
from spectrain.tasks.lm.evaluate import evaluate, token_loss
from spectrain.tasks.lm.models import build_model
from spectrain.tasks.lm.options import LanguageModelOptions
from spectrain.tasks.score import LOSS, PERPLEXITY, Score

PROBE_TOKENS = 32


@dataclass
class LanguageModelling:
    """The task `lm`: a transformers causal language model on a tokenised corpus."""

    options: LanguageModelOptions
    corpus: Corpus
    overrides: dict[str, str] = field(default_factory=dict)  # of the model's configuration
    name: str = "lm"
    unit: str = "tokens"
    scores: tuple[Score, ...] = (LOSS, PERPLEXITY)

    @classmethod
    def load(
        cls,
        options: LanguageModelOptions,
        overrides: dict[str, str] | None = None,
        progress: Any = None,
    ) -> LanguageModelling:
        """Prepare the corpus (from the cache where it is known). Raises as `load_corpus` does."""
        corpus = load_corpus(
            options.data,
            vocab_size=options.vocab_size,
            tokenizer=options.tokenizer,
            max_bytes=options.max_bytes,
            text_field=options.text_field,
            progress=progress,
        )
        return cls(options, corpus, overrides or {})

    @property
    def units_per_step(self) -> int:
        o = self.options
        return o.sequence_length * o.batch_size * o.accumulate

    @property
    def batch_shape(self) -> tuple[int, int, int]:
        o = self.options
        return o.accumulate, o.batch_size, o.sequence_length

    @property
    def is_divisible(self) -> bool:
        return True

    def build_model(self) -> nn.Module:
        return build_model(
            self.options.model,
            vocab_size=self.corpus.vocab_size,
            sequence_length=self.options.sequence_length,
            overrides=self.overrides,
            end_of_text=self.corpus.tokenizer.eos_token_id,
            gradient_checkpointing=self.options.gradient_checkpointing,
        )

    def skeleton(self) -> nn.Module:
        with torch.device("meta"):
            return self.build_model()

    @cached_property
    def _batches(self) -> dict[int, Batches]:
        return {}

    def micro_batches(self, step: int, seed: int) -> list[Tensor]:
        if seed not in self._batches:
            o = self.options
            size = o.batch_size * o.accumulate
            train = self.corpus.splits["train"]
            self._batches[seed] = Batches(train, o.sequence_length, size, seed)
        whole = self._batches[seed].batch(step)
        return list(torch.split(whole, self.options.batch_size))

    def blank(self) -> Tensor:
        o = self.options
        return torch.zeros(o.batch_size, o.sequence_length + 1, dtype=torch.int64)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return token_loss(model, batch, chunk=self.options.loss_chunk)

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
        found = evaluate(
            model,
            self.corpus.splits[split],
            o.sequence_length,
            batch_size=o.batch_size,
            max_tokens=o.final_tokens if thorough else o.eval_tokens,
            device=next(model.parameters()).device,
            autocast=None if dtype == torch.float32 else dtype,
            chunk=o.loss_chunk,
            processes=processes,
        )
        return {"loss": found.loss}

    @torch.no_grad()
    def probe(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        tokens = self.corpus.splits["validation"][: min(PROBE_TOKENS, self.options.sequence_length)]
        ids = tokens.long().unsqueeze(0).to(next(model.parameters()).device)
        training = model.training
        logits = model.eval()(input_ids=ids, use_cache=False).logits
        model.train(training)
        return ids.cpu(), logits.float().cpu()

    def save_assets(self, model: nn.Module, directory: Path) -> None:
        self.corpus.tokenizer.save_pretrained(directory / "tokenizer")
        model.config.save_pretrained(directory / "model")  # type: ignore[union-attr, operator]

    def exhibits(self, model: nn.Module) -> dict[str, bytes]:
        return {}

    def settings(self) -> dict[str, Any]:
        return {**asdict(self.options), "model_config": dict(self.overrides)}

    def summary(self) -> dict[str, Any]:
        return self.corpus.summary()
