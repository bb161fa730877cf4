"""The sections of several runs and comparisons laid over each other."""

from collections.abc import Sequence
from pathlib import Path

from spectrain.errors import UsageError
from spectrain.runs.compare import load_comparison
from spectrain.runs.records import read_config, read_result
from spectrain.runs.report.bars import bars_of, stacked
from spectrain.runs.report.comparison import lines_of
from spectrain.runs.report.exhibits import exhibits
from spectrain.runs.report.lines import Line, curves, ends_of_spectra
from spectrain.runs.report.page import Section, folded, grid, paragraph, table
from spectrain.runs.report.run import asked, chapters, reproduce
from spectrain.runs.report.run_summary import run_summary
from spectrain.runs.scores import scores_from_json
from spectrain.tasks.score import Score


def sections_of_several(directories: Sequence[Path]) -> tuple[str, list[Section]]:
    """(title, sections) of runs, and of the arms of comparisons, as lines of the same charts.

    Raises UsageError if they are not judged by the same scores, RunError if files are damaged.
    """
    lines = _lines(directories)
    scores = _common_scores(lines)
    runs = [(line.name, line.directories[0]) for line in lines]
    bars = [bar for name, run in runs for bar in bars_of(name, read_result(run) or {})]
    configs = {name: read_config(run) or {} for name, run in runs}
    figures = grid(curves(lines, scores))
    return f"Compared: {', '.join(_names(directories))}", [
        Section("summary", "Summary", _table(runs, scores)),
        Section("curves", "Curves", figures or paragraph("Nothing recorded yet.")),
        Section("memory", "Memory", stacked(bars)),
        Section("spectra", "Spectra", grid([ends_of_spectra(lines)])),
        Section("factors", "Factors", chapters(runs)),
        *exhibits(runs),
        Section(
            "asked",
            "What was asked",
            "".join(folded(name, asked(config)) for name, config in configs.items()),
        ),
        Section(
            "reproduce",
            "To reproduce",
            "".join(folded(name, reproduce(c, c)) for name, c in configs.items()),
        ),
    ]


def _lines(directories: Sequence[Path]) -> list[Line]:
    """A line for each run, and for each arm of a comparison that has finished a trial."""
    found: list[tuple[str, tuple[Path, ...]]] = []
    for directory, name in zip(directories, _names(directories), strict=True):
        config = read_config(directory) or {}
        if config.get("kind") != "comparison":
            found.append((name, (directory,)))
            continue
        for line in lines_of(load_comparison(directory)):
            found.append((f"{name}: {line.name}", line.directories))
    return [Line(name, look, runs) for look, (name, runs) in enumerate(found)]


def _names(directories: Sequence[Path]) -> list[str]:
    """The end of each path, as long as it takes to tell it from the others."""
    parts = [directory.resolve().parts for directory in directories]
    lengths = (
        next(n for n in range(1, len(own) + 1) if sum(p[-n:] == own[-n:] for p in parts) == 1)
        for own in parts
    )
    return ["/".join(own[-length:]) for own, length in zip(parts, lengths, strict=True)]


def _common_scores(lines: Sequence[Line]) -> tuple[Score, ...]:
    judged = {line.name: scores_from_json(read_config(line.directories[0]) or {}) for line in lines}
    (first, scores), *others = [*judged.items()] or [("", ())]
    for name, own in others:
        if own != scores:
            titles = (", ".join(score.title for score in known) for known in (scores, own))
            raise UsageError(
                "these runs are judged by different scores, {0} by {2} and {1} by {3}: make a report "
                "of each".format(first, name, *titles)
            )
    return scores


def _table(runs: Sequence[tuple[str, Path]], scores: Sequence[Score]) -> str:
    """What is known of each run, a column for each: the same lines as in the report of one."""
    known = [run_summary(run, read_result(run), scores) for _, run in runs]
    rows = [
        (what, *(str(summary.get(what, "–")) for summary in known))
        for what in dict.fromkeys(what for summary in known for what in summary)
    ]
    return table(("", *(name for name, _ in runs)), rows)
