"""Where text comes from: the standard library's sources, a file, a folder or a hub data set."""

import difflib
import hashlib
import json
import os
import platform
import stat
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from spectrain.errors import UsageError
from spectrain.tasks.lm import hub
from spectrain.tasks.lm.files import read_documents
from spectrain.tasks.lm.splits import SPLITS, Splits, by_file, by_position, split_named, take
from spectrain.tasks.reading import DECOMPRESS, user_path

DEFAULT = "python-stdlib"  # how the corpus that needs no download is called

Progress = Callable[[str], None]
Text = tuple[Splits, list[str]]  # the documents of each split, and what there is to say about them


@dataclass(frozen=True)
class Source:
    """A text that was found but not yet read."""

    name: str  # for people
    key: str  # sha256; sources with equal keys hold equal text
    read: Callable[[Progress], Text]


def find_source(
    data: str | None, *, text_field: str | None = None, max_bytes: int | None = None
) -> Source:
    """The source that `data` names; None and "python-stdlib" mean the standard library.

    Raises UsageError if there is no such file and the name could not be a hub data set's.
    """
    if max_bytes is not None and max_bytes < 1:
        raise UsageError(f"max_bytes is {max_bytes}; it must be at least 1")
    if data is None or (data == DEFAULT and not Path(data).exists()):
        return _standard_library(max_bytes)
    path = user_path(data)
    if path.exists():
        name = path.resolve().name
        return _local(name, path, text_field, max_bytes)
    repository = data.partition(":")[0]
    if hub.could_be_hub_name(repository) and not _looks_like_a_file(path):
        read = partial(hub.stream_text, data, max_bytes=max_bytes, text_field=text_field)
        return Source(
            data, _key("hub", data, text_field, max_bytes), lambda progress: read(progress=progress)
        )
    raise UsageError(f"there is no file or folder {data!r}{_near(path)}")


def _standard_library(max_bytes: int | None) -> Source:
    name = f"{DEFAULT} {platform.python_version()}"
    root = Path(sysconfig.get_path("stdlib"))
    files = _list(root, skip=_not_ours)
    if not files:
        raise UsageError(
            "this Python comes without the source files of its standard library: "
            "name another text (--data)"
        )

    def read(progress: Progress) -> Text:
        progress(f"reading {len(files):,} files of {name}")
        # Windows installs the same sources with other line ends.
        documents = {
            file: [text.replace("\r\n", "\n") for text in read_documents(root / file)]
            for file in files
        }
        return _split(documents, max_bytes)

    return Source(name, _key("files", _contents(root, files), None, max_bytes), read)


def _not_ours(part: str) -> bool:
    """What is no part of the standard library as such, or its tests, which repeat themselves.

    Left out as well: the build's configuration, which differs from machine to machine, and the
    generated documentation of pydoc, one file of prose that would be most of a held-out part.
    """
    other = part in ("test", "tests", "idle_test", "pydoc_data")
    foreign = part in ("site-packages", "dist-packages", "sitecustomize.py", "usercustomize.py")
    build = part.startswith(("config-", "_sysconfigdata"))
    is_file = "." in part and not build
    return other or foreign or build or (is_file and not part.endswith(".py"))


def _local(name: str, path: Path, text_field: str | None, max_bytes: int | None) -> Source:
    root, files = (path, _list(path)) if path.is_dir() else (path.parent, [path.name])
    splits = {file: split_named(file) for file in files}
    named = path.is_dir() and "train" in splits.values()

    def read(progress: Progress) -> Text:
        wanted = [file for file in files if splits[file]] if named else files
        documents: dict[str, list[str]] = {}
        for index, file in enumerate(wanted, start=1):
            progress(f"reading {name}: file {index:,} of {len(wanted):,}")
            documents[file] = read_documents(root / file, text_field)
        if not any(documents.values()):
            raise UsageError(f"{path} holds no text")
        if not named:
            return _split(documents, max_bytes)
        ignored = [file for file in files if not splits[file]]
        return _named_splits(documents, splits, ignored, max_bytes)

    return Source(name, _key("files", _contents(root, files), text_field, max_bytes), read)


def _named_splits(
    documents: dict[str, list[str]],
    split_of: dict[str, str | None],
    ignored: list[str],
    max_bytes: int | None,
) -> Text:
    splits: Splits = {}
    for split in SPLITS:
        bound = max_bytes if max_bytes is None or split == "train" else max_bytes // 10
        texts = [text for file in documents if split_of[file] == split for text in documents[file]]
        splits[split] = list(take(texts, bound))
    notes = []
    if ignored:
        shown = ", ".join(ignored[:3]) + (
            f" and {len(ignored) - 3} more" if len(ignored) > 3 else ""
        )
        notes.append(f"left out, since not named after a split: {shown}")
    if missing := [split for split in SPLITS if not splits[split]]:
        if "train" in missing:
            raise UsageError("the files named train hold no text")
        splits |= by_position(splits["train"], missing)
        notes.append(f"no {' or '.join(missing)} file: cut from the end of the training text")
    return splits, notes


def _split(files: dict[str, list[str]], max_bytes: int | None) -> Text:
    """Split by file; by position where there are too few files for that."""
    left = max_bytes
    kept: dict[str, list[str]] = {}
    for name, documents in files.items():
        if left is not None and left <= 0:
            break
        kept[name] = list(take(documents, left))
        if left is not None:
            left -= sum(len(document.encode()) for document in kept[name])
    splits = by_file(kept)
    if all(splits.values()):
        return splits, []
    documents = [document for part in kept.values() for document in part]
    return by_position(documents), ["split by position: 90 % train, 5 % validation, 5 % test"]


def _list(root: Path, skip: Callable[[str], bool] = lambda part: False) -> list[str]:
    """The files under `root`, sorted, as relative paths with "/"; hidden ones are passed over."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not (_hidden(name) or skip(name))]
        found += [Path(folder, name) for name in files if not (_hidden(name) or skip(name))]
    return sorted(path.relative_to(root).as_posix() for path in found)


def _hidden(part: str) -> bool:
    return part.startswith(".") or part == "__pycache__"


def _contents(root: Path, files: list[str]) -> list[list[str]]:
    """Name and sha256 of each file as it lies on disk."""
    contents = []
    for file in files:
        try:
            if not stat.S_ISREG((root / file).stat().st_mode):  # a pipe or a device has no end
                raise UsageError(f"{root / file} is no ordinary file: leave it out of the data")
            with open(root / file, "rb") as stream:
                contents.append([file, hashlib.file_digest(stream, "sha256").hexdigest()])
        except OSError as error:
            raise UsageError(f"{root / file} cannot be read: {error.strerror or error}") from error
    return contents


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _looks_like_a_file(path: Path) -> bool:
    known = {".txt", ".md", ".py", ".json", ".jsonl", ".csv", ".tsv", *DECOMPRESS}
    return path.suffix.lower() in known


def _near(path: Path) -> str:
    """ "; did you mean ..." where the folder holds something of a similar name."""
    if not path.parent.is_dir():
        return f": there is not even a folder {str(path.parent)!r}"
    near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1)
    return f": did you mean {str(path.parent / near[0])!r}?" if near else ""
