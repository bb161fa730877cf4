"""Translation of one language into another."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectrain.distributed import Processes
from spectrain.errors import UsageError
from spectrain.tasks.score import LOSS, Score
from spectrain.tasks.translate.batches import Batches, Weighted
from spectrain.tasks.translate.corpus import Corpus, load_corpus
from spectrain.tasks.translate.evaluate import (
    bleu,
    bleu_metric,
    bleu_signature,
    mean_loss,
    token_loss,
)
from spectrain.tasks.translate.models import build, describe
from spectrain.tasks.translate.options import TranslateOptions
from spectrain.tasks.translate.transformer import Translator, probe_of
from spectrain.tasks.translate.translating import Translating
from spectrain.tasks.translate.vocabulary import PAD, Vocabularies

BLEU = Score("bleu", "BLEU", "points", True, 1.0, 2)
SAMPLES = 12  # translations in the report
PROBE = 24  # tokens


@dataclass(frozen=True)
class _Encoded:
    """The pairs of a split in tokens, as `Vocabularies` makes them."""

    source: list[Tensor]
    target: list[Tensor]
    long: int  # pairs left out, or source texts cut, for their length


@dataclass
class Translation:
    """The task `translate`: an encoder–decoder Transformer on parallel text.

    BLEU, which takes a translation of everything, is measured at the end alone; in training the
    validation loss tells which checkpoint is the best.
    """

    options: TranslateOptions
    corpus: Corpus
    vocabularies: Vocabularies
    name: str = "translate"
    unit: str = "tokens"
    scores: tuple[Score, ...] = (BLEU, LOSS)

    @classmethod
    def load(cls, options: TranslateOptions) -> Translation:
        """Read the corpus and learn the vocabularies. Raises as `load_corpus` and `learn` do."""
        corpus = load_corpus(options)
        return cls(options, corpus, Vocabularies.learn(corpus, options))

    # --- data ----------------------------------------------------------------------------------

    @cached_property
    def _encoded(self) -> dict[str, _Encoded]:
        """Every split in tokens. What is longer than max_length training leaves out, and others cut.

        Raises UsageError if nothing is left to train on.
        """
        most = self.options.max_length + 1  # with the end
        found = {}
        for split, (a, b) in self.corpus.splits.items():
            # With room for a token too many, so that what is too long can be told.
            source = self.vocabularies.encode_source(a, most + 1)
            target = self.vocabularies.encode_target(b, most + 1)
            if split == "train":
                pairs = zip(source, target, strict=True)
                fits = [(s, t) for s, t in pairs if len(s) <= most and len(t) <= most + 1]
                if not fits:
                    raise UsageError(
                        f"no training pair is short enough for --max-length {self.options.max_length}; "
                        "give more"
                    )
                kept = [s for s, _ in fits], [t for _, t in fits]
                found[split] = _Encoded(*kept, len(source) - len(fits))
            else:
                long = sum(len(s) > most for s in source)
                source = [_cut(s, most) for s in source]
                found[split] = _Encoded(source, [_cut(t, most + 1) for t in target], long)
        return found

    @cached_property
    def _batches(self) -> dict[int, Batches]:
        return {}

    def batches(self, seed: int) -> Batches:
        """The training batches in the order of a seed."""
        if seed not in self._batches:
            o = self.options
            self._batches[seed] = Batches(
                self._encoded["train"].source,
                self._encoded["train"].target,
                tokens=o.batch_tokens,
                size=o.batch_size,
                accumulate=o.accumulate,
                seed=seed,
            )
        return self._batches[seed]

    # --- training ------------------------------------------------------------------------------

    @cached_property
    def units_per_step(self) -> int:
        """Target tokens on average."""
        count = sum(len(t) - 1 for t in self._encoded["train"].target)
        return max(1, round(count / len(self.batches(0)) * self.options.accumulate))

    @property
    def batch_shape(self) -> tuple[int, int, int]:
        return (self.options.accumulate, *self._largest)

    @cached_property
    def _largest(self) -> tuple[int, int]:
        """(pairs, tokens of the longer side) of the batch with the most numbers in it."""
        b = self.batches(0)
        lengths = b.lengths.sort().values
        sizes = [(end - start, int(lengths[end - 1])) for start, end in pairwise(b.cuts)]
        return max(sizes, key=math.prod)

    @property
    def is_divisible(self) -> bool:
        return False

    def build_model(self) -> Translator:
        return build(self._description)

    @property
    def _description(self) -> dict[str, Any]:
        return describe(self.options, self.vocabularies.sizes)

    def skeleton(self) -> Translator:
        with torch.random.fork_rng(devices=[]):  # points on a manifold cannot do without numbers
            return self.build_model()

    def micro_batches(self, step: int, seed: int) -> list[Weighted]:
        return self.batches(seed).step(step)

    def blank(self) -> Weighted:
        pairs, length = self._largest
        source = torch.ones(pairs, length, dtype=torch.int64)
        return Weighted(source, torch.ones(pairs, length + 1, dtype=torch.int64))

    def loss(self, model: nn.Module, batch: Weighted) -> Tensor:
        smoothing = self.options.label_smoothing
        return batch.weight * token_loss(model, batch.inputs, batch.targets, smoothing=smoothing)

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
        pairs = None if thorough else o.eval_pairs
        encoded = self._encoded[split]
        source, target = encoded.source[:pairs], encoded.target[:pairs]
        found = {"loss": mean_loss(model, source, target, tokens=o.batch_tokens, dtype=dtype)}
        if thorough:
            references = self.corpus.splits[split][1]
            found["bleu"] = bleu(self.translations(model, split), references, self._metric())
        return found

    @cached_property
    def _latest(self) -> dict[str, list[str]]:
        """By split, what was translated last."""
        return {}

    def translations(self, model: nn.Module, split: str) -> list[str]:
        """The model's translation of each source text of a split."""
        assert isinstance(model, Translator)
        self._latest[split] = self._translating(model)(self.corpus.splits[split][0])
        return self._latest[split]

    def _translating(self, model: Translator) -> Translating:
        return Translating(model, self.vocabularies, **self._manner)

    @property
    def _manner(self) -> dict[str, Any]:
        """How it translates, in JSON."""
        o = self.options
        return {
            "lowercase": o.lowercase,
            "max_length": o.max_length,
            "beam": o.beam,
            "length_penalty": o.length_penalty,
        }

    def _metric(self) -> Any:
        return bleu_metric(self.options.target, self.options.lowercase)

    @torch.no_grad()
    def probe(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        ids = self._encoded["validation"].source[0][:PROBE].unsqueeze(0)
        ids = ids.to(next(model.parameters()).device)
        training = model.training
        logits = model.eval()(ids, probe_of(ids))
        model.train(training)
        return ids.cpu(), logits.float().cpu()

    # --- what is written -----------------------------------------------------------------------

    def save_assets(self, model: nn.Module, directory: Path) -> None:
        self.vocabularies.save(directory / "vocabulary")
        folder = directory / "model"
        folder.mkdir(exist_ok=True)
        content = {"network": self._description, "translation": self._manner}
        text = json.dumps(content, indent=2) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")

    def exhibits(self, model: nn.Module) -> dict[str, bytes]:
        """The test translations, as sacrebleu's command reads them, and some to look at."""
        sources, references = self.corpus.splits["test"]
        found = self._latest.get("test") or self.translations(model, "test")
        every = max(1, len(found) // SAMPLES)
        rows = list(zip(sources, references, found, strict=True))[::every][:SAMPLES]
        samples = {
            "columns": [self.options.source, self.options.target, "translation"],
            "rows": rows,
        }
        return {
            f"test.{self.options.target}": _as_lines(references),
            f"translation.{self.options.target}": _as_lines(found),
            "samples.json": json.dumps(samples, ensure_ascii=False, indent=1).encode(),
        }

    def settings(self) -> dict[str, Any]:
        return asdict(self.options) | {"norm": self._description.get("norm")}

    def describe(self) -> str:
        """The corpus and its vocabularies in a sentence."""
        pairs = ", ".join(f"{name} {len(s[0]):,}" for name, s in self.corpus.splits.items())
        sizes = self.vocabularies.sizes
        words = (
            f"{sizes[0]:,}"
            if self.options.vocabulary == "shared"
            else "{:,} and {:,}".format(*sizes)
        )
        epoch = -(-len(self.batches(0)) // self.options.accumulate)
        return (
            f"{self.corpus.name} {self.corpus.source}-{self.corpus.target}: pairs {pairs}; vocabulary "
            f"{words}; an epoch is {epoch:,} steps of about {self.units_per_step:,} tokens"
        )

    def notes(self) -> list[str]:
        """What happened to the data, in sentences."""
        found = list(self.corpus.notes)
        long = f"longer than {self.options.max_length} tokens"
        if left := self._encoded["train"].long:
            found.append(f"{left:,} training pairs are {long} and left out (--max-length)")
        for split in ("validation", "test"):
            if cut := self._encoded[split].long:
                found.append(f"{cut:,} source texts of {split} are {long} and cut")
        return found

    def summary(self) -> dict[str, Any]:
        corpus, sizes = self.corpus, self.vocabularies.sizes
        of = json.dumps([corpus.fingerprint, sizes, PAD]).encode()
        return {
            **corpus.summary(),
            "vocabularies": list(sizes),
            "bleu": bleu_signature(self._metric()),
            "fingerprint": hashlib.sha256(of).hexdigest(),
        }


def _cut(tokens: Tensor, most: int) -> Tensor:
    """At most so many of them, the end as the last."""
    return tokens if len(tokens) <= most else torch.cat((tokens[: most - 1], tokens[-1:]))


def _as_lines(texts: list[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()
