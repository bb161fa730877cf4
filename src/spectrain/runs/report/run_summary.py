"""A single run in figures, as its report lists them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spectrain.runs.files import read_rows
from spectrain.runs.memory import beside
from spectrain.runs.records import FINITE
from spectrain.runs.scores import SPLITS, Split, cost_of
from spectrain.runs.words import figure, rate_text
from spectrain.tasks.score import LOSS, Score

COUNTS = ("steps", "tokens", "epochs", "images", "trainable_parameters", "frozen_parameters")


def run_summary(
    directory: Path, result: Mapping[str, Any] | None, scores: Sequence[Score]
) -> dict[str, Any]:
    """What is known of a run, finished or not."""
    if result is None:
        return _unfinished(directory, scores)
    summary = {"state": f"failed: {result['failed']}" if result.get("failed") else "finished"}
    for split in SPLITS:
        summary |= _judged(result, split, scores)
    for name in COUNTS:
        if isinstance(result.get(name), int):
            summary[name.replace("_", " ")] = f"{result[name]:,}"
    if result.get("best_step") is not None:
        summary["best step"] = f"{result['best_step']:,}"
    if result.get("stopped_early") is not None:
        summary["stopped early"] = "yes" if result["stopped_early"] else "no"
    if FINITE.holds(result.get("seconds_per_step")):
        summary["time per step (median)"] = f"{1000 * result['seconds_per_step']:.1f} ms"
    for name, size in (result.get("bytes") or {}).items():
        if FINITE.holds(size):
            summary[f"memory: {name.replace('_', ' ')}"] = f"{size / 2**20:.1f} MiB"
    summary |= {f"memory: {what}": text for what, text in beside(result)}
    return summary | {"learning rate": rate_text(result.get("lr")), "seed": result.get("seed")}


def _unfinished(directory: Path, scores: Sequence[Score]) -> dict[str, Any]:
    rows = read_rows(directory / "metrics.jsonl")
    last = max((row["step"] for row in rows if FINITE.holds(row.get("step"))), default=0)
    summary = {"state": f"not finished: recorded up to step {last}"}
    seen = {("last loss", "loss", LOSS): 4} | {
        (f"last validation {score.title}", f"validation_{score.key}", score): score.digits + 1
        for score in scores
        if not score.exponential
    }
    for (title, name, score), digits in seen.items():
        values = [row[name] for row in rows if FINITE.holds(row.get(name))]
        if values:
            summary[title] = figure(score, score.cost(values[-1]), digits)
    return summary


def _judged(result: Mapping[str, Any], split: Split, scores: Sequence[Score]) -> dict[str, str]:
    """Each score of the result, with what is an exponential of it in brackets."""
    plain = [score for score in scores if not score.exponential]
    if LOSS not in plain and result.get(f"{split}_loss") is not None:
        plain.append(LOSS)
    judged = {}
    for score in plain:
        cost = cost_of(result, split, score)
        others = ", ".join(
            f"{other.title} {figure(other, cost, other.digits)}"
            for other in scores
            if other.exponential and other.key == score.key
        )
        text = figure(score, cost, score.digits + 1)
        judged[f"{split} {score.title}"] = f"{text} ({others})" if others else text
    return judged
