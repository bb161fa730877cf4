"""Tiny pretrained models with their tokenizers, made on the spot, for the tests of fine-tuning."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from spectrain.runs.jobs import _locked, _train
from spectrain.runs.options import RunOptions
from spectrain.runs.processes import Team
from spectrain.runs.view import Silent
from spectrain.tasks.classify.task import TextClassification
from spectrain.tasks.finetune.builtin import problems, statements
from spectrain.tasks.finetune.options import FinetuneOptions
from spectrain.tasks.finetune.task import FineTuning
from spectrain.tasks.lm.tokenizer import train_bpe

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY = 320


@functools.cache
def _texts() -> tuple[str, ...]:
    records = problems().parts["train"][:300]
    return tuple(" ".join(r.fields.values()) for r in records)


def tokenizer(chat: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the built-in problems, with a chat template if asked for."""
    made = train_bpe(_texts(), VOCABULARY - 4)
    if chat:
        made.add_special_tokens(
            {"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|end|>"]}
        )
        made.chat_template = CHAT
    return made


def write_causal(folder: Path, *, kind: str = "llama", chat: bool = False, layers: int = 2) -> Path:
    """A causal language model of width 16 with random weights, as a transformers folder."""
    torch.manual_seed(0)
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
    }
    if kind == "llama":
        config: Any = LlamaConfig(intermediate_size=24, tie_word_embeddings=True, **common)
    else:
        config = OPTConfig(ffn_dim=24, word_embed_proj_dim=16, dropout=0.0, **common)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # logits that differ clearly
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    model.save_pretrained(folder)
    tokenizer(chat).save_pretrained(folder)
    return folder


def write_encoder(folder: Path, dropout: float = 0.1) -> Path:
    """A BERT of width 16 with random weights and a tokenizer of words, without a head."""
    torch.manual_seed(0)
    words = {w for r in statements().parts["train"] for w in r.fields["text"].split(" ")}
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(words)])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    )
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    BertModel(config).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


@functools.cache
def causal(kind: str = "llama", chat: bool = False) -> str:
    """The path of `write_causal`'s folder, made once for all tests of a process."""
    keep = tempfile.TemporaryDirectory()
    _kept.append(keep)
    return str(write_causal(Path(keep.name), kind=kind, chat=chat))


@functools.cache
def encoder(dropout: float = 0.1) -> str:
    """The path of `write_encoder`'s folder, made once."""
    keep = tempfile.TemporaryDirectory()
    _kept.append(keep)
    return str(write_encoder(Path(keep.name), dropout))


_kept: list[Any] = []


def options(**values: Any) -> FinetuneOptions:
    """Of the tiny causal model, on few and short examples."""
    tiny = {"model": causal(), "max_length": 160, "batch_size": 4, "eval_examples": 8}
    tiny |= {"final_examples": 8, "generate": 4, "max_new_tokens": 6}
    return FinetuneOptions(**(tiny | values))


def make_task(kind: Any = FineTuning, **values: Any) -> Any:
    """Responses, or with packing=True those in shared rows."""
    return kind.load(options(**values))


def make_labels(kind: Any = TextClassification, **values: Any) -> Any:
    """Labels of texts."""
    own = {"model": encoder(), "classify": True, "max_length": 32}
    return kind.load(options(**{**own, **values}))


MAKERS = {
    "responses": make_task,
    "packed": lambda *a, **v: make_task(*a, packing=True, max_length=250, **v),
    "labels": make_labels,
}
every_kind = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def run_options(**values: Any) -> RunOptions:
    """Eight steps at a high rate, measured and saved on the way."""
    few = {"steps": 8, "lr": 5e-3, "warmup": 0.0, "log_every": 2, "eval_every": 4}
    few |= {"checkpoint_every": 4, "keep": 20, "device": "cpu", "clip": 1.0}
    few |= {"exclude": "lm_head,classifier,pooler.dense"}
    return RunOptions(**(few | values))


def run(directory: Path, method: Any, task: Any, **values: Any) -> dict[str, Any]:
    """What `train finetune` does, but for the report."""
    team = Team()
    with _locked(directory, team):
        return _train(task, method, run_options(**values), directory, Silent(), team)
