"""The tables of benchmarks/hyperbolic.py: ours beside the published, and the share of the gap closed."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from statistics import mean, stdev

from spectrain.runs.compare import Comparison, load_comparison
from spectrain.runs.plots import plot_comparison
from spectrain.runs.report import write_report
from spectrain.runs.summary import summarise

RESULTS = Path(__file__).parent / "results" / "hyperbolic"
ARMS = {
    "full": "Full rank",
    **{
        f"{key}-r{rank}": f"{title}, r = {rank}"
        for rank in (1, 2)
        for key, title in (
            ("lora", "LoRA"),
            ("relora", "ReLoRA\\*"),
            ("galore", "GaLore"),
            ("sst", "SST"),
        )
    },
}
# Zhao et al. (2025), table 5: per cent, mean and deviation over three seeds. It has no other methods.
PUBLISHED = {
    "airport-nodes": {
        "full": (92.88, 0.5),
        "lora-r1": (85.75, 1.0),
        "sst-r1": (88.61, 0.5),
        "lora-r2": (89.06, 1.0),
        "sst-r2": (87.92, 0.09),
    },
    "cora-nodes": {
        "full": (81.13, 0.2),
        "lora-r1": (45.5, 0.3),
        "sst-r1": (75.07, 0.5),
        "lora-r2": (64.73, 0.8),
        "sst-r2": (77.5, 0.7),
    },
    "disease-nodes": {
        "full": (91.83, 0.4),
        "lora-r1": (79.66, 1.9),
        "sst-r1": (89.22, 1.7),
        "lora-r2": (83.84, 4.3),
        "sst-r2": (90.64, 1.7),
    },
    "airport-links": {
        "full": (95.77, 0.08),
        "lora-r1": (94.01, 0.2),
        "sst-r1": (95.37, 0.4),
        "lora-r2": (94.75, 0.15),
        "sst-r2": (95.59, 0.2),
    },
    "cora-links": {
        "full": (94.62, 0.2),
        "lora-r1": (84.22, 0.1),
        "sst-r1": (91.11, 0.6),
        "lora-r2": (88.8, 0.5),
        "sst-r2": (91.89, 0.3),
    },
    "disease-links": {
        "full": (91.49, 1.5),
        "lora-r1": (84.29, 1.5),
        "sst-r1": (93.63, 0.7),
        "lora-r2": (91.38, 0.7),
        "sst-r2": (94.83, 0.6),
    },
}
TITLES = {
    name: f"{name.split('-')[0].capitalize()} {'NC' if name.endswith('nodes') else 'LP'}"
    for name in PUBLISHED
}
Found = dict[str, list[float]]  # by arm, per cent on test data, one for each seed


def scores_of(comparison: Comparison, key: str) -> Found:
    """A score of the report seeds' trials, for each arm."""
    found: Found = {}
    for trial in comparison.progress.trials:
        result = comparison.results.get(trial)
        if trial.purpose == "report" and result and not result.get("failed"):
            found.setdefault(trial.arm, []).append(100 * result[f"test_{key}"])
    return found


def cell(values: list[float] | None, published: tuple[float, float] | None) -> str:
    """Ours, and the published figure in brackets."""
    if not values:
        return "–"
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    beside = f" ({published[0]:.1f})" if published else ""
    return f"{mean(values):.1f}{spread}{beside}"


def closed(full: float, lora: float, sst: float) -> float:
    """The share of LoRA's gap to full rank that SST closes, at most all of it."""
    return min(1.0, (sst - lora) / (full - lora)) if full > lora else math.nan


def gaps(found: dict[str, Found]) -> list[str]:
    """One row a task and a mean, ours and published, for both ranks."""
    rows, sums = [], {}
    for name, arms in found.items():
        cells = [TITLES[name]]
        for rank in (1, 2):
            for figures in (
                {arm: mean(values) for arm, values in arms.items()},
                {arm: value for arm, (value, _) in PUBLISHED[name].items()},
            ):
                needed = "full", f"lora-r{rank}", f"sst-r{rank}"
                share = math.nan
                if all(arm in figures for arm in needed):
                    share = closed(*(figures[arm] for arm in needed))
                cells.append("–" if math.isnan(share) else f"{100 * share:.0f} %".replace("-", "−"))
                sums.setdefault(len(cells), []).append(share)
        rows.append(f"| {' | '.join(cells)} |")
    means = []
    for shares in sums.values():
        known = [share for share in shares if not math.isnan(share)]
        means.append(f"**{100 * mean(known):.0f} %**" if known else "–")
    return [*rows, f"| **mean** | {' | '.join(means)} |"]


