"""How far the gradients of a comparison's arms follow those of its full-rank arm."""

import math
from statistics import mean

from spectrain.diagnostics.dynamics import gradient_correlation
from spectrain.runs.compare import Comparison
from spectrain.runs.report.dynamics import KINDS, Dynamics
from spectrain.runs.report.page import paragraph, table
from spectrain.runs.rows import FULL_RANK, drawn_trials
from spectrain.runs.trials import Trial


def beside_full_rank(comparison: Comparison) -> str:
    """A row for each arm and kind of factor, the mean over seeds that both have."""
    shown = drawn_trials(comparison)
    twins = {trial.seed: _looks(comparison, trial) for trial in shown.pop(FULL_RANK, ())}
    rows = []
    for key, trials in shown.items():
        runs = [(_looks(comparison, t), twins[t.seed]) for t in trials if t.seed in twins]
        kinds = {factor: None for own, _ in runs for factor in own.by_factor("gradient")}
        for factor in list(kinds)[:KINDS]:
            values = [gradient_correlation(o.gradients(), f.gradients(), factor) for o, f in runs]
            known = [value for value in values if math.isfinite(value)]
            if known:
                written = f"{mean(known):.2f}".replace("-", "−")
                rows.append((comparison.plan.arm(key).title, factor, written, str(len(known))))
    if not rows:
        return ""
    lead = (
        "Correlation over training of a factor's gradient norm with that of the same layer's W at full "
        "rank, on the same seed and data: the mean over layers and seeds. 1 means that both rise and fall "
        "alike."
    )
    return paragraph(lead) + table(("method", "factor", "correlation", "seeds"), rows)


def _looks(comparison: Comparison, trial: Trial) -> Dynamics:
    return Dynamics(comparison.trial_directory(trial))
