"""The sections of a single run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spectrain.runs.curves import column
from spectrain.runs.files import read_rows
from spectrain.runs.records import read_config, read_result
from spectrain.runs.report import factors
from spectrain.runs.report.bars import bars_of, stacked
from spectrain.runs.report.dynamics import Dynamics
from spectrain.runs.report.exhibits import exhibits
from spectrain.runs.report.lines import Line, curves, ends_of_spectra
from spectrain.runs.report.page import (
    Section,
    definitions,
    details,
    folded,
    grid,
    paragraph,
    preformatted,
)
from spectrain.runs.report.run_summary import run_summary
from spectrain.runs.scores import scores_from_json

# Options that say most of what was asked; the others are folded away.
ASKED = ("model", "recipe", "data", "steps", "batch_size", "sequence_length", "optimizer", "dtype")


def sections_of_run(directory: Path) -> tuple[str, list[Section]]:
    """(title, sections) of a run, finished or not. Raises RunError if its files are damaged."""
    config = read_config(directory) or {}
    scores = scores_from_json(config)
    result = read_result(directory)
    line = Line("this run", 0, (directory,))
    figures = grid(curves([line], scores))
    name = (config.get("method") or {}).get("name") or "a model"
    return f"Training with {name}: {directory.resolve().name}", [
        Section("asked", "What was asked", asked(config)),
        Section("summary", "Summary", definitions(run_summary(directory, result, scores))),
        Section("curves", "Curves", figures or paragraph("Nothing recorded yet.")),
        *instruments(directory, [line], Dynamics(directory)),
        Section("memory", "Memory", stacked(bars_of("", result or {}))),
        *exhibits([(directory.name, directory)]),
        Section("reproduce", "To reproduce", reproduce(config, config)),
    ]


def instruments(directory: Path, lines: Sequence[Line], dynamics: Dynamics) -> list[Section]:
    """The sections of what was recorded of a run's factors."""
    steps, _ = column(read_rows(directory / "metrics.jsonl"), "loss")
    ends = ends_of_spectra(lines)
    maps = factors.spectra_maps(dynamics)
    return [
        Section("factors", "Factors", factors.alarms(dynamics) + factors.norms(dynamics)),
        Section("spectra", "Spectra", maps + grid([ends])),
        Section(
            "sampling",
            "Sampling of singular vectors",
            factors.draw_maps(dynamics, float(steps[-1]) if len(steps) else 0.0),
        ),
    ]


def chapters(runs: Sequence[tuple[str, Path]]) -> str:
    """What was recorded of the factors of several runs, one folded chapter for each that has any."""
    shown = []
    for name, directory in runs:
        dynamics = Dynamics(directory, len(runs))
        if dynamics.rows:
            sections = instruments(directory, [Line(name, 1, (directory,))], dynamics)
            inside = "".join(section.body for section in sections)
            shown.append(folded(name, inside, kind="chapter"))
    return "".join(shown)


def asked(config: Mapping[str, Any]) -> str:
    """Task, method and the main options; the others folded."""
    options, method = config.get("options") or {}, dict(config.get("method") or {})
    shown = {name: config[name] for name in ("task",) if config.get(name) is not None}
    if method:
        named = method.pop("name", None)
        settings = ", ".join(f"{name} {value}" for name, value in method.items())
        shown["method"] = f"{named or 'a model'}: {settings}" if settings else named
    shown |= {name: options[name] for name in ASKED if options.get(name) is not None}
    return (definitions(shown) if shown else "") + details("All options", options)


def reproduce(asked_for: Mapping[str, Any], ran: Mapping[str, Any]) -> str:
    """The command, and the data and the environment that a run had."""
    parts = [preformatted(asked_for.get("command"))]
    version = {"spectrain": ran["spectrain"]} if ran.get("spectrain") else {}
    environment = version | dict(ran.get("environment") or {})
    if environment:
        parts += [paragraph("Environment:"), definitions(environment)]
    parts.append(details("Corpus", ran.get("corpus")))
    return "".join(parts)
