"""The tokens of a source, split, with the tokenizer that made them; kept in a cache folder."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from spectrain.errors import UsageError
from spectrain.tasks.lm.sources import Progress, Source, find_source
from spectrain.tasks.lm.splits import SPLITS
from spectrain.tasks.lm.tokenizer import END_OF_TEXT, load_tokenizer, tokenize, train_bpe

FORMAT = 1  # of the cached files; part of their key, so that older ones are simply not found


@dataclass(frozen=True)
class Corpus:
    """Tokens to train on and to measure with."""

    name: str  # for people, such as "python-stdlib 3.11.7"
    tokenizer: PreTrainedTokenizerFast
    splits: dict[str, Tensor]  # "train", "validation", "test": tokens (n,), int32
    documents: dict[str, int]  # a split's number of documents
    bytes: dict[str, int]  # a split's length as UTF-8 text
    notes: tuple[str, ...]  # what was decided or left out on the way; to be shown once

    @property
    def vocab_size(self) -> int:
        return len(self.tokenizer)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over tokenizer and tokens: only results of equal fingerprints are comparable."""
        digest = hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode())
        for split in SPLITS:
            tokens = self.splits[split].numpy().astype("<i4", copy=False)
            digest.update(f"{split} {len(tokens)}\n".encode())
            digest.update(tokens.tobytes())
        return digest.hexdigest()

    def summary(self) -> dict[str, Any]:
        """Everything but tokens and tokenizer, as JSON."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "vocab_size": self.vocab_size,
            "tokens": {split: len(tokens) for split, tokens in self.splits.items()},
            "documents": self.documents,
            "bytes": self.bytes,
            "notes": list(self.notes),
        }


def load_corpus(
    data: str | None,
    *,
    vocab_size: int,
    tokenizer: str | None = None,
    max_bytes: int | None = None,
    text_field: str | None = None,
    cache: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Corpus:
    """The corpus that `data` names, from the cache where it has been prepared before.

    data: None or "python-stdlib" for the running Python's standard library without its tests;
        a text or JSON-lines file (.gz, .bz2 and .xz too); a folder of them, where files named
        train..., valid... and test... are the splits; or a hub data set, "name" or "name:config".
    vocab_size: of the byte-level BPE that is learned from the training text. It may come out
        smaller; Corpus.vocab_size is what it is.
    tokenizer: a transformers folder or hub model whose tokenizer to take instead.
    max_bytes: of UTF-8 text to read, over all or, where splits are given, for training (the
        others then get a tenth). None means all, and 256 MB for a hub data set.
    text_field: which field of a JSON record or of a hub data set holds the text; "text" or
        "content" if None.
    cache: folder of prepared corpora; None means default_cache().
    progress: is told in a few words, again and again, what is going on.

    Raises UsageError for data that is not there, not text or too little; RunError if the hub
    fails. A cache that cannot be written is only noted: the corpus is prepared each time then.
    """
    progress = progress or (lambda words: None)
    source = find_source(data, text_field=text_field, max_bytes=max_bytes)
    given = load_tokenizer(tokenizer) if tokenizer is not None else None
    made_by = given.backend_tokenizer.to_str() if given is not None else f"bpe {vocab_size}"
    key = hashlib.sha256(f"{FORMAT}\n{source.key}\n{made_by}".encode()).hexdigest()
    folder = (cache or default_cache()) / key[:32]
    corpus = _read(folder, source.name, given)
    if corpus is None:
        corpus = _prepare(source, given, vocab_size, progress)
        try:
            _write(folder, corpus)
        except OSError as error:
            note = (
                f"prepared anew each time, since {folder.parent} cannot be written: "
                f"{error.strerror or error}"
            )
            corpus = replace(corpus, notes=(*corpus.notes, note))
    return corpus


def default_cache() -> Path:
    """$SPECTRAIN_CACHE, or the folder "spectrain" among the user's caches on this platform."""
    if chosen := os.environ.get("SPECTRAIN_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "spectrain"


def _prepare(
    source: Source, given: PreTrainedTokenizerFast | None, vocab_size: int, progress: Progress
) -> Corpus:
    texts, notes = source.read(progress)
    if empty := [split for split in SPLITS if not any(texts[split])]:
        raise UsageError(
            f"{source.name} is too short: nothing is left for {' and '.join(empty)} "
            "(5 % of the text each)"
        )
    sizes = {split: sum(len(text.encode()) for text in texts[split]) for split in SPLITS}
    if given is None:
        progress(f"learning a byte-level BPE of {vocab_size:,} tokens from {source.name}")
        tokenizer = train_bpe(texts["train"], vocab_size)
        if len(tokenizer) < vocab_size:
            notes = [
                *notes,
                f"the text has no more than {len(tokenizer):,} tokens to learn "
                f"({vocab_size:,} were asked for)",
            ]
    else:
        tokenizer = given
    splits = {}
    for split in SPLITS:
        total = sum(map(len, texts[split]))

        def show(done: int, split: str = split, total: int = total) -> None:
            progress(f"tokenizing {source.name}, {split}: {done / total:.0%}")

        splits[split] = tokenize(tokenizer, texts[split], show)
    return Corpus(
        name=source.name,
        tokenizer=tokenizer,
        splits=splits,
        documents={split: len(texts[split]) for split in SPLITS},
        bytes=sizes,
        notes=tuple(notes),
    )


def _write(folder: Path, corpus: Corpus) -> None:
    """Into a temporary folder that takes its name when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix="unfinished-", dir=folder.parent))
    try:
        dtype = torch.uint16 if corpus.vocab_size <= 1 << 16 else torch.int32
        tokens = {split: tensor.to(dtype) for split, tensor in corpus.splits.items()}
        save_file(tokens, temporary / "tokens.safetensors")
        corpus.tokenizer.backend_tokenizer.save(str(temporary / "tokenizer.json"))
        summary = json.dumps(corpus.summary(), indent=2)
        (temporary / "corpus.json").write_text(summary, encoding="utf-8")
        # What is there already did not read, or another process has just finished the same.
        shutil.rmtree(folder, ignore_errors=True)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read(folder: Path, name: str, given: PreTrainedTokenizerFast | None) -> Corpus | None:
    """The corpus in `folder`; None if there is none, or not exactly what was written."""
    try:
        summary = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        tokens = load_file(folder / "tokens.safetensors")
        corpus = Corpus(
            name=name,
            tokenizer=given or _bpe(folder / "tokenizer.json"),
            splits={split: tokens[split].to(torch.int32) for split in SPLITS},
            documents=summary["documents"],
            bytes=summary["bytes"],
            notes=tuple(map(str, summary["notes"])),
        )
        sums_agree = corpus.fingerprint == summary["fingerprint"]
        intact = sums_agree and all(_fits(t, corpus) for t in corpus.splits.values())
    except Exception:  # damage shows in as many ways as there are parsers; the cure is the same
        return None
    return corpus if intact else None


def _fits(tokens: Tensor, corpus: Corpus) -> bool:
    """Whether they are tokens of the corpus's vocabulary: who forges them can forge the sum, too."""
    known = (tokens >= 0) & (tokens < corpus.vocab_size)
    return tokens.dim() == 1 and len(tokens) > 0 and bool(known.all())


def _bpe(file: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(file)),
        eos_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
