"""Trials and their results in words."""

import math

from spectrain.runs.scores import cost_of
from spectrain.runs.trials import Plan, Result, Trial
from spectrain.tasks.score import Score


def describe(plan: Plan, trial: Trial) -> str:
    """A trial in words: ``SST, learning rate 4e-3, seed 0``."""
    ordinary = f" (ordinary {rate_text(trial.lr_ordinary)})" if trial.ordinary_swept else ""
    rate = f"learning rate {rate_text(trial.lr)}{ordinary}"
    return f"{plan.arm(trial.arm).title}, {rate}, seed {trial.seed}"


def outcome(plan: Plan, result: Result) -> str:
    """A result in words: ``validation loss 3.671 (perplexity 39.29)``."""
    costs = {score: cost_of(result, "validation", score) for score in plan.scores}
    if math.isinf(costs[plan.scores[0]]):
        return f"diverged: {failure(result, plan.scores[0])}"
    first, *others = (
        f"{score.title} {figure(score, cost, score.digits)}" for score, cost in costs.items()
    )
    return f"validation {first}" + (f" ({', '.join(others)})" if others else "")


def failure(result: Result, score: Score) -> str:
    """How a diverged trial, which ``score`` cannot judge, failed."""
    return str(result.get("failed") or f"its {score.title} is no finite number")


def figure(score: Score, cost: float, digits: int) -> str:
    """The value with a cost as people read it; "–" where there is no finite one."""
    value = score.shown(cost)
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def rate_text(rate: float | None) -> str:
    """A learning rate as people write it: 4e-3, 1.25e-3; "–" for None."""
    if rate is None:
        return "–"
    digits, exponent = f"{rate:.2e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
