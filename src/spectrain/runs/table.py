"""results.csv of a comparison: one row for each finished trial."""

import csv
import io
import math
from collections.abc import Mapping
from typing import Any

from spectrain.runs.scores import SPLITS, Split, column_name, cost_of
from spectrain.runs.trials import Plan, Result, Trial, planned
from spectrain.runs.words import failure
from spectrain.tasks.score import LOSS, Score


def results_csv(plan: Plan, results: Mapping[Trial, Result]) -> str:
    """The rows in the order of the plan.

    Scores are as result.json has them, exponential ones as people read them.
    """
    named = {column_name(score): score for score in plan.scores}
    named.setdefault(LOSS.key, LOSS)
    columns = (
        *("arm", "purpose", "lr", "lr_ordinary", "seed", "steps"),
        *(f"{split}_{name}" for split in SPLITS for name in named),
        *("seconds_per_step", "weight_bytes", "gradient_bytes", "optimizer_bytes"),
        *("device_peak_bytes", "trainable_parameters", "frozen_parameters", "failed"),
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for trial in planned(plan, results).trials:
        if trial in results:
            row = _row(plan, trial, results[trial], named)
            row |= {name: results[trial].get(name) for name in columns if name not in row}
            writer.writerow(row)
    return text.getvalue()


def _row(plan: Plan, trial: Trial, result: Result, named: Mapping[str, Score]) -> dict[str, Any]:
    """What is not simply in the result under the name of the column."""
    sizes = result.get("bytes") or {}
    failed = math.isinf(cost_of(result, "validation", plan.scores[0]))
    return {
        "arm": trial.arm,
        "purpose": trial.purpose,
        "lr": trial.lr,
        "lr_ordinary": trial.lr_ordinary,
        "seed": trial.seed,
        **{
            f"{split}_{name}": _value(result, split, score)
            for split in SPLITS
            for name, score in named.items()
        },
        "weight_bytes": sizes.get("weights"),
        "gradient_bytes": sizes.get("gradients"),
        "optimizer_bytes": sizes.get("optimizer"),
        "device_peak_bytes": sizes.get("device_peak"),
        "failed": failure(result, plan.scores[0]) if failed else None,
    }


def _value(result: Result, split: Split, score: Score) -> float | None:
    cost = cost_of(result, split, score)
    if math.isinf(cost):
        return None
    value = score.shown(cost) if score.exponential else float(result[f"{split}_{score.key}"])
    return value if math.isfinite(value) else None
