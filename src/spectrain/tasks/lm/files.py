"""One file of text or JSON lines, plain or compressed, as a list of documents."""

import json
from collections.abc import Mapping
from pathlib import Path

from spectrain.errors import UsageError
from spectrain.tasks.reading import decode, read_bytes, suffix

TEXT_FIELDS = ("text", "content")  # where a JSON record's text is looked for unless told otherwise


def read_documents(path: Path, text_field: str | None = None) -> list[str]:
    """The documents of one file: a text file is one, a JSON-lines file one a line; none if empty.

    Raises UsageError, naming the file and the place in it, for what is not UTF-8 text, is damaged,
    or has a line that is no JSON object with a text in it.
    """
    text = decode(path, read_bytes(path))
    if suffix(path) in (".json", ".jsonl"):
        documents = [
            _parse(line, text_field, f"{path} line {number}")
            for number, line in enumerate(text.split("\n"), start=1)
            if line.strip()
        ]
        return [document for document in documents if document]
    return [text] if text.strip() else []


def text_of(record: Mapping[str, object], text_field: str | None, where: str) -> str:
    """The text of one record; `where` begins the sentence of the UsageError if it has none."""
    candidates = (text_field,) if text_field is not None else TEXT_FIELDS
    field = next((name for name in candidates if name in record), None)
    if field is None:
        wanted = " or ".join(f'"{name}"' for name in candidates)
        names = ", ".join(sorted(record)) or "none"
        names = names if len(names) <= 200 else f"{names[:200]}…"
        raise UsageError(
            f"{where} has no field {wanted}; its fields are {names}: "
            "say which one holds the text (--text-field)"
        )
    text = record[field]
    if not isinstance(text, str):
        raise UsageError(f'{where}: the field "{field}" holds no text but {type(text).__name__}')
    return text


def _parse(line: str, text_field: str | None, where: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} does not parse as JSON: {error}") from error
    if not isinstance(record, dict):
        raise UsageError(
            f"{where} is no JSON object but {type(record).__name__}; one object a line is expected"
        )
    text = text_of(record, text_field, where)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{where} holds half a surrogate pair, which is no character (character "
            f"{error.start:,} of its text)"
        ) from error
    return text
