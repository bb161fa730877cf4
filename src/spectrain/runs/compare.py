"""Run a comparison of methods: the same data, budget and number of trials for each of them.

A comparison directory holds config.json (what was asked), trials/<slug>/ (one run directory per
trial), results.csv, and what `report` adds to it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from spectrain.errors import RunError, UsageError
from spectrain.runs.directory import make_folder, refuse_foreign, what
from spectrain.runs.files import write_atomic, write_json
from spectrain.runs.processes import Team
from spectrain.runs.records import OBJECT, PLAN, check_record, read_config, read_result
from spectrain.runs.scores import LANGUAGE, scores_from_json, scores_to_json
from spectrain.runs.table import results_csv
from spectrain.runs.trials import Arm, Plan, Progress, Result, Trial, planned
from spectrain.runs.words import describe, outcome

__all__ = ["Arm", "Comparison", "Plan", "Trial", "load_comparison", "run_comparison"]

FORMAT = 1
_LATER = ("group", "method")  # fields of arms, written where they are not empty


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
        team.decide(partial(write_atomic, out / "results.csv", results_csv(plan, results)))
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


def _settle(
    plan: Plan, out: Path, options: Mapping[str, Any], command: str | None
) -> dict[str, Any]:
    """Record what is asked in a new directory; in a used one, insist that it is the same."""
    asked = {
        "format": FORMAT,
        "kind": "comparison",
        "command": command,
        "options": dict(options),
        "plan": _plan_to_json(plan),
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


def _plan_to_json(plan: Plan) -> dict[str, Any]:
    """What `_plan_from_json` reads, without what a plan has by default: older ones lack it."""
    content = asdict(plan) | {"scores": scores_to_json(plan.scores)}
    if plan.scores == LANGUAGE:
        del content["scores"]
    for arm in content["arms"]:
        for name in _LATER:
            if not arm[name]:
                del arm[name]
    return content


def _plan_from_json(content: dict[str, Any]) -> Plan:
    """The plan that `_plan_to_json` and JSON made ``content`` of: JSON's lists are its tuples."""
    return Plan(
        arms=tuple(
            Arm(
                arm["key"],
                arm["title"],
                tuple(arm["variations"]),
                arm["schedule"],
                arm["paper_schedule"],
                tuple(arm["learning_rates"]),
                **{name: arm.get(name) or "" for name in _LATER},
            )
            for arm in content["arms"]
        ),
        ordinary_rates=tuple(content["ordinary_rates"]),
        sweep_seed=content["sweep_seed"],
        report_seeds=tuple(content["report_seeds"]),
        max_extensions=content["max_extensions"],
        scores=scores_from_json(content),
    )


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
