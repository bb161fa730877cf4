"""Everything that goes over the network: hub data sets, and folders of hub models.

Nothing that is fetched is executed or unpickled: data sets only in the formats of plain data,
models only as safetensors.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from spectrain.errors import RunError, UsageError
from spectrain.tasks.lm.files import text_of
from spectrain.tasks.lm.splits import SPLITS, Splits, by_position, split_named, take

MAX_BYTES = 256_000_000  # of text from a hub data set, unless told otherwise

_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_PLAIN_DATA = {"arrow", "csv", "json", "parquet", "text"}


def could_be_hub_name(name: str) -> bool:
    """Whether the hub could have this name: "name" or "organisation/name"."""
    return _NAME.fullmatch(name) is not None


def stream_text(
    name: str, *, max_bytes: int | None, text_field: str | None, progress: Callable[[str], None]
) -> tuple[Splits, list[str]]:
    """The text of hub data set "name" or "name:config", and what there is to say about it.

    At most `max_bytes` of UTF-8 text are read from its training split and a tenth of that from
    each other; what it does not hold out itself is cut from the end of the training text.
    """
    limit = MAX_BYTES if max_bytes is None else max_bytes
    repository, _, config = name.partition(":")
    if (reason := _unreachable(repository, "dataset")) is not None:
        raise RunError(
            f"there is no file or folder {name!r}, and no hub data set by that name could be "
            f"reached ({reason}): check the name, or the connection"
        )
    streams = _open(repository, config)
    splits: Splits = {}
    for stream_name, stream in streams.items():
        split = split_named(stream_name)
        if split is not None and split not in splits:
            bound = limit if split == "train" else limit // 10
            records = _records(stream, name, text_field, bound, progress)
            splits[split] = list(take(records, bound))
    if not splits.get("train"):
        raise UsageError(
            f"hub data set {name!r} has no text to train on; its splits are {', '.join(streams)}"
        )
    notes = [f"at most {limit / 1e6:,.0f} MB of the hub data set's text are read (--max-bytes)"]
    if missing := [split for split in SPLITS if split not in splits]:
        splits |= by_position(splits["train"], missing)
        notes.append(f"no {' or '.join(missing)} split: cut from the end of the training text")
    return splits, notes


def model_folder(name: str) -> Path:
    """The local copy of a hub model's configuration, tokenizer and safetensors weights.

    Fetched if need be; without a connection, what an earlier run fetched is used.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    reason = _unreachable(name, "model")
    try:
        folder = snapshot_download(
            name,
            allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"],
            ignore_patterns=["*/*", "consolidated*"],  # the same weights again in other layouts
            local_files_only=reason is not None,
        )
    except LocalEntryNotFoundError as error:
        raise RunError(
            f"there is no folder {name!r}, and no hub model by that name could be reached "
            f"({reason or _first_line(error)}): check the name, or the connection"
        ) from error
    except Exception as error:  # the hub's client has no common base class for its failures
        raise RunError(f"fetching hub model {name!r} failed: {_first_line(error)}") from error
    return Path(folder)


def _unreachable(name: str, kind: Literal["dataset", "model"]) -> str | None:
    """Why the hub cannot be asked for `name` now; UsageError if it says there is no such thing.

    Asked first because the hub's clients repeat a failing request for a minute, and say so
    on every attempt.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    what = {"dataset": "data set", "model": "model"}[kind]
    try:
        HfApi().repo_info(name, repo_type=kind, timeout=10)
    except GatedRepoError as error:
        raise UsageError(
            f"hub {what} {name!r} is only for those it has admitted: accept its terms on the hub "
            "and log in"
        ) from error
    except RepositoryNotFoundError as error:
        raise UsageError(
            f"there is no file or folder {name!r}, and no public hub {what} by that name"
        ) from error
    except OfflineModeIsEnabled:
        return "offline mode is on"
    except Exception as error:  # whatever the connection, a proxy or the client came up with
        return _first_line(error)
    return None


def _open(repository: str, config: str) -> dict[str, Any]:
    import datasets

    try:
        streams = datasets.load_dataset(repository, config or None, streaming=True)
    except ValueError as error:  # an unknown configuration, or none where there are several
        raise UsageError(f"hub data set {repository!r}: {_first_line(error)}") from error
    except Exception as error:
        raise RunError(f"opening hub data set {repository!r} failed: {error}") from error
    for stream in streams.values():
        if stream.info.builder_name not in _PLAIN_DATA:
            raise UsageError(
                f"hub data set {repository!r} is stored as {stream.info.builder_name}; "
                f"spectrain reads {', '.join(sorted(_PLAIN_DATA))}"
            )
    return dict(streams)


def _records(
    stream: Any, name: str, text_field: str | None, limit: int, progress: Callable[[str], None]
) -> Iterator[str]:
    read, said = 0, 0
    records = iter(stream)
    while True:
        try:
            record = next(records, None)
        except Exception as error:
            raise RunError(
                f"reading hub data set {name!r} failed after {read / 1e6:.1f} MB of text: "
                f"{_first_line(error)}"
            ) from error
        if record is None:
            return
        text = text_of(record, text_field, f"hub data set {name!r}")
        read += len(text)
        if read - said >= 10_000_000:
            progress(f"reading {name}: {read / 1e6:,.0f} of at most {limit / 1e6:,.0f} MB")
            said = read
        yield text


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
