"""How the files of a run are written (whole or not at all) and read (as far as they go)."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from spectrain.errors import RunError

CURE = "free some space or make the folder writable, then start again with the same command"
TEMPORARY = ".partial"  # how the name of a file ends that is not whole yet


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write ``content`` (text as UTF-8) so that ``path`` holds all of it or what it held before.

    A process killed meanwhile leaves a file `.NAME.*.partial`, which `remove_left_overs` finds.

    Raises RunError if the file system refuses, for example because the disk is full.
    """
    data = content.encode(errors="replace") if isinstance(content, str) else content
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(TEMPORARY, f".{path.name}.", path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"could not write {path}: {error.strerror or error}; {CURE}") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into that becomes `out`, which is empty or not there, if nothing is raised within.

    Raises RunError if the file system refuses.
    """
    out = out.resolve()
    partial = out.with_name(f".partial-{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if out.exists():
            out.rmdir()
        os.replace(partial, out)
    except (OSError, SafetensorError) as error:
        raise RunError(f"could not write {out}: {str(error).splitlines()[0]}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_left_overs(directory: Path) -> None:
    """Delete what `write_atomic` left in `directory` when a process was killed within it."""
    for path in directory.glob(f".*{TEMPORARY}"):
        if path.is_file():
            path.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically; what JSON cannot hold becomes its text."""
    write_atomic(path, json.dumps(content, indent=2, default=str) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None if there is no such file.

    Raises RunError if the file cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"could not read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged (it is not JSON): delete or restore it") from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none if there is no file, without a half-written last line."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"could not read {path}: {error.strerror or error}") from error
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if isinstance(row, dict):
            rows.append(row)
    return rows
