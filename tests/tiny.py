"""A language-model task that trains in a fraction of a second, for the tests of runs."""

from __future__ import annotations

import functools
import random
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

from spectrain.method import Method
from spectrain.runs.checkpoint import Checkpoint, newest
from spectrain.runs.directory import identity
from spectrain.runs.files import read_json, read_rows
from spectrain.runs.interrupt import Interrupted
from spectrain.runs.jobs import _locked, _train
from spectrain.runs.options import RunOptions
from spectrain.runs.processes import Team
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


def causal_model(kind: str = "llama", tied: bool = False, seed: int = 0) -> Any:
    """A transformers "llama" or "opt" with 32 words and one layer of width 16, without dropout."""
    torch.manual_seed(seed)
    common = {
        "vocab_size": 32,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "tie_word_embeddings": tied,
    }
    if kind == "llama":
        config = LlamaConfig(intermediate_size=24, **common)
    else:
        config = OPTConfig(ffn_dim=24, word_embed_proj_dim=16, dropout=0.0, **common)
    return AutoModelForCausalLM.from_config(config)


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
        "look_every": 2,
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
    fork: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """What `train lm` does, but for the report."""
    chosen, team = make_options(**options), Team()
    with _locked(directory, team):
        return _train(task or make_task(), method, chosen, directory, view or Silent(), team, fork)


def rows(directory: Path) -> list[dict[str, Any]]:
    """metrics.jsonl."""
    return read_rows(directory / "metrics.jsonl")


def last(directory: Path) -> Checkpoint:
    """The newest intact checkpoint of a run."""
    name = identity(read_json(directory / "config.json"))
    found = newest(directory / "checkpoints", name).found
    assert found is not None
    return found


def final(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint: model, optimizer, random numbers, probe."""
    newest = max((directory / "checkpoints").glob("step-*"))
    files = sorted(newest.glob("*.safetensors"))
    return {f"{file.stem}/{k}": t for file in files for k, t in load_file(file).items()}


class Stopping(LanguageModelling):
    """Sends this process SIGINT, as Ctrl-C does, in the middle of the given step."""

    at = -1

    def micro_batches(self, step, seed):
        if step == self.at:
            signal.raise_signal(signal.SIGINT)
        return super().micro_batches(step, seed)


def stopped_at(directory, method, step, **options):
    task = make_task(kind=Stopping)
    task.at = step
    with pytest.raises(Interrupted, match=f"stopped at step {step + 1} and saved") as caught:
        run(directory, method, task, **options)
    assert "the same command continues" in str(caught.value)


def same(a, b):
    """Bit for bit: rows; model, optimizer, random numbers and probe at the end."""
    for name in ("metrics.jsonl", "dynamics.jsonl"):
        assert (a / name).read_text() == (b / name).read_text()
    first, second = final(a), final(b)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different
    assert read_json(a / "spectra.json") == read_json(b / "spectra.json")
    results = [read_json(path / "result.json") for path in (a, b)]
    for result in results:
        assert result.pop("seconds") > 0
        assert result.pop("seconds_per_step") > 0
    assert results[0] == results[1]


class Recorder(Silent):
    """A view that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.alerts: list[str] = []
        self.titles: list[str] = []

    def alert(self, sentence: str) -> None:
        self.alerts.append(sentence)

    def say(self, sentence: str) -> None:
        self.said.append(sentence)

    def begin(self, title: str, done: int, steps: int) -> None:
        self.titles.append(title)
