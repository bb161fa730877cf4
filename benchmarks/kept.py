"""Finished trials of a comparison in one file of this repository, so that another checkout can go on.

Of each trial its settings, its result and the rows of metrics that have scores: what tables and curves are
made of. Models and samples are not kept. Folders are written as <data> and <out>.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spectrain.runs.files import read_json, read_rows, write_atomic
from spectrain.runs.records import read_result


def keep(comparison: Path, file: Path) -> None:
    """Write `file`: a line for each small file of the comparison, with its place and its content."""
    data = read_json(comparison / "config.json")["options"]["data"]
    names = {str(comparison): "<out>", data: "<data>"}
    lines = [_replaced(json.dumps(row), names) + "\n" for row in _rows(comparison)]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, "".join(lines))


def _rows(comparison: Path) -> Iterator[dict[str, Any]]:
    yield {"path": "config.json", "content": read_json(comparison / "config.json")}
    for trial in sorted((comparison / "trials").glob("*")):
        if read_result(trial) is None:
            continue
        rows = read_rows(trial / "metrics.jsonl")
        scored = [
            row for row in rows if any(key.startswith(("validation_", "test_")) for key in row)
        ]
        contents = {
            "config.json": read_json(trial / "config.json"),
            "metrics.jsonl": scored,
            "result.json": read_json(trial / "result.json"),  # last: with it the trial is finished
        }
        for name, content in contents.items():
            yield {"path": f"trials/{trial.name}/{name}", "content": content}


def give_back(file: Path, comparison: Path, data: Path) -> None:
    """Put the kept trials where `comparison` has none of them; nothing if there is no such file."""
    names = {"<out>": str(comparison), "<data>": str(data)}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        row = json.loads(_replaced(line, names))
        path = comparison / row["path"]
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = row["content"] if path.suffix == ".jsonl" else [row["content"]]
        write_atomic(path, "".join(json.dumps(item) + "\n" for item in rows))


def _replaced(text: str, names: Mapping[str, str]) -> str:
    """JSON with folders written otherwise, as JSON writes them."""
    for name, other in names.items():
        text = text.replace(json.dumps(name)[1:-1], json.dumps(other)[1:-1])
    return text
