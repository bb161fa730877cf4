"""One file of text or JSON lines, plain or compressed, as a list of documents."""

import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from spectrain.errors import UsageError

TEXT_FIELDS = ("text", "content")  # where a JSON record's text is looked for unless told otherwise

DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
}


def user_path(name: str) -> Path:
    """The path `name`, "~" resolved. Raises UsageError if there cannot be such a path."""
    try:
        path = Path(name).expanduser()
        path.exists()  # refuses what is too long, or lies in a folder that may not be read
    except (RuntimeError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{name!r} cannot be looked for as a path: {reason}") from None
    return path


def read_documents(path: Path, text_field: str | None = None) -> list[str]:
    """The documents of one file: a text file is one, a JSON-lines file one a line; none if empty.

    Raises UsageError, naming the file and the place in it, for what is not UTF-8 text, is damaged,
    or has a line that is no JSON object with a text in it.
    """
    text = _decode(path, _read(path))
    if _suffix(path) in (".json", ".jsonl"):
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


def _suffix(path: Path) -> str:
    """The suffix that says what the file holds, below that of its compression."""
    inner = path.with_suffix("") if path.suffix.lower() in DECOMPRESS else path
    return inner.suffix.lower()


def _read(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    decompress = DECOMPRESS.get(path.suffix.lower())
    if decompress is None:
        return raw
    try:
        return decompress(raw)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise UsageError(
            f"{path} is no intact {path.suffix} file ({error}): fetch or compress it again"
        ) from error


def _decode(path: Path, raw: bytes) -> str:
    try:
        # A zero byte is valid UTF-8 and yet never part of a text: it betrays a binary file.
        if (zero := raw.find(b"\0")) >= 0:
            raise UnicodeDecodeError("utf-8", raw, zero, zero + 1, "zero byte")
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start:,}): "
            "convert it, or leave it out of the data"
        ) from error


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
