"""How fast and how large a training step is: every method, and the packages one would take instead.

    python benchmarks/speed.py                 everything, results to benchmarks/results/speed.{md,json}
    python benchmarks/speed.py --quick         about a minute, printed only
    python benchmarks/speed.py --targets       what the targets need, and their table
    python benchmarks/speed.py --only 60m-4096 ranks    these tables; the results keep the others

All arms of a table take turns in one process and start from equal weights, so that only ratios within
a table mean anything. Needs the `bench` extra.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import speed_memory
import speed_report
import torch
from speed_arms import RECIPES, Arm, make
from speed_blocks import SEQUENCE, SHAPES, Stack, WholeModel, matrices
from speed_plan import QUICK, TABLES, TARGETED, Plan
from speed_timing import (
    DISTURBED,
    Feed,
    Products,
    Samples,
    event_seconds,
    interleave,
    refresh_seconds,
)

from spectrain.runs.allocator import keep_freed_memory

RESULTS = Path(__file__).parent / "results"
VOCABULARY = 32_000


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    given = _options(arguments)
    torch.set_num_threads(given.threads or torch.get_num_threads())
    if given.device.type == "cpu":
        keep_freed_memory()  # as `train` does; else page faults make up to a twentieth of every arm
    started = time.monotonic()
    plans = QUICK if given.quick else TABLES
    if given.targets or given.only:
        wanted = given.only or TARGETED
        plans = tuple(plan for plan in TABLES if plan.key in wanted)
    tables = []
    for number, plan in enumerate(plans, 1):
        _say(f"[{number}/{len(plans)}] {plan.title}")
        tables.append(measure(plan, given.device, given.repetitions, given.compile))
        _say(speed_report.step_table(tables[-1]) + "\n")
    whole_run = not (given.quick or given.only or given.targets)
    kept = _kept(tables) if given.only and not given.out else {}
    tables = kept.get("tables", tables)
    bytes_ = kept.get("bytes", {})
    if whole_run or given.targets:
        bytes_ = replaced_bytes(given.device)
    by_key: dict[str, dict[str, Any]] = {
        table["key"]: {row["arm"]: row for row in table["rows"]} for table in tables
    }
    results = {
        "command": " ".join([speed_report.COMMAND, *([] if kept else arguments or sys.argv[1:])]),
        "minutes": (time.monotonic() - started) / 60 + kept.get("minutes", 0.0),
        "machine": speed_report.machine(given.device),
        "targets": speed_report.targets({**by_key, "bytes": bytes_}),
        "tables": tables,
        "bytes": bytes_,
    }
    if given.targets:
        print(speed_report.target_table(results["targets"]))
    else:
        print(speed_report.markdown(results))
    folder = given.out or (RESULTS if whole_run or kept else None)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(results, indent=1, ensure_ascii=False)
        (folder / "speed.json").write_text(text + "\n", encoding="utf-8")
        (folder / "speed.md").write_text(speed_report.markdown(results), encoding="utf-8")
    return results


def _kept(tables: list[dict[str, Any]]) -> dict[str, Any]:
    """The committed results with `tables` in place of those of the same keys."""
    file = RESULTS / "speed.json"
    if not file.is_file():
        return {}
    results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    new = {table["key"]: table for table in tables}
    results["tables"] = [new.get(table["key"], table) for table in results["tables"]]
    return results


def measure(
    plan: Plan, device: torch.device, repetitions: int | None = None, compiled: bool = False
) -> dict[str, Any]:
    """One table: times of all arms, events and refreshes, operation counts, peak bytes if asked."""
    torch.manual_seed(0)
    shape = SHAPES[plan.shape]
    fresh = WholeModel(shape, vocabulary=VOCABULARY) if plan.whole else Stack(shape, plan.blocks)
    fresh = fresh.to(device)
    layers = matrices(fresh)
    arms = {}
    for key, divisor in plan.arms:
        _say(f"  {RECIPES[key].title}" + (f", r = d/{divisor}" if divisor else ""))
        rank = shape.width // divisor if divisor else None
        name = f"{key}/{divisor}" if divisor else key
        arms[name] = make(RECIPES[key], fresh, layers, plan.tokens, shape.width, rank)
        if compiled:
            arms[name].model.compile()
    feed = _feed(plan, shape.width, device)
    products = Products(layers, feed, plan.tokens)
    rounds = repetitions or plan.rounds
    _say(f"  {rounds} rounds")
    timed = interleave(list(arms.values()), products, feed, rounds, warmup=2 if compiled else 1)
    if timed.elsewhere > DISTURBED:
        _say(f"  other processes took {timed.elsewhere:.0%} of the processors' time: measure again")
    by_arm, bare = dict(zip(arms, timed.arms, strict=True)), timed.products
    _say("  events" + (", memory" if plan.memory else ""))
    full, of_full = arms["full"], by_arm["full"]
    rows = []
    for name, arm in arms.items():
        row = _times(arm, by_arm[name], full, of_full, bare)
        row |= _events(arm, row, of_full.seconds().total, feed, min(3, rounds))
        memory = speed_memory.peak(arm, feed) if plan.memory else None
        rows.append({"arm": name, **row, "memory": memory})
    seconds = bare.seconds().total
    return {
        "key": plan.key,
        "title": plan.title,
        "rounds": len(bare.steps),
        "products_ms": 1e3 * seconds,
        "elsewhere": timed.elsewhere,
        "repeated": timed.repeated,
        "gflops": full.operations / seconds / 1e9,
        "rows": rows,
    }


def _times(
    arm: Arm, samples: Samples, full: Arm, of_full: Samples, bare: Samples
) -> dict[str, Any]:
    """The columns of one arm that do not concern its events."""
    seconds, reference = samples.seconds(), of_full.seconds()
    ratio = samples.ratio(of_full)
    counted = arm.operations / full.operations
    products = bare.seconds().total
    rest = reference.forward + reference.backward - products
    optimizer = reference.update * arm.trained / full.trained
    expected = (products * counted + rest + optimizer) / reference.total
    return {
        "title": arm.title,
        "rank": arm.rank,
        "trained": arm.trained,
        "operations": arm.operations,
        "step_ms": 1e3 * seconds.total,
        "forward_ms": 1e3 * seconds.forward,
        "backward_ms": 1e3 * seconds.backward,
        "update_ms": 1e3 * seconds.update,
        "ratio": ratio,
        "spread": samples.spread(of_full),
        "counted": counted,
        "expected": expected,
        "deviation": ratio / expected - 1,
    }


def _events(
    arm: Arm, row: dict[str, Any], full_seconds: float, feed: Feed, runs: int
) -> dict[str, Any]:
    """Events and refreshes, timed by themselves and amortised over their periods."""
    listed = {
        f"{event.name} every {event.period}": event_seconds(event, feed, runs) / event.period
        for event in arm.events
    }
    refresh = basis = None
    if arm.refreshing is not None:
        refresh, basis = refresh_seconds(arm, feed, runs)
        listed[f"refresh every {arm.refresh_every}"] = refresh / arm.refresh_every
    amortised = sum(listed.values())
    share = amortised / (row["step_ms"] / 1e3 + amortised)
    return {
        "events_ms": {name: 1e3 * seconds for name, seconds in listed.items()},  # a step
        "events_share": share,
        "ratio_with_events": row["ratio"] + amortised / full_seconds,
        "refresh_ms": None if refresh is None else 1e3 * refresh,
        "basis_ms": None if basis is None else 1e3 * basis,
    }


def replaced_bytes(device: torch.device) -> dict[str, Any]:
    """What the replaced layers of LLaMA 60M hold at r = d/16, and the whole model, over full rank."""
    plan = Plan("bytes", "LLaMA 60M", 4096, (("full", None),), rounds=1)
    shape = SHAPES[plan.shape]
    torch.manual_seed(0)
    fresh = Stack(shape, plan.blocks).to(device)
    feed = _feed(plan, shape.width, device)
    # Beside the blocks' linear layers every arm trains all: embeddings, head, norms; four copies each.
    blocks = 8
    others = 4 * 4 * (2 * VOCABULARY * shape.width + (2 * blocks + 1) * shape.width)
    found: dict[str, Any] = {}
    for key in ("full", "sst", "residual"):
        rank = shape.width // 16
        arm = make(RECIPES[key], fresh, matrices(fresh), plan.tokens, shape.width, rank)
        held = speed_memory.replaced_layers(arm, feed)
        total = sum(held.values())
        model = total * blocks // plan.blocks + others
        found[key] = {"title": arm.title, **held, "total": total, "model": model}
    for row in found.values():
        row["ratio"] = row["total"] / found["full"]["total"]
        row["model_ratio"] = row["model"] / found["full"]["model"]
    return found


def _feed(plan: Plan, width: int, device: torch.device) -> Feed:
    torch.manual_seed(1)
    shape = plan.tokens // SEQUENCE, SEQUENCE
    if plan.whole:
        return Feed(torch.randint(VOCABULARY, shape, device=device), None, device.type == "cuda")
    x = torch.randn(*shape, width, device=device, requires_grad=True)
    cotangent = 1e-3 * torch.randn(*shape, width, device=device)
    return Feed(x, cotangent, device.type == "cuda")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="two small tables with all arms")
    which.add_argument("--targets", action="store_true", help="the table of targets alone")
    which.add_argument(
        "--only",
        nargs="+",
        choices=[plan.key for plan in TABLES],
        metavar="TABLE",
        help=f"these tables alone: {', '.join(plan.key for plan in TABLES)}",
    )
    parser.add_argument("--repetitions", type=int, help="rounds of every table (default: its own)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: torch's choice)")
    parser.add_argument(
        "--device",
        type=torch.device,
        default=torch.device("cpu"),
        help="cpu or cuda (bf16 autocast)",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile every arm's model")
    parser.add_argument("--out", type=Path, help="folder for speed.md and speed.json")
    return parser.parse_args(arguments)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except ModuleNotFoundError as error:
        sys.exit(f"Error: {error}; install what the arms need with pip install -e '.[train,bench]'")
