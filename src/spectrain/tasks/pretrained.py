"""Transformers checkpoints: configuration, tokenizer and weights, read or refused in a sentence."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectrain.errors import RunError, UsageError

# transformers is imported by the functions that need it, which takes seconds.

MOST_LAYERS = 10_000  # building a billion of them would never end


def read_config(name: str, folder: Path, gguf: str | None = None) -> Any:
    """The configuration in `folder`, or in its file `gguf`. Raises UsageError if there is none."""
    from transformers import AutoConfig

    if gguf is None and not (folder / "config.json").is_file():
        raise UsageError(f"{name!r} is no transformers model: it has no config.json")
    try:
        with _reading(gguf):
            return AutoConfig.from_pretrained(folder, trust_remote_code=False, **_file(gguf))
    except UsageError:
        raise
    except Exception as error:  # any parser or unknown architecture
        what = "config.json" if gguf is None else "header"
        raise UsageError(f"the {what} of {name!r} cannot be used: {one_line(error)}") from error


def read_tokenizer(name: str, folder: Path, gguf: str | None = None) -> Any:
    """The fast tokenizer in `folder`, or in its file `gguf`. Raises UsageError if it has none."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        with _reading(gguf):
            tokenizer = AutoTokenizer.from_pretrained(
                folder, use_fast=True, trust_remote_code=False, **_file(gguf)
            )
    except UsageError:
        raise
    except Exception as error:  # a missing or damaged file fails in many ways there
        raise UsageError(f"{name!r} holds no tokenizer that loads: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UsageError(f"{name!r} has no fast tokenizer (tokenizer.json)")
    return tokenizer


def refuse_pickles(name: str, folder: Path) -> None:
    """Raise UsageError if the folder's weights are pickled."""
    if other := next(iter([*folder.glob("*.bin"), *folder.glob("*.pt")]), None):
        raise UsageError(
            f"{name!r} has its weights as a pickle ({other.name}), which spectrain does not open: "
            "convert them to safetensors"
        )


def from_config(
    config: Callable[[], Any], auto: Any, said: str = "this configuration"
) -> nn.Module:
    """A model with random weights, float32, with SDPA attention, in training mode.

    config: makes the configuration. auto: transformers' class for its kind, as AutoModelForCausalLM.
    Raises UsageError, with `said` for what was asked, if no model can be built.
    """
    try:
        model: nn.Module = auto.from_config(
            bounded(config()),
            attn_implementation="sdpa",
            dtype=torch.float32,
            trust_remote_code=False,
        )
    except UsageError:
        raise
    except Exception as error:  # every architecture objects to impossible shapes in its own way
        raise UsageError(f"no model can be built with {said}: {one_line(error)}") from error
    return model.train()


def from_weights(
    name: str, folder: Path, config: Any, auto: Any, gguf: str | None = None
) -> tuple[nn.Module, list[str]]:
    """The model with the folder's weights, float32 on the CPU, and the names of those it lacks.

    Weights that are lacking are drawn from torch's global generator. Raises RunError if the files are
    damaged or of other shapes.
    """
    bounded(config)
    try:
        with torch.device("cpu"), _reading(gguf):  # transformers does not load to meta
            model, loading = auto.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                attn_implementation="sdpa",
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **_file(gguf),
            )
    except UsageError:
        raise
    except Exception as error:  # damaged files and wrong shapes fail in many ways there
        raise RunError(f"the weights of {name!r} do not load: {one_line(error)}") from error
    return model, sorted(loading["missing_keys"])


def require_positions(name: str, config: Any, length: int, what: str) -> None:
    """Raise UsageError if the model takes fewer than `length` tokens; `what` names that length."""
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and longest < length:
        raise UsageError(
            f"model {name!r} takes at most {longest:,} tokens at a time, less than {what} of {length:,}"
        )


def bounded(config: Any) -> Any:
    """`config` itself. Raises UsageError if its model has more layers than can be meant."""
    layers = getattr(config, "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise UsageError(
            f"a model of {layers:.2e} layers was asked for; at most are {MOST_LAYERS:,}"
        )
    return config


def one_line(error: Exception) -> str:
    """The error's kind and message without line ends."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _file(gguf: str | None) -> dict[str, str]:
    return {} if gguf is None else {"gguf_file": gguf}


@contextmanager
def _reading(gguf: str | None) -> Iterator[None]:
    """Transformers reads within, without progress bars. Raises UsageError if it cannot read GGUF files."""
    from transformers.utils import logging

    if gguf is not None and find_spec("gguf") is None:
        raise UsageError(
            f"{gguf} is a GGUF file, and transformers reads those by the package gguf, which is missing: "
            "pip install gguf"
        )
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    # The bar of GGUF files does not ask whether it is wanted.
    silence = redirect_stderr(io.StringIO()) if gguf else nullcontext()
    try:
        with silence:
            yield
    finally:
        if bars:
            logging.enable_progress_bar()
