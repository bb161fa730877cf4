"""Files that people give: found, decompressed, and taken for text only where they are."""

import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from spectrain.errors import UsageError

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


def suffix(path: Path) -> str:
    """The suffix that says what the file holds, below that of its compression."""
    inner = path.with_suffix("") if path.suffix.lower() in DECOMPRESS else path
    return inner.suffix.lower()


def read_bytes(path: Path) -> bytes:
    """The content of a file, decompressed where its name says so. Raises UsageError if it is damaged."""
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


def decode(path: Path, raw: bytes) -> str:
    """Bytes of `path` as text. Raises UsageError, naming the place, if they are not UTF-8."""
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


def json_lines(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of `text`, one a line, each behind its place in words; empty lines are passed over.

    Raises UsageError, naming the place, for a line that is none.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where} does not parse as JSON: {error}") from error
        if not isinstance(record, dict):
            raise UsageError(
                f"{where} is no JSON object but {type(record).__name__}; one object a line is expected"
            )
        yield where, record


def require_characters(text: str, where: str) -> str:
    """`text` itself. Raises UsageError if it holds what JSON can spell and no text has."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{where} holds half a surrogate pair, which is no character (character "
            f"{error.start:,} of its text)"
        ) from error
    return text
