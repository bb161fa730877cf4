"""One file of text or JSON lines, plain or compressed, as a list of documents."""

from collections.abc import Mapping
from pathlib import Path

from spectrain.errors import UsageError
from spectrain.tasks.reading import decode, json_lines, read_bytes, require_characters, suffix

TEXT_FIELDS = ("text", "content")  # where a JSON record's text is looked for unless told otherwise


def read_documents(path: Path, text_field: str | None = None) -> list[str]:
    """The documents of one file: a text file is one, a JSON-lines file one a line; none if empty.

    Raises UsageError, naming the file and the place in it, for what is not UTF-8 text, is damaged,
    or has a line that is no JSON object with a text in it.
    """
    text = decode(path, read_bytes(path))
    if suffix(path) in (".json", ".jsonl"):
        documents = [
            require_characters(text_of(record, text_field, where), where)
            for where, record in json_lines(path, text)
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
