"""Parallel text in its splits, from whatever form it is given in."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectrain.errors import UsageError
from spectrain.tasks.reading import DECOMPRESS, decode, read_bytes, suffix, user_path
from spectrain.tasks.translate.builtin import numerals
from spectrain.tasks.translate.options import TranslateOptions

# Texts in the source language, and what they are in the target's.
Pairs = tuple[list[str], list[str]]
VALIDATION = ("val", "valid", "validation", "dev")  # how files of that split may be called
MOST_DIVIDED = 1000  # pairs for validation, and as many for test, where data have no splits


@dataclass(frozen=True)
class Corpus:
    """Lines that translate each other, split by split."""

    name: str
    source: str
    target: str
    splits: dict[str, Pairs]  # "train", "validation", "test"
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Changes with any text in any split."""
        digest = hashlib.sha256()
        for split, sides in self.splits.items():
            for texts in ([split], *sides):
                digest.update(json.dumps(texts).encode())
        return digest.hexdigest()

    def summary(self) -> dict[str, Any]:
        pairs = {split: len(sides[0]) for split, sides in self.splits.items()}
        return {
            "name": self.name,
            "languages": f"{self.source}-{self.target}",
            "pairs": pairs,
            "notes": list(self.notes),
        }


def load_corpus(options: TranslateOptions) -> Corpus:
    """The parallel text that the options name.

    Pairs with an empty side are left out of training and validation. Raises UsageError, naming file and
    cure, for files that are missing, damaged or of unequal length.
    """
    o = options
    notes: list[str] = []
    if o.data is None:
        found, name = numerals(o.source, o.target), "numerals"
    else:
        path = user_path(o.data)
        name = path.name.split(".")[0]
        if path.is_dir():
            found = _folder(path, o, notes)
        else:
            if o.test_set is not None:
                raise UsageError(f"--test-set {o.test_set}: {path} is no folder of splits")
            found = _divided(_one(path, o), o.split_seed, path, notes)
    splits = {split: _cleaned(split, pairs, o, notes) for split, pairs in found.items()}
    for split, (texts, _) in splits.items():
        if not texts:
            raise UsageError(f"{o.data}: its {split} split holds no pair of texts")
    return Corpus(name, o.source, o.target, splits, tuple(notes))


def prepared(text: str, lowercase: bool) -> str:
    """A text as it is learned from and translated: one line, without white space around."""
    text = " ".join(text.splitlines()).strip()
    return text.lower() if lowercase else text


def _cleaned(split: str, pairs: Pairs, o: TranslateOptions, notes: list[str]) -> Pairs:
    """Prepared; in training and validation without pairs that have an empty side."""
    sides = [[prepared(text, o.lowercase) for text in texts] for texts in pairs]
    if split != "test":
        whole = [(a, b) for a, b in zip(*sides, strict=True) if a and b]
        if left := len(sides[0]) - len(whole):
            notes.append(f"{left:,} pairs of {split} have an empty side and are left out")
        sides = [[a for a, _ in whole], [b for _, b in whole]]
    return sides[0], sides[1]


def _folder(folder: Path, o: TranslateOptions, notes: list[str]) -> dict[str, Pairs]:
    sides: list[dict[str, Path]] = [_files(folder, language) for language in (o.source, o.target)]
    names = [name for name in sides[0] if name in sides[1]]
    if "train" not in names:
        there = ", ".join(sorted({name for side in sides for name in side})) or "nothing"
        raise UsageError(
            f"{folder} has no train.{o.source} beside train.{o.target} (.gz, .bz2, .xz allowed); its "
            f"files are for {there}: check --source and --target"
        )
    tests = sorted(name for name in names if name.startswith("test"))
    if o.test_set is not None and o.test_set not in names:
        raise UsageError(
            f"--test-set {o.test_set}: {folder} has {', '.join(tests) or 'no test files'} in both languages"
        )
    test = o.test_set or ("test" if "test" in tests else next(iter(tests), None))
    validation = next((name for name in VALIDATION if name in names), None)
    chosen = {"train": "train", "validation": validation, "test": test}
    found = {s: _lines(sides[0][n], sides[1][n]) for s, n in chosen.items() if n is not None}
    if missing := [split for split in chosen if split not in found]:
        parts = _divided(found["train"], o.split_seed, folder / "train", notes, missing)
        found |= parts
    if test is not None and test != "test":
        notes.append(f"test data: {test}")
    return {split: found[split] for split in chosen}


