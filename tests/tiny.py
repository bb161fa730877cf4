"""A language-model task that trains in a fraction of a second, for the tests of runs."""

from __future__ import annotations

import functools
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from spectrain.method import Method
from spectrain.runs.directory import open_directory
from spectrain.runs.files import read_rows
from spectrain.runs.lm import _config
from spectrain.runs.loop import Training
from spectrain.runs.options import RunOptions
from spectrain.runs.view import Silent, View
from spectrain.tasks.lm.corpus import Corpus, load_corpus
from spectrain.tasks.lm.options import LanguageModelOptions
from spectrain.tasks.lm.task import LanguageModelling

WORDS = ("the", "cat", "sat", "on", "mats", "while", "ships", "sailed", "past", "harbours")
LLAMA = {
    "num_hidden_layers": "1",
    "hidden_size": "32",
    "intermediate_size": "48",
    "num_attention_heads": "2",
    "num_key_value_heads": "2",
}
OPT = {
    "num_hidden_layers": "1",
    "hidden_size": "32",
    "word_embed_proj_dim": "32",
    "ffn_dim": "48",
    "num_attention_heads": "2",
}


def prose(lines: int = 1500) -> str:
    """The same few words in random order."""
    draw = random.Random(0)
    return "".join(" ".join(draw.choices(WORDS, k=8)) + ".\n" for _ in range(lines))


@functools.cache
def corpus() -> Corpus:
    """`prose()` with a vocabulary of 300."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "prose.txt")
        path.write_text(prose(), encoding="utf-8")
        return load_corpus(str(path), vocab_size=300, cache=Path(folder, "cache"))


def make_task(
    model: str = "llama-9m",
    overrides: dict[str, str] | None = None,
    kind: type[LanguageModelling] = LanguageModelling,
    **options: Any,
) -> LanguageModelling:
    """The tiny task; `options` are LanguageModelOptions."""
    values = {
        "sequence_length": 16,
        "batch_size": 4,
        "eval_tokens": 256,
        "final_tokens": 512,
    } | options
    chosen = overrides if overrides is not None else LLAMA
    return kind(LanguageModelOptions(model=model, **values), corpus(), dict(chosen))


def make_options(**options: Any) -> RunOptions:
    """Twelve steps at a high rate, with a row for every fourth."""
    values = {
        "steps": 12,
        "lr": 1e-2,
        "log_every": 4,
        "eval_every": 6,
        "checkpoint_every": 0,
        "keep": 20,
        "device": "cpu",
    }
    return RunOptions(**(values | options))


def run(
    directory: Path,
    method: Method,
    task: LanguageModelling | None = None,
    view: View | None = None,
    **options: Any,
) -> dict[str, Any]:
    """What `train lm` does, but for the report."""
    task, chosen = task or make_task(), make_options(**options)
    result = open_directory(directory, _config(task, method, chosen))
    return result or Training(task, method, chosen, directory, view or Silent()).train()


def rows(directory: Path) -> list[dict[str, Any]]:
    """metrics.jsonl."""
    return read_rows(directory / "metrics.jsonl")


def final(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint: model, optimizer, random numbers, probe."""
    newest = max((directory / "checkpoints").glob("step-*"))
    files = sorted(newest.glob("*.safetensors"))
    return {f"{file.stem}/{k}": t for file in files for k, t in load_file(file).items()}


class Recorder(Silent):
    """A view that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.titles: list[str] = []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)

    def begin(self, title: str, done: int, steps: int) -> None:
        self.titles.append(title)
