"""Run a comparison of methods: the same data, budget and number of trials for each of them.

A comparison directory holds config.json (what was asked), trials/<slug>/ (one run directory per
trial), results.csv, and what `report` adds to it.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from spectrain.errors import RunError, UsageError
from spectrain.runs.directory import make_folder, refuse_foreign, what
from spectrain.runs.files import write_atomic, write_json
from spectrain.runs.processes import Team
from spectrain.runs.records import OBJECT, PLAN, check_record, read_config, read_result
from spectrain.runs.trials import Arm, Plan, Progress, Result, Trial, cost, planned
from spectrain.tasks.score import LOSS, PERPLEXITY, Score

__all__ = ["Arm", "Comparison", "Plan", "Trial", "load_comparison", "run_comparison"]

FORMAT = 1
FIRST_COLUMNS = ("arm", "purpose", "lr", "lr_ordinary", "seed", "steps")
LAST_COLUMNS = (
    *("seconds_per_step", "weight_bytes", "gradient_bytes", "optimizer_bytes", "device_peak_bytes"),
    *("trainable_parameters", "frozen_parameters", "failed"),
)


@dataclass(frozen=True)
class Comparison:
    """What was asked of a comparison and what is known so far; its files are under `directory`."""

    directory: Path
    plan: Plan
    settings: Mapping[str, Any]  # config.json: task, options, command, plan
    results: Mapping[Trial, Result]

    @property
    def progress(self) -> Progress:
        return planned(self.plan, self.results)

    @property
    def finished(self) -> bool:
        return all(trial in self.results for trial in self.progress.trials)

    def trial_directory(self, trial: Trial) -> Path:
        return self.directory / "trials" / trial.slug


def run_comparison(
    plan: Plan,
    run_trial: Callable[[Trial, Path], Result],
    out: Path,
    *,
    options: Mapping[str, Any],
    say: Callable[[str], None],
    command: str | None = None,
    team: Team | None = None,
) -> Comparison:
    """Run, or continue, all trials of ``plan`` in the directory ``out``.

    ``run_trial(trial, directory)`` trains in that run directory, or continues an interrupted run
    there, writes result.json when done, and returns its content; a run that diverged is a result
    too (its "failed" says how). Finished trials are kept. ``options`` and ``command`` are recorded.

    Raises UsageError if ``out`` holds a comparison with other options, RunError if its trials saw
    different corpora or files cannot be written; whatever ``run_trial`` raises passes through, and
    calling again continues. ``team``: the processes that work through the plan together.
    """
    team = team or Team()
    settings = team.decide(lambda: _settle(plan, out, options, command))
    kept = load_comparison(out)
    results = dict(kept.results)
    if results:
        trials = "trial is" if len(results) == 1 else "trials are"
        say(f"{len(results)} finished {trials} kept in {out}.")
    extensions = kept.progress.extensions
    while True:
        progress = planned(plan, results)
        if progress.extensions > extensions:
            extensions = progress.extensions
            say("A best rate lies at the edge of its grid: every method's grid grows by one rate.")
        pending = [trial for trial in progress.trials if trial not in results]
        comparison = Comparison(out, plan, settings, results)
        team.decide(partial(write_atomic, out / "results.csv", _table(comparison)))
        if not pending:
            return comparison
        trial = pending[0]
        place = len(progress.trials) - len(pending) + 1
        # Until the sweep is complete, the report's trials are not in the list yet.
        later = 0 if progress.best else len(plan.arms) * len(plan.report_seeds)
        say(f"Trial {place} of {len(progress.trials) + later}: {describe(plan, trial)}")
        directory = comparison.trial_directory(trial)
        # It may be finished already, if it belongs to the report and a trial of the sweep was lost.
        known = team.decide(partial(_finished, trial, directory))
        result = known or run_trial(trial, directory)
        _check_corpus(results, trial, result)
        results[trial] = result
        say(f"  {outcome(plan, result)}")


def load_comparison(directory: Path) -> Comparison:
    """Read a comparison, finished or not, from its directory.

    Raises UsageError if the directory holds none, RunError if its trials saw different corpora.
    """
    settings = read_config(directory)
    if settings is None or settings.get("kind") != "comparison":
        raise UsageError(f"{directory} holds no comparison: it has no config.json of one")
    if (found := settings.get("format")) != FORMAT:
        raise UsageError(
            f"the comparison in {directory} has format {found}, this version reads format {FORMAT}: "
            "use the version of spectrain that made it"
        )
    check_record(directory / "config.json", settings, {"plan": PLAN})
    plan = _plan_from_json(settings["plan"])
    results: dict[Trial, Result] = {}
    while True:
        found = {
            trial: result
            for trial in planned(plan, results).trials
            if trial not in results
            and (result := _finished(trial, directory / "trials" / trial.slug)) is not None
        }
        if not found:
            return Comparison(directory, plan, settings, results)
        for trial, result in found.items():
            _check_corpus(results, trial, result)
            results[trial] = result


def describe(plan: Plan, trial: Trial) -> str:
    """A trial in words: ``SST, learning rate 4e-3, seed 0``."""
    ordinary = f" (ordinary {rate_text(trial.lr_ordinary)})" if trial.ordinary_swept else ""
    rate = f"learning rate {rate_text(trial.lr)}{ordinary}"
    return f"{plan.arm(trial.arm).title}, {rate}, seed {trial.seed}"


def outcome(plan: Plan, result: Result) -> str:
    """A result in words: ``validation loss 3.671 (perplexity 39.29)``."""
    if math.isinf(cost(result, plan.score, "validation")):
        return f"diverged: {failure(result)}"
    first, *others = [f"{s.title} {shown(result, s, 'validation')}" for s in plan.scores]
    return f"validation {first}" + (f" ({', '.join(others)})" if others else "")


def shown(result: Result, score: Score, split: str) -> str:
    """A score as it is printed; "–" where there is none."""
    found = cost(result, score, split)
    return "–" if math.isinf(found) else f"{score.shown(found):.{score.digits}f}"


def failure(result: Result) -> str:
    """How a diverged trial failed."""
    return str(result.get("failed") or "its loss is no finite number")


def rate_text(rate: float | None) -> str:
    """A learning rate as people write it: 4e-3, 1.25e-3; "–" for None."""
    if rate is None:
        return "–"
    digits, exponent = f"{rate:.2e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def _settle(
    plan: Plan, out: Path, options: Mapping[str, Any], command: str | None
) -> dict[str, Any]:
    """Record what is asked in a new directory; in a used one, insist that it is the same."""
    asked = {
        "format": FORMAT,
        "kind": "comparison",
        "command": command,
        "options": dict(options),
        "plan": asdict(plan),
    }
    settings: dict[str, Any] = json.loads(json.dumps(asked, default=str))
    make_folder(out)
    recorded = read_config(out)
    if recorded is None:
        refuse_foreign(out)
        write_json(out / "config.json", settings)
        return settings
    if recorded.get("kind") != "comparison":
        raise UsageError(f"{out} holds something other than a comparison: choose another --out")
    check_record(out / "config.json", recorded, {"options": OBJECT, "plan": OBJECT})
    for part in ("options", "plan"):
        old, new = what(recorded[part]), what(settings[part])
        for field in (*new, *(field for field in old if field not in new)):
            if old.get(field) != new.get(field):
                raise UsageError(
                    f"{out} holds a comparison with {field} = {json.dumps(old.get(field))}, but "
                    f"now {field} = {json.dumps(new.get(field))} is asked for: "
                    "continue with the same options or choose another --out"
                )
    return recorded


def _plan_from_json(content: dict[str, Any]) -> Plan:
    """The plan that ``asdict`` and JSON made ``content`` of: JSON's lists are its tuples."""
    return Plan(
        arms=tuple(
            Arm(
                arm["key"],
                arm["title"],
                tuple(arm["variations"]),
                arm["schedule"],
                arm["paper_schedule"],
                tuple(arm["learning_rates"]),
                arm.get("method", ""),
                arm.get("group", ""),
            )
            for arm in content["arms"]
        ),
        ordinary_rates=tuple(content["ordinary_rates"]),
        sweep_seed=content["sweep_seed"],
        report_seeds=tuple(content["report_seeds"]),
        max_extensions=content["max_extensions"],
        scores=scores_from(content.get("scores")),
    )


