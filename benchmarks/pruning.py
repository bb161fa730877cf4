"""The SST paper's pruning of singular values: perplexity against the share of their sum that is kept.

    python benchmarks/pruning.py            trains, prunes, measures; half an hour on a core
    python benchmarks/pruning.py --quick    to see that it runs; writes beside its runs only

A small LLaMA learns standard-library source at full rank and with SST, in one `spectrain compare lm`: each
at the best rate of a sweep, then with another seed. The two models of that seed are pruned by `spectrain
merge` to every share, layer by layer and by one threshold for all layers. Figure 5 of the paper shows such
a curve for OPT-125M, without numbers. Then linear layers of two factors are timed against dense ones.
Interrupt it and run it again: runs continue, and what was measured is kept. One thread is used.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import click
import torch
from speed_report import machine
from torch import nn
from transformers import AutoModelForCausalLM

from spectrain.cli.lm import compare_lm
from spectrain.errors import SpectrainError
from spectrain.pruning import Pruning
from spectrain.runs.canvas import new_figure, save, style_of
from spectrain.runs.compare import load_comparison
from spectrain.runs.export import export
from spectrain.runs.files import read_json, write_json
from spectrain.tasks.factored import FactoredLinear
from spectrain.tasks.lm.corpus import load_corpus
from spectrain.tasks.lm.evaluate import evaluate
from spectrain.tasks.lm.plain import load_factored

HERE = Path(__file__).parent
SHARES = (1.0, 0.99, 0.98, 0.97, 0.96, 0.95, 0.93, 0.9, 0.8, 0.7, 0.5)  # to 0.9 those of the paper
BY = ("layer", "all")
VOCABULARY, LENGTH, BATCH, TOKENS = 1024, 128, 8, 32768
# d = 128, r = d/16; SST's periods are scaled to the budget as those of the demo: 15 iterations and 2
# re-SVDs in 600 steps.
OPTIONS = (
    *("--model", "llama-9m", "--vocab-size", str(VOCABULARY), "--sequence-length", str(LENGTH)),
    *("--batch-size", str(BATCH), "--eval-every", "0", "--final-tokens", str(TOKENS)),
    *("--methods", "full,sst", "--rank", "8", "--lr-ordinary", "4e-3", "--device", "cpu"),
    *("--sst.resample-every", "40", "--sst.iterations-per-round", "5", "--sst.warmup", "4"),
    *("--checkpoint-every", "100", "--keep", "1", "--seeds", "1"),
)
RATES = ("--full.sweep-lr", "2e-3,4e-3,8e-3", "--sst.sweep-lr", "4e-3,8e-3,1.6e-2")
METHODS = {"full": "Full rank", "sst": "SST"}
LAYERS = ((512, 512), (1376, 512))  # of LLaMA-60M, out × in
PARTS = (0.25, 0.5, 0.75, 0.95)  # of the dense layer's numbers
ROWS = (1, 32, 1024)  # tokens at a time
ROUNDS = 60


def train(out: Path, steps: int, more: tuple[str, ...]) -> tuple[dict[str, Path], dict[str, float]]:
    """The runs whose models are pruned, and the rates that were chosen for them, by method."""
    run = out / "comparison"
    compare_lm.main(
        [*OPTIONS, *more, "--steps", str(steps), "--out", str(run)], standalone_mode=False
    )
    comparison = load_comparison(run)
    trials = {trial.arm: trial for trial in comparison.results if trial.purpose == "report"}
    runs = {name: comparison.trial_directory(trials[name]) for name in METHODS}
    return runs, {name: trials[name].lr for name in METHODS}


def measure(run: Path, target: Path, share: float, by: str) -> dict[str, Any]:
    """One point of the curve: perplexity on test data, and how much is left."""
    shutil.rmtree(target, ignore_errors=True)
    done = export(run, target, pruning=Pruning(share, by))
    assert done.pruned is not None
    model = AutoModelForCausalLM.from_pretrained(target)
    test = load_corpus(None, vocab_size=VOCABULARY).splits["test"]
    found = evaluate(model, test, LENGTH, BATCH, max_tokens=TOKENS)
    layers = done.pruned.layers
    shutil.rmtree(target)
    return {
        "perplexity": found.perplexity,
        "ratio": done.pruned.ratio,
        "ranks": sum(layer.rank for layer in layers) / sum(min(la.shape) for la in layers),
    }


def curves(runs: dict[str, Path], out: Path, shares: tuple[float, ...]) -> dict[str, Any]:
    """All points by "method share by", of which those in points.json are known."""
    file = out / "points.json"
    points: dict[str, Any] = read_json(file) or {}
    for name, share, by in itertools.product(runs, shares, BY):
        key = f"{name} {share:g} {by}"
        if key not in points:
            points[key] = measure(runs[name], out / "pruned", share, by)
            write_json(file, points)
            print(key, f"{points[key]['perplexity']:.3f}", flush=True)
    return points


def ratio(dense: Callable[[], Any], thin: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """(median time of `thin` over that of `dense`, half the quartiles' distance of the rounds' ratios).

    Both run in every round, in random order, so that a drift of the machine's speed hits both. Times are
    the thread's on the processor, so that waiting for other programs does not count.
    """
    draw, times = random.Random(0), {dense: [], thin: []}
    for number in range(-5, rounds):
        for run in draw.sample((dense, thin), 2):
            began = time.thread_time()
            run()
            if number >= 0:
                times[run].append(time.thread_time() - began)
    each = [b / a for a, b in zip(times[dense], times[thin], strict=True)]
    low, _, high = quantiles(each, n=4)
    return median(times[thin]) / median(times[dense]), (high - low) / 2


def repeated(layer: nn.Module, x: torch.Tensor) -> None:
    """A few times where it is a matter of microseconds."""
    for _ in range(max(1, 64 // len(x))):
        layer(x)


@torch.no_grad()
def layer_rows(rounds: int) -> list[str]:
    """Times of one layer as two factors, over those of a dense one."""
    rows = []
    for m, n in LAYERS:
        linear = nn.Linear(n, m, bias=False)
        for part in PARTS:
            rank = round(part * m * n / (m + n))
            thin = FactoredLinear(linear, rank)
            for factor in thin.parameters():
                nn.init.normal_(factor)
            cells = []
            for tokens in ROWS:
                x = torch.randn(tokens, n)
                runs = [partial(repeated, layer, x) for layer in (linear, thin)]
                value, spread = ratio(*runs, rounds)
                cells.append(f"{value:.2f} ± {spread:.2f}")
            kept = rank * (m + n) / (m * n)
            rows.append(f"| {m} × {n} | {rank} | {kept:.2f} | {' | '.join(cells)} |")
    return rows


@torch.no_grad()
def model_rows(runs: dict[str, Path], out: Path, rounds: int) -> list[str]:
    """Size and time of a whole factored model over the dense one of the same ranks."""
    rows = []
    folders = [out / kind for kind in ("dense", "thin")]
    ids = torch.randint(0, VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    for name, share in itertools.product(runs, (0.9, 0.8, 0.7, 0.5)):
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        export(runs[name], folders[0], pruning=Pruning(share))
        pruned = export(runs[name], folders[1], pruning=Pruning(share), factored=True).pruned
        assert pruned is not None
        dense = AutoModelForCausalLM.from_pretrained(folders[0]).eval()
        thin = load_factored(folders[1])
        logits, others = dense(ids).logits, thin(ids).logits
        gap = float((others - logits).abs().max() / logits.abs().max())
        value, spread = ratio(partial(dense, ids), partial(thin, ids), rounds)
        size = pruned.bytes[1] / pruned.bytes[0]
        cells = (
            f"{share:g} | {pruned.ratio:.2f} | {size:.2f} | {value:.2f} ± {spread:.2f} | {gap:.0e}"
        )
        rows.append(f"| {METHODS[name]} | {cells} |")
    for folder in folders:
        shutil.rmtree(folder)
    return rows


def draw(points: dict[str, Any], shares: tuple[float, ...], path: Path) -> None:
    figure, axes = new_figure(
        "kept share of the sum of singular values, %", "perplexity on test data"
    )
    for place, (name, title) in enumerate(METHODS.items()):
        for by, line in zip(BY, ("-", "--"), strict=True):
            y = [points[f"{name} {share:g} {by}"]["perplexity"] for share in shares]
            words = "layer by layer" if by == "layer" else "one threshold for all"
            style = style_of(place) | {"linestyle": line}
            axes.plot(
                [100 * s for s in shares], y, label=f"{title}, {words}", markersize=4, **style
            )
    axes.invert_xaxis()
    axes.legend()
    save(figure, path)


def curve_rows(points: dict[str, Any], shares: tuple[float, ...]) -> list[str]:
    rows = []
    for share in shares:
        cells = []
        for name in METHODS:
            layer, whole = (points[f"{name} {share:g} {by}"] for by in BY)
            cells += [f"{layer['ranks']:.2f}", f"{layer['ratio']:.2f}"]
            cells += [f"{p['perplexity']:.2f}" for p in (layer, whole)]
        rows.append(f"| {100 * share:g} % | {' | '.join(cells)} |")
    return rows


def report(
    given: argparse.Namespace,
    runs: dict[str, Path],
    rates: dict[str, float],
    points: dict[str, Any],
    shares: tuple[float, ...],
) -> str:
    where = machine(torch.device("cpu"))
    rounds = 5 if given.quick else ROUNDS
    head = "ranks | numbers | perplexity | by one threshold"
    lines = [
        "# Pruning of singular values\n",
        f"Made by `python benchmarks/pruning.py`: a LLaMA of d = 128 with 4 layers, {given.steps} steps of "
        f"{BATCH * LENGTH:,} tokens of standard-library source, one seed; SST at r = 8; each at the best "
        f"rate of [a sweep](pruning.csv), {rates['full']:g} and {rates['sst']:g}. Test perplexity "
        f"on {TOKENS:,} tokens after `spectrain merge --prune`. *Ranks* are the kept ones over all, "
        "*numbers* those of the pruned layers as two factors where that is smaller, over those of dense "
        "ones, both layer by layer; the last column of each model is pruned by one threshold for all.\n",
        f"| kept share | full: {head} | SST: {head} |",
        "|---" * 9 + "|",
        *curve_rows(points, shares),
        "",
        "![Perplexity by kept share](pruning.png)\n",
        "## Whole models as factors\n",
        "The pruned model in factored form over its dense form: bytes of the weights, processor time of "
        f"a forward pass on {BATCH} × {LENGTH} tokens (ratio of medians over {rounds} rounds in which both "
        "run, in random order; ± is half the distance between the quartiles of the ratio round by round), "
        "and the largest difference of their logits over the largest logit.\n",
        "| model | kept share | numbers of the layers | bytes | time | difference |",
        "|---" * 6 + "|",
        *model_rows(runs, given.out, rounds),
        "",
        "## One layer as factors\n",
        "Processor time of a layer of two factors over that of a dense one, by tokens at a time; "
        f"random weights, {rounds} rounds.\n",
        f"| layer | rank | numbers | {' | '.join(f'{t:,} at a time' for t in ROWS)} |",
        "|---" * (3 + len(ROWS)) + "|",
        *layer_rows(rounds),
        "",
        *(f"- {name}: {value}" for name, value in where.items() if name != "packages"),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=HERE / "runs" / "pruning")
    parser.add_argument("--quick", action="store_true", help="20 steps and three shares")
    given = parser.parse_args()
    torch.set_num_threads(1)
    shares, rates, results = SHARES, RATES, HERE / "results"
    if given.quick:
        given.steps, shares, given.out = 20, (1.0, 0.9, 0.5), given.out / "quick"
        rates, results = ("--sweep-lr", "4e-3"), given.out
    try:
        runs, chosen = train(given.out, given.steps, rates)
        points = curves(runs, given.out, shares)
        text = report(given, runs, chosen, points, shares)
    except SpectrainError as error:
        sys.exit(f"Error: {error}")
    except click.Abort:
        sys.exit("stopped; what is done is kept, and the same command continues")
    draw(points, shares, results / "pruning.png")
    shutil.copy2(given.out / "comparison" / "results.csv", results / "pruning.csv")
    (results / "pruning.md").write_text(text, encoding="utf-8")
    print(f"wrote {results / 'pruning.md'}")


if __name__ == "__main__":
    main()
