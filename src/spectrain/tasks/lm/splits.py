"""Text into train, validation and test: by the names of files, by file, or by position."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

SPLITS = ("train", "validation", "test")
HELD_OUT = 0.05  # the share of the text that goes to validation, and again to test

Splits = dict[str, list[str]]  # for each of SPLITS its documents

_NAMES = {
    "train": "train",
    "training": "train",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
_BEGINNING = re.compile(rf"({'|'.join(_NAMES)})(?![a-z])", re.IGNORECASE)


def split_named(name: str) -> str | None:
    """The split a name such as "dev-00001.txt" or "test/a.txt" begins with, if any."""
    for part in PurePosixPath(name).parts:
        if match := _BEGINNING.match(part):
            return _NAMES[match[1].lower()]
    return None


def by_file(files: dict[str, list[str]]) -> Splits:
    """Whole files to splits, by a hash of their names.

    A file's split depends on nothing but its own name, so that it stays where it is when other
    files come and go. With few files a split may stay empty.
    """
    splits: Splits = {split: [] for split in SPLITS}
    for name, documents in files.items():
        place = (
            int.from_bytes(
                hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8], "big"
            )
            / 2**64
        )
        held_out = "test" if place < HELD_OUT else "validation" if place < 2 * HELD_OUT else "train"
        splits[held_out] += documents
    return splits


def by_position(documents: Sequence[str], held_out: Sequence[str] = SPLITS[1:]) -> Splits:
    """The end of the text to the splits in `held_out`, in their order, and the rest to train.

    Cut at the end of a document, or of a line where the document is more than a hundredth of
    the text.
    """
    splits: Splits = {}
    rest = list(documents)
    total = sum(map(len, rest))
    for index, split in enumerate(("train", *held_out)):
        left = len(held_out) - index
        splits[split], rest = _cut(rest, sum(map(len, rest)) - left * HELD_OUT * total, total)
    return splits


def _cut(documents: list[str], position: float, total: int) -> tuple[list[str], list[str]]:
    """Documents before and after the first good place at or behind `position` (characters)."""
    start = 0
    for index, document in enumerate(documents):
        if start + len(document) >= position:
            cut = len(document)
            if len(document) > total / 100:
                line_end = document.find("\n", max(int(position - start) - 1, 0))
                cut = line_end + 1 if line_end >= 0 else int(position - start)
            before, after = document[:cut], document[cut:]
            return (
                [*documents[:index], *filter(None, [before])],
                [*filter(None, [after]), *documents[index + 1 :]],
            )
        start += len(document)
    return documents, []


def take(documents: Iterable[str], max_bytes: int | None) -> Iterator[str]:
    """Documents until `max_bytes` of UTF-8 text are reached; the last one may be cut short."""
    left = max_bytes
    for document in documents:
        if left is None:
            yield document
            continue
        encoded = document.encode()
        yield document if len(encoded) <= left else encoded[:left].decode(errors="ignore")
        left -= len(encoded)
        if left <= 0:
            return
