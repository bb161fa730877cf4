"""`train finetune` and `compare finetune`: their options, and what is done with them."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrain.cli import training
from spectrain.cli.options import SectionedCommand, built, options_of, python_name
from spectrain.method import registered
from spectrain.runs.options import RunOptions
from spectrain.tasks.finetune.options import FinetuneOptions

if TYPE_CHECKING:
    from rich.console import Console

    from spectrain.tasks.classify.task import TextClassification
    from spectrain.tasks.finetune.task import FineTuning

# Heads are left out: one is new and trains whole, the other is the vocabulary's.
HEADS = "lm_head,classifier,score,pooler.dense,pre_classifier,classifier.dense,classifier.out_proj"
DEFAULTS: dict[str, Any] = {"steps": 500, "lr": 2e-4, "exclude": HEADS, "clip": 1.0}
DEFAULTS |= {"eval_every": 100, "checkpoint_every": 0, "keep": 1}
NOT_HERE = (
    "compile",
    "shard",
)  # batches change their shape; sharding is not tried with frozen parts


def _train_finetune(out: Path, fork: Path | None, method: str, **values: Any) -> None:
    if values["adapter"] is not None:
        values |= _of_adapter(values, method)
    chosen = training.chosen_method(method, values)
    options = built(RunOptions, values)
    console, result, report = training.run_training(
        lambda console: _task(values, console), chosen, options, out, fork
    )
    unit = "texts" if "texts" in result else "tokens"
    scores = [
        ("steps", f"{result['steps']:,} ({result[unit]:,} {unit})"),
        *(_labels(result) if values["classify"] else _responses(result, out)),
    ]
    last = [("report", str(report)), training.after(chosen, out)]
    training.summarise(console, chosen, result, scores, last)


def _of_adapter(values: dict[str, Any], method: str) -> dict[str, Any]:
    """Rank, alpha and layers of --adapter, where no flag says otherwise."""
    from spectrain.integrations.peft import PeftAdapter
    from spectrain.tasks.reading import user_path

    adapter = PeftAdapter.read(user_path(values["adapter"]))
    rank, scale = adapter.rank, adapter.scale
    alpha = None if rank is None or scale is None or scale == 1 else scale * rank
    has = (
        {f.name for f in dataclasses.fields(registered()[method])} if method in registered() else ()
    )
    unset: dict[str, Any] = {}
    for name, value in (("rank", rank), ("alpha", alpha)):
        flag = python_name("method", name)
        if name in has and value is not None and values.get(flag) is None:
            unset[flag] = value
    if values["targets"] == "all-linear":
        names = sorted({name.rpartition(".")[2] for name in adapter.layers})
        unset["targets"] = rf"(.*\.)?({'|'.join(names)})"
    return unset


def _responses(result: dict[str, Any], out: Path) -> list[tuple[str, str]]:
    """Scores on test data, with what the model scored before."""
    before = _before(out)

    def change(key: str, form: str, shown: Any) -> str:
        after = form.format(shown(result[f"test_{key}"]))
        return f"{form.format(shown(before[f'test_{key}']))} → {after}" if before else after

    rows = [
        ("validation loss", f"{result['validation_loss']:.4f}"),
        ("test loss", change("loss", "{:.4f}", float)),
    ]
    if "test_exact_match" in result:
        share = change("exact_match", "{:.1f} %", lambda share: 100 * share)
        rows.append(
            ("exact match on test", f"{share}{_interval(result, 'exact_match', 'responses')}")
        )
    if "test_other_loss" in result:
        rows.append(("second text perplexity", change("other_loss", "{:.2f}", math.exp)))
    return rows


def _labels(result: dict[str, Any]) -> list[tuple[str, str]]:
    def both(key: str) -> str:
        parts = ((100 * result[f"{split}_{key}"], split) for split in ("validation", "test"))
        return ", ".join(f"{value:.2f} % {split}" for value, split in parts)

    return [
        ("accuracy", f"{both('accuracy')}{_interval(result, 'accuracy', 'texts')}"),
        ("F1", both("f1")),
        ("Matthews correlation", both("matthews")),
    ]


def _interval(result: dict[str, Any], key: str, count: str) -> str:
    """The share of test in its interval, in brackets."""
    from spectrain.tasks.finetune.answers import wilson

    n = int(result[f"test_{count}"])
    low, high = wilson(result[f"test_{key}"] * n, n)
    return f" (95 % interval {100 * low:.1f} to {100 * high:.1f} %, {n:,} {count})"


def _before(out: Path) -> dict[str, float]:
    """What the model scored before training; nothing if it was not measured."""
    path = out / "before.json"
    found: dict[str, float] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return found


train_finetune = SectionedCommand(
    "finetune",
    callback=_train_finetune,
    help="Fine-tune a pretrained model: on prompts with responses, or (--classify) on labels of texts.\n\n"
    "Only what the method puts in the place of matrices is trained, and a new head; --train-ordinary "
    "trains everything else, too.\n\n"
    "Example: spectrain train finetune --model smollm2/ --data gsm8k/ --method lora --method.rank 16 "
    "--out runs/gsm8k\n\n"
    "Example: spectrain train finetune --model minilm/ --classify --data sst2/ --method sst "
    "--method.rank 8 --lr 1e-3 --out runs/sst2\n\n"
    "Example: spectrain train finetune --model smollm2/ --data gsm8k/ --adapter adapter/ --method lora "
    "--out runs/more",
    sections=[
        ("Run", training.RUN),
        ("Model and data", options_of(FinetuneOptions)),
        ("Training", options_of(RunOptions, skip=NOT_HERE, defaults=DEFAULTS)),
        *training.method_sections(),
    ],
)


def _compare_finetune(**values: Any) -> None:
    training.run_comparison(lambda console: _task(values, console), values)


compare_finetune = SectionedCommand(
    "finetune",
    callback=_compare_finetune,
    help="Compare methods at fine-tuning a pretrained model: the same data order, budget and number of "
    "trials for each.\n\nFinished trials are kept; the same command continues. "
    "Example: spectrain compare finetune --model minilm/ --classify --data sst2/ --methods full,sst,lora "
    "--rank 8 --out runs/compare",
    sections=[
        ("Comparison", training.comparison(8, "1e-4,3e-4,1e-3")),
        ("Model and data", options_of(FinetuneOptions)),
        ("Training", options_of(RunOptions, skip=("lr", *NOT_HERE), defaults=DEFAULTS)),
        *training.arm_sections(),
    ],
)


def _task(values: dict[str, Any], console: Console) -> FineTuning | TextClassification:
    """Find the model, read the data and print what is learned from."""
    from spectrain.tasks.classify.task import TextClassification
    from spectrain.tasks.finetune.task import FineTuning

    options = built(FinetuneOptions, values)
    kind = TextClassification if options.classify else FineTuning
    with console.status("reading model and data"):
        task: FineTuning | TextClassification = kind.load(options)
    for line in task.describe():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return task