def collect(runs: Path, names: list[str]) -> None:
    """Write results/hyperbolic/table.md from the comparisons under `runs`, as far as they are."""
    known = {n: load_comparison(runs / n) for n in names if (runs / n / "config.json").exists()}
    done = {n: c for n, c in known.items() if scores_of(c, c.plan.scores[0].key)}
    if not done:
        print("no comparison has results yet")
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    main = {
        n: scores_of(c, "f1" if n.endswith("nodes") else "average_precision")
        for n, c in done.items()
    }
    headings = [f"{TITLES[n]} {'F1' if n.endswith('nodes') else 'AP'}" for n in main]
    lines = [
        "# Hyperbolic graph networks\n",
        "Made by `python benchmarks/hyperbolic.py --data FOLDER`: HyboNet, 16 coordinates, three seeds, "
        "rates chosen on validation data with a fourth; per cent on test data, mean ± standard deviation. "
        "In brackets: the SST paper's table 5 (it has no ReLoRA\\* and no GaLore there).\n",
        f"| method | {' | '.join(headings)} |",
        "|---" * (len(main) + 1) + "|",
    ]
    for arm, title in ARMS.items():
        cells = [cell(main[n].get(arm), PUBLISHED[n].get(arm)) for n in main]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    links = {n: scores_of(c, "roc_auc") for n, c in done.items() if n.endswith("links")}
    if links:
        lines += [
            '\nLink prediction by ROC-AUC (the paper says "test precision", which is taken for average '
            "precision above):\n",
            f"| method | {' | '.join(TITLES[n] for n in links)} |",
            "|---" * (len(links) + 1) + "|",
        ]
        for arm, title in ARMS.items():
            cells = [cell(links[n].get(arm), None) for n in links]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    lines += [
        "\n## Share of LoRA's gap to full rank that SST closes\n",
        "(SST − LoRA) / (full rank − LoRA) of the means above, at most 100 %, as in the paper; – where "
        "full rank is not ahead of LoRA.\n",
        "| task | r = 1 | published | r = 2 | published |",
        "|---|--:|--:|--:|--:|",
        *gaps(main),
        "\n## How long, and at which rates\n",
        "| task | trials | learning rates tried | chosen, full / LoRA / SST (r = 1) | epochs |",
        "|---|--:|---|---|--:|",
    ]
    for name, comparison in done.items():
        lines.append(_how(name, comparison))
        plot_comparison(comparison)
        write_report(comparison.directory)
        shutil.copy2(comparison.directory / "results.csv", RESULTS / f"{name}.csv")
    lines += ["", *(_warnings(name, comparison) for name, comparison in done.items())]
    (RESULTS / "table.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    _pictures(done)
    print(f"wrote {RESULTS / 'table.md'}")


def _how(name: str, comparison: Comparison) -> str:
    progress, results = comparison.progress, comparison.results
    grid = sorted({t.lr for t in progress.trials if t.purpose == "sweep"})
    chosen = [
        progress.best[arm].lr for arm in ("full", "lora-r1", "sst-r1") if arm in progress.best
    ]
    epochs = [result["steps"] for trial, result in results.items() if trial.purpose == "report"]
    return (
        f"| {TITLES[name]} | {len(results)} of {len(progress.trials)} | {', '.join(map(_rate, grid))} | "
        f"{' / '.join(map(_rate, chosen))} | {min(epochs):,} to {max(epochs):,} |"
    )


def _rate(rate: float) -> str:
    return f"{rate:g}"


def _warnings(name: str, comparison: Comparison) -> str:
    """What the comparison says of itself: noise, and rates at an edge."""
    sentences = [s for s in summarise(comparison).sentences if "separable:" not in s]
    return f"- **{TITLES[name]}**: {' '.join(sentences)}"


def _pictures(done: dict[str, Comparison]) -> None:
    """Curves, and where full rank and SST put the nodes of one task."""
    for name in ("cora-nodes", "disease-links"):
        if name in done:
            source = done[name].directory / "score_by_step.png"
            shutil.copy2(source, RESULTS / f"{name}_by_step.png")
    for name, arm in (
        ("cora-nodes", "sst-r1"),
        ("cora-nodes", "full"),
        ("disease-links", "sst-r1"),
    ):
        if name not in done:
            continue
        comparison = done[name]
        own = [t for t in comparison.results if t.arm == arm and t.purpose == "report"]
        picture = comparison.trial_directory(own[0]) / "embedding.png" if own else None
        if picture and picture.exists():
            shutil.copy2(picture, RESULTS / f"{name}_{arm}.png")