def scores_from(content: list[dict[str, Any]] | None) -> tuple[Score, ...]:
    """A task's scores as a configuration records them; a language model's where it records none."""
    if content is None:
        return LOSS, PERPLEXITY
    names = [f.name for f in fields(Score)]
    return tuple(Score(**{name: score[name] for name in names}) for score in content)


def _finished(trial: Trial, directory: Path) -> Result | None:
    """The trial's result, if it has run to its end there."""
    result = read_result(directory)
    if result is None:
        return None
    asked: dict[str, Any] = {"lr": trial.lr, "seed": trial.seed}
    if trial.lr_ordinary is not None:
        asked["lr_ordinary"] = trial.lr_ordinary
    return result if all(result.get(name) == value for name, value in asked.items()) else None


def _check_corpus(results: Mapping[Trial, Result], trial: Trial, result: Result) -> None:
    """Results are compared only if they were measured on the same tokens."""
    mine = result.get("corpus_fingerprint")
    for other, known in results.items():
        theirs = known.get("corpus_fingerprint")
        if mine != theirs:
            raise RunError(
                f"trials {other.slug} and {trial.slug} saw different corpora (fingerprints "
                f"{str(theirs)[:12]} and {str(mine)[:12]}), so their results cannot be compared: "
                "restore the data and delete the odd one, or choose another --out"
            )