def _files(folder: Path, language: str) -> dict[str, Path]:
    """The files of a language in a folder, by the name before it: train of train.de.gz."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        inner = path.with_suffix("") if path.suffix.lower() in DECOMPRESS else path
        if inner.suffix == f".{language}" and path.is_file():
            found.setdefault(inner.stem, path)  # the plain file before a compressed one
    return found


def _one(path: Path, o: TranslateOptions) -> Pairs:
    """Pairs without splits: one file of both languages, or two that share a name."""
    if path.is_file():
        kind = suffix(path)
        text = decode(path, read_bytes(path))
        if kind == ".tsv":
            return _columns(path, text)
        if kind in (".jsonl", ".json"):
            return _records(path, text, o)
        raise UsageError(
            f"{path} is one file, and neither .tsv nor .jsonl: give those, a folder, or the common part "
            f"of two names, as corpus for corpus.{o.source} and corpus.{o.target}"
        )
    sides = [_beside(path, language) for language in (o.source, o.target)]
    return _lines(sides[0], sides[1])


def _beside(path: Path, language: str) -> Path:
    candidates = [path.with_name(f"{path.name}.{language}{end}") for end in ("", *DECOMPRESS)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise UsageError(f"there is neither {path} nor {candidates[0]} to read parallel text from")


def _lines(first: Path, second: Path) -> Pairs:
    texts = [decode(path, read_bytes(path)).split("\n") for path in (first, second)]
    a, b = ([line.rstrip("\r") for line in lines] for lines in texts)
    for lines in (a, b):
        if lines and not lines[-1]:
            lines.pop()
    if len(a) != len(b):
        raise UsageError(
            f"{first} has {len(a):,} lines and {second} {len(b):,}; line i of one must translate line i of "
            "the other"
        )
    return a, b


def _columns(path: Path, text: str) -> Pairs:
    pairs: Pairs = ([], [])
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        columns = line.rstrip("\r").split("\t")
        if len(columns) != 2:
            raise UsageError(
                f"{path} line {number} has {len(columns)} columns; two are expected, the source text and "
                "its translation with a tab between them"
            )
        for side, column in zip(pairs, columns, strict=True):
            side.append(column)
    return pairs


def _records(path: Path, text: str, o: TranslateOptions) -> Pairs:
    pairs: Pairs = ([], [])
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path} line {number} does not parse as JSON: {error}") from None
        if isinstance(record, dict) and isinstance(record.get("translation"), dict):
            record = record["translation"]  # as data sets of the hub have it
        for side, language in zip(pairs, (o.source, o.target), strict=True):
            found = record.get(language) if isinstance(record, dict) else None
            if not isinstance(found, str):
                raise UsageError(
                    f"{path} line {number} has no text under {language!r}: each line must be an object "
                    f'as {{"{o.source}": "…", "{o.target}": "…"}}'
                )
            side.append(found)
    return pairs


def _divided(
    pairs: Pairs,
    seed: int,
    path: Path,
    notes: list[str],
    parts: Iterable[str] = ("validation", "test"),
) -> dict[str, Pairs]:
    """The same with `parts` divided off, drawn at random, each a twentieth and at most `MOST_DIVIDED`."""
    total, parts = len(pairs[0]), list(parts)
    size = min(MOST_DIVIDED, total // 20)
    if size < 1:
        raise UsageError(
            f"{path} has {total} pairs, too few to divide some off for {' and '.join(parts)}; give at "
            "least 20, or files for each split"
        )
    order = random.Random(seed).sample(range(total), size * len(parts))
    taken = {part: order[i * size : (i + 1) * size] for i, part in enumerate(parts)}
    gone, known = set(order), {pairs[0][i] for i in order}
    left = [i for i in range(total) if i not in gone]
    rest = [i for i in left if pairs[0][i] not in known]
    if not rest:
        raise UsageError(f"{path} repeats too few texts too often to divide some off; give more")
    repeated = len(left) - len(rest)
    also = f"; {repeated:,} pairs with the same source text are left out" if repeated else ""
    notes.append(
        f"{' and '.join(parts)}: {size:,} pairs each, divided off the data at random{also}"
    )
    chosen = {"train": rest, **taken}
    return {
        split: ([pairs[0][i] for i in rows], [pairs[1][i] for i in rows])
        for split, rows in chosen.items()
    }
