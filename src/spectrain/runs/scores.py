"""What results are judged by, read from and written to JSON, and a result's cost by it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, Literal

from spectrain.runs.records import FINITE
from spectrain.tasks.score import LOSS, PERPLEXITY, Score

LANGUAGE = (LOSS, PERPLEXITY)  # the scores of records that name none
Split = Literal["validation", "test"]
SPLITS: tuple[Split, ...] = ("validation", "test")


def scores_to_json(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """What `scores_from_json` reads under "scores"."""
    return [asdict(score) for score in scores]


def scores_from_json(record: Mapping[str, Any]) -> tuple[Score, ...]:
    """The scores that a checked record names: a run's config.json, a comparison's plan."""
    names = [field.name for field in fields(Score)]
    found = record.get("scores") or []
    return tuple(Score(**{name: score[name] for name in names}) for score in found) or LANGUAGE


def cost_of(result: Mapping[str, Any], split: Split, score: Score) -> float:
    """The result's cost by the score; infinity if it failed or has no finite value of it."""
    value: Any = result.get(f"{split}_{score.key}")
    return math.inf if result.get("failed") or not FINITE.holds(value) else score.cost(value)


def table_order(scores: Sequence[Score]) -> list[Score]:
    """The scores as tables show them: perplexity, which people know, before the loss it is made of."""
    return sorted(scores, key=lambda score: not score.exponential)


def column_name(score: Score) -> str:
    """Its name in columns of results.csv: "loss", "perplexity", "f1"."""
    return score.title if score.exponential else score.key
