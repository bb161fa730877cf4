"""Text into tokens and back: byte-level BPE vocabularies, learned from the training text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from spectrain.errors import RunError, UsageError
from spectrain.tasks.translate.corpus import Corpus
from spectrain.tasks.translate.options import TranslateOptions

PAD, START, END = 0, 1, 2
SPECIAL = ["<pad>", "<s>", "</s>"]
SMALLEST = len(SPECIAL) + 256  # tokens of a vocabulary: these, and every byte
SIDES = ("source", "target")


@dataclass(frozen=True)
class Vocabularies:
    """One vocabulary for each side; the same object twice where they are shared."""

    source: Tokenizer
    target: Tokenizer

    @classmethod
    def learn(cls, corpus: Corpus, options: TranslateOptions) -> Vocabularies:
        """From the training text alone. Raises UsageError for a size that holds not even all bytes."""
        if options.vocab_size < SMALLEST:
            raise UsageError(
                f"vocab_size is {options.vocab_size}; a byte-level vocabulary has at least {SMALLEST} "
                "tokens (every byte, padding, start and end)"
            )
        a, b = corpus.splits["train"]
        if options.vocabulary == "shared":
            both = _learned([*a, *b], options.vocab_size)
            return cls(both, both)
        return cls(_learned(a, options.vocab_size), _learned(b, options.vocab_size))

    @classmethod
    def load(cls, folder: Path) -> Vocabularies:
        """As `save` wrote them. Raises RunError if they are not there or damaged."""
        found = []
        for side in SIDES:
            path = folder / f"{side}.json"
            try:
                found.append(Tokenizer.from_str(path.read_text(encoding="utf-8")))
            except Exception as error:  # tokenizers raises bare Exceptions
                raise RunError(f"{path} is no vocabulary that loads: {error}") from None
        return cls(*map(_literal, found))

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for side, tokenizer in zip(SIDES, (self.source, self.target), strict=True):
            (folder / f"{side}.json").write_text(tokenizer.to_str(), encoding="utf-8")

    @property
    def sizes(self) -> tuple[int, int]:
        return self.source.get_vocab_size(), self.target.get_vocab_size()

    def encode_source(self, texts: Sequence[str], most: int) -> list[Tensor]:
        """Tokens of each text and the end, at most `most` in all."""
        return _encoded(self.source, texts, most)

    def encode_target(self, texts: Sequence[str], most: int) -> list[Tensor]:
        """Start, tokens of each text, end: at most `most` behind the start."""
        first = torch.tensor([START])
        return [torch.cat((first, ids)) for ids in _encoded(self.target, texts, most)]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of target tokens; of start and end nothing."""
        text: str = self.target.decode(list(tokens), skip_special_tokens=True)
        return " ".join(text.split())


def _learned(texts: Sequence[str], size: int) -> Tokenizer:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return _literal(bpe)


def _literal(tokenizer: Tokenizer) -> Tokenizer:
    """The same, taking text that spells out a special token for text; files do not keep this."""
    tokenizer.encode_special_tokens = True
    return tokenizer


def _encoded(tokenizer: Tokenizer, texts: Sequence[str], most: int) -> list[Tensor]:
    found = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [torch.tensor([*encoding.ids[: most - 1], END]) for encoding in found]
