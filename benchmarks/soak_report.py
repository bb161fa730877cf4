"""The tables of soak.py as markdown."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import soak_faults as faults

INTRODUCTION = """# Soak

Made by `python benchmarks/soak.py` (seed {seed}): every method is trained by `spectrain train lm` under
faults, one or two to a start, and started again by the same command until it is finished. Then it is
compared with a run that nothing happened to. Machine: {machine}; {versions}.

- **kills**: SIGKILL at a random moment. **stops**: SIGTERM, SIGINT, SIGINT twice, SIGTERM followed by
  SIGKILL.
- **damage**: between two starts, to the newest checkpoint (a file truncated, a bit flipped, a file or the
  manifest deleted, another run's checkpoint beside it) or to the run (half a row behind the metrics, the
  metrics deleted, temporary files left over). Where nothing but another run's checkpoint is left, the
  command asks to move it away; then this is done, and it is one start more.
- **full disk**: a second run of each method, on a small disk that is full from the start, or fills up
  while it trains, and later has room again.
- **survived**: every start ended with the right exit code, without traceback or hang, and the last one
  finished. **equal**: `metrics.jsonl` byte by byte, the same checkpoints on disk, and of their tensors
  (weights, moments, sampled sets, random-number state) so many bit by bit.
"""
GROUPS = {
    "kills": faults.KILLS,
    "stops": faults.STOPS,
    "damage": faults.DAMAGES,
    "full disk": faults.DISKS,
}


START, END = "<!-- made by benchmarks/soak.py -->\n", "<!-- end -->\n"


def markdown(found: dict[str, Any]) -> str:
    """The content of soak.md for that of soak.json."""
    arms = found["arms"]
    lines = [INTRODUCTION.format(**found), outcome(found)]
    if not found["disk"]:
        lines.append("No small disk could be mounted here: the full disk was left out.\n")
    lines.append("## Where the processes were that were killed\n")
    lines.append(places(found))
    lines.append(
        "*In a write*: a temporary file or folder was left behind. *At an event*: in the step of an event "
        "or the one after it.\n"
    )
    lines.append("## Each fault\n")
    kinds = [(group, kind) for group, names in GROUPS.items() for kind in dict.fromkeys(names)]
    each = [[group, kind, str(_count(list(arms.values()), [kind]))] for group, kind in kinds]
    lines.append(_table(["", "fault", "times"], each))
    problems = [
        f"- {name}: {problem}"
        for name, arm in arms.items()
        for part in parts(arm)
        for problem in part["problems"]
    ]
    if problems:
        lines += ["## Problems\n", *problems, ""]
    return "\n".join(lines)


def insert(document: Path, found: dict[str, Any]) -> None:
    """Put both tables into a document, where its markers are."""
    text = document.read_text(encoding="utf-8")
    before, after = text.split(START)[0], text.split(END)[1]
    tables = f"{outcome(found)}\n{places(found)}"
    document.write_text(f"{before}{START}{tables}{END}{after}", encoding="utf-8")


def outcome(found: dict[str, Any]) -> str:
    """Per method: faults, starts, whether it survived, how many tensors are equal."""
    arms = found["arms"]
    rows = [_row(name, arm) for name, arm in arms.items()]
    runs = [part for arm in arms.values() for part in parts(arm)]
    total = [str(_count(list(arms.values()), kinds)) for kinds in GROUPS.values()]
    starts, tensors, equal = (sum(r[key] for r in runs) for key in ("starts", "tensors", "equal"))
    whole = sum(run["finished"] and not run["problems"] for run in runs)
    last = [*total, str(starts), f"{whole} of {len(runs)} runs", f"{equal:,} of {tensors:,}"]
    rows.append([f"**{cell}**" for cell in ("all", *last)])
    return _table(["run", *GROUPS, "starts", "survived", "equal tensors"], rows)


def places(found: dict[str, Any]) -> str:
    """Where the processes were that were killed."""
    counts: Counter[str] = Counter()
    for arm in found["arms"].values():
        for part in parts(arm):
            counts.update(part["places"])
    head = [f"killed {name}" for name in faults.PLACES]
    return _table(head, [[str(counts[name]) for name in faults.PLACES]])


def _row(name: str, arm: dict[str, Any]) -> list[str]:
    runs = parts(arm)
    counts = [str(_count([arm], kinds)) for kinds in GROUPS.values()]
    survived = all(part["finished"] and not part["problems"] for part in runs)
    tensors, equal = (sum(part[key] for part in runs) for key in ("tensors", "equal"))
    starts = sum(part["starts"] for part in runs)
    return [name, *counts, str(starts), "yes" if survived else "no", f"{equal:,} of {tensors:,}"]


def _count(arms: Sequence[dict[str, Any]], kinds: Iterable[str]) -> int:
    named = set(kinds)
    return sum(part["faults"].get(kind, 0) for arm in arms for part in parts(arm) for kind in named)


def parts(arm: dict[str, Any]) -> list[dict[str, Any]]:
    """What is known of an arm's two runs, on a large disk and a small one."""
    return [arm[key] for key in ("run", "disk") if key in arm]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
