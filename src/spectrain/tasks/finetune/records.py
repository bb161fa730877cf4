"""The records of files that people give, and their division into training, validation and test."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from spectrain.errors import UsageError
from spectrain.tasks.lm.splits import SPLITS, split_named
from spectrain.tasks.reading import (
    decode,
    json_lines,
    read_bytes,
    require_characters,
    suffix,
    user_path,
)

COLA = ("source", "label", "mark", "text")  # the columns of its files, which have no header
LABELS = ("label", "class", "sentiment")
FORMS = ".jsonl or .json (an object a line), .tsv, .csv or .txt (a label and a text a line)"
T = TypeVar("T")


class Record(NamedTuple):
    """What one line says."""

    where: str  # file and line, as sentences begin
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Records:
    """All that was read."""

    name: str
    parts: dict[str, list[Record]]  # by split, "train" in any case
    notes: tuple[str, ...] = ()


def read_data(data: str) -> Records:
    """The records of a file or of the files in a folder.

    Of a folder whose files' names tell splits ("dev.jsonl", "in_domain_train.tsv") those are taken; else
    all of its files are for training. Raises UsageError, naming file and line, for what is not there,
    of no known form or damaged.
    """
    path = user_path(data)
    if path.is_file():
        return Records(path.name, {"train": _filled(path, read_records(path))})
    if not path.is_dir():
        raise UsageError(f"--data: there is no file or folder {data!r}")
    files = sorted(f for f in path.iterdir() if f.is_file() and not f.name.startswith("."))
    named = {file: _split_of(file.name) for file in files}
    notes = []
    if "train" in named.values():
        if ignored := [file.name for file, split in named.items() if split is None]:
            notes.append(f"left out, since not named after a split: {', '.join(ignored[:3])}")
    else:
        named = dict.fromkeys(files, "train")
    parts: dict[str, list[Record]] = {}
    for file, split in named.items():
        if split is not None:
            parts.setdefault(split, []).extend(read_records(file))
    if "train" not in parts:
        raise UsageError(f"--data {data} holds no files")
    _filled(path, parts["train"])
    kept = {split: records for split, records in parts.items() if records}
    return Records(path.resolve().name, kept, tuple(notes))


def read_records(path: Path) -> list[Record]:
    """The records of one file, by its suffix. Raises UsageError for a form that is not known."""
    kind = suffix(path)
    if kind not in (".jsonl", ".json", ".tsv", ".csv", ".txt"):
        raise UsageError(f"{path} is of no known form: give {FORMS}, compressed or not")
    text = decode(path, read_bytes(path))
    if kind in (".jsonl", ".json"):
        return [Record(where, fields) for where, fields in json_lines(path, text)]
    if kind == ".txt":
        return list(_lines(path, text))
    return list(_table(path, text, kind))


def text_of(record: Record, candidates: Sequence[str], flag: str) -> tuple[str, str]:
    """The first of the candidates that the record has: its name and its text.

    Raises UsageError, naming the flag to choose by, if it has none of them, or no text there.
    """
    name = next((c for c in candidates if c in record.fields), None)
    if name is None:
        names = ", ".join(map(str, record.fields)) or "none"
        raise UsageError(
            f"{record.where} has no field {' or '.join(candidates)}; its fields are {names[:200]}: say "
            f"which one by {flag}"
        )
    value = record.fields[name]
    if not isinstance(value, str):
        raise UsageError(
            f"{record.where}: the field {name} holds no text but {type(value).__name__}"
        )
    return name, require_characters(value, record.where)


def divide(
    parts: Mapping[str, Sequence[T]], validation: float, test: float, seed: int
) -> dict[str, list[T]]:
    """All three splits; those that are missing get their share of the training examples, drawn by `seed`.

    Raises UsageError if one of them comes out empty.
    """
    shares = {"validation": validation, "test": test}
    wanted = {split: share for split, share in shares.items() if split not in parts}
    found = {split: list(part) for split, part in parts.items()}
    if wanted:
        train = found["train"]
        rest = np.random.default_rng(seed).permutation(len(train)).tolist()
        for split, share in wanted.items():
            count = round(share * len(train))
            found[split], rest = [train[i] for i in rest[:count]], rest[count:]
        found["train"] = [train[i] for i in sorted(rest)]
    if empty := [split for split in SPLITS if not found[split]]:
        raise UsageError(
            f"there are too few examples to divide: none is left for {empty[0]}; give more data, or other "
            "shares (--validation, --test)"
        )
    return {split: found[split] for split in SPLITS}


def _filled(path: Path, records: list[Record]) -> list[Record]:
    if not records:
        raise UsageError(f"{path} holds no examples to train on")
    return records


def _split_of(name: str) -> str | None:
    """The split that a word of the name tells: "train" of "in_domain_train.tsv.gz"."""
    return next(filter(None, map(split_named, re.split(r"[_.\-]+", name))), None)


def _lines(path: Path, text: str) -> Iterator[Record]:
    """Lines of a label, a space or tab, and a text, as SST-2's."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            label, _, rest = line.replace("\t", " ", 1).partition(" ")
            yield Record(f"{path} line {number}", {"label": label, "text": rest.strip()})


def _table(path: Path, text: str, kind: str) -> Iterator[Record]:
    """Rows under a header; or CoLA's, which have none. Only .csv has quotes that mean something."""
    lines = text.replace("\r\n", "\n").split("\n")
    form: dict[str, Any] = {}
    if kind != ".csv":
        form = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    rows = csv.reader((f"{line}\n" for line in lines), strict=True, **form)
    header: Sequence[str] | None = None
    try:
        for row in rows:
            where = f"{path} line {rows.line_num}"
            if header is None and len(row) == len(COLA) and row[1] in ("0", "1"):
                header = COLA
            elif header is None:
                header = [name.strip() for name in row]
                continue
            if not any(row):
                continue
            if len(row) != len(header):
                raise UsageError(f"{where} has {len(row)} columns, and the header {len(header)}")
            yield Record(where, dict(zip(header, row, strict=True)))
    except csv.Error as error:
        raise UsageError(f"{path} line {rows.line_num} is no row of a table: {error}") from None
