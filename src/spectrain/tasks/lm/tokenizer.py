"""Byte-level BPE trained on the spot, a tokenizer from elsewhere, and text into tokens."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from spectrain.errors import UsageError
from spectrain.tasks.lm import hub
from spectrain.tasks.pretrained import read_tokenizer
from spectrain.tasks.reading import user_path

END_OF_TEXT = "<|endoftext|>"
TRAINING_CHARACTERS = 20_000_000  # more text than this makes no better BPE, only a slower one

_PIECE = 1 << 16  # characters that are tokenized as one
_BATCH = 1 << 22  # characters that are tokenized at a time: bounds memory, feeds every core

# Between a word and the white space behind it, where the pre-tokenizer cuts in any case.
_WORD_END = re.compile(r"(?<=\S)(?=\s)")


def train_bpe(documents: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer as GPT-2's, with <|endoftext|> as its only special token.

    Learned from the whole text or, if that is long, from pieces spread evenly over it. May come
    out smaller than `vocab_size` where the text has nothing more to merge. Deterministic.
    """
    smallest = len(pre_tokenizers.ByteLevel.alphabet()) + 1
    if vocab_size < smallest:
        raise UsageError(
            f"vocab_size is {vocab_size}; a byte-level vocabulary has at least {smallest} tokens "
            "(every byte, and the end of text)"
        )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_sample(documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a transformers folder or of a hub model.

    Raises UsageError if it is none, or knows no end of text.
    """
    folder = user_path(name)
    if not folder.is_dir():
        if not hub.could_be_hub_name(name):
            raise UsageError(f"there is no folder {name!r} to load a tokenizer from")
        folder = hub.model_folder(name)
    tokenizer: PreTrainedTokenizerFast = read_tokenizer(name, folder)
    if tokenizer.eos_token_id is None:
        raise UsageError(f"the tokenizer {name!r} has no end-of-text token to separate documents")
    return tokenizer


def tokenize(
    tokenizer: PreTrainedTokenizerFast,
    documents: Iterable[str],
    progress: Callable[[int], None] = lambda characters: None,
) -> Tensor:
    """All documents as one stream of tokens (n,), int32, each followed by the end of text.

    A special token that is spelled out in the text becomes that token: text that comes with its
    own <|endoftext|> marks keeps them. `progress` hears how many characters are done.
    """
    backend = tokenizer.backend_tokenizer
    end = tokenizer.eos_token_id
    parts = [np.empty(0, dtype=np.int32)]
    done = 0
    for batch in _batches(documents):
        pieces = [piece for piece, _ in batch]
        encodings: list[Any] = backend.encode_batch_fast(pieces, add_special_tokens=False)
        ids: list[int] = []
        for encoding, (piece, is_last) in zip(encodings, batch, strict=True):
            ids += encoding.ids
            if is_last:
                ids.append(end)
            done += len(piece)
        parts.append(np.array(ids, dtype=np.int32))
        progress(done)
    return torch.from_numpy(np.concatenate(parts))


def _batches(documents: Iterable[str]) -> Iterator[list[tuple[str, bool]]]:
    """Pieces of documents, each with whether it is its document's last, _BATCH characters a time."""
    batch: list[tuple[str, bool]] = []
    size = 0
    for document in documents:
        pieces = list(_pieces(document))
        for index, piece in enumerate(pieces):
            batch.append((piece, index == len(pieces) - 1))
            size += len(piece)
            if size >= _BATCH:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _pieces(document: str) -> Iterator[str]:
    start = 0
    while start < len(document):
        end = start + _PIECE
        # Looked for in one piece's length only: there is text without white space.
        match = _WORD_END.search(document, end, end + _PIECE)
        end = match.start() if match else end
        yield document[start:end]
        start = end


def _sample(documents: Sequence[str]) -> Iterator[str]:
    share = min(1.0, TRAINING_CHARACTERS / max(sum(map(len, documents)), 1))
    credit = 0.0
    for document in documents:
        for piece in _pieces(document):
            credit += share * len(piece)
            if credit >= len(piece):
                credit -= len(piece)
                yield piece
