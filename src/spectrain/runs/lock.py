"""One process at a time works in a directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from spectrain.errors import RunError, UsageError
from spectrain.runs.directory import LOCK, make_folder, refuse_foreign
from spectrain.runs.files import CURE, remove_left_overs


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold `directory`, made if it is missing, as the place of a run or comparison.

    The lock is the operating system's: it goes when the process ends, however it ends. Its file
    stays, since to delete it would let two processes lock two files of one name. What a process left
    in `directory` that was killed while it wrote is cleared.

    Raises UsageError at once if another process holds it or if it is the home of something else,
    RunError if the file system refuses.
    """
    make_folder(directory)
    if not (directory / "config.json").exists():
        refuse_foreign(directory)
    lock = FileLock(directory / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"--out {directory} is in use: another process works there; wait for its end, or choose "
            "another --out"
        ) from None
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"could not write {directory / LOCK}: {reason}; {CURE}") from None
    try:
        remove_left_overs(directory)
        yield
    finally:
        lock.release()
