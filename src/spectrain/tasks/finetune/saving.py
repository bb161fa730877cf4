"""What a fine-tuned model needs beside its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from spectrain.tasks.finetune.base import Base


def save_base_assets(base: Base, model: nn.Module, directory: Path) -> None:
    """Write tokenizer/ and model/ (configurations) as `save_pretrained` writes them."""
    base.tokenizer.save_pretrained(directory / "tokenizer")
    known: Any = model
    known.config.architectures = [type(model).__name__]
    known.config.save_pretrained(directory / "model")
    if getattr(model, "generation_config", None) is not None:
        known.generation_config.save_pretrained(directory / "model")