def _table(comparison: Comparison) -> str:
    """results.csv: one row for each finished trial, in the order of the plan."""
    text = io.StringIO()
    scores = comparison.plan.scores
    columns = *FIRST_COLUMNS, *_score_columns(scores), *LAST_COLUMNS
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for trial in comparison.progress.trials:
        if trial in comparison.results:
            writer.writerow(_csv_row(trial, comparison.results[trial], scores))
    return text.getvalue()


def _score_columns(scores: tuple[Score, ...]) -> dict[str, tuple[Score, str]]:
    """The columns of results.csv that hold scores: validation_loss, validation_perplexity, test_loss …"""
    return {
        f"{split}_{score.title if score.exponential else score.key}": (score, split)
        for split in ("validation", "test")
        for score in scores
    }


def _csv_row(trial: Trial, result: Result, scores: tuple[Score, ...]) -> dict[str, Any]:
    found = {
        name: (score, cost(result, score, split))
        for name, (score, split) in _score_columns(scores).items()
    }
    sizes = result.get("bytes") or {}
    row = {
        "arm": trial.arm,
        "purpose": trial.purpose,
        "lr": trial.lr,
        "lr_ordinary": trial.lr_ordinary,
        "seed": trial.seed,
        **{name: score.shown(value) for name, (score, value) in found.items()},
        "weight_bytes": sizes.get("weights"),
        "gradient_bytes": sizes.get("gradients"),
        "optimizer_bytes": sizes.get("optimizer"),
        "device_peak_bytes": sizes.get("device_peak"),
        "failed": failure(result) if math.isinf(cost(result, scores[0], "validation")) else None,
    }
    row |= {name: result.get(name) for name in FIRST_COLUMNS + LAST_COLUMNS if name not in row}
    endless = (math.inf, -math.inf)
    return {name: None if value in endless else value for name, value in row.items()}
