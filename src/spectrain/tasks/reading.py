"""Files that people give: found, decompressed, and taken for text only where they are."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path

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
