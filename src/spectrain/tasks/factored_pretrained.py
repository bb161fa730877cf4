"""Factored folders of transformers models: built with factored layers, and loaded as any other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from spectrain.errors import RunError, UsageError
from spectrain.tasks import factored


def settings_with(loader: str) -> dict[str, str]:
    """What config.json of such a folder says besides.

    transformers reads the name of the weights' file there, finds that this is none, and prints it.
    """
    return {"transformers_weights": f"factored spectrain model - load it with {loader}"}


def load(folder: Path, skeleton: Callable[[Path], nn.Module], otherwise: str) -> nn.Module:
    """The model in a factored folder, in evaluation mode and in the dtype of its file.

    skeleton: makes the model of a folder without numbers. otherwise: what loads a folder that is not
    factored. `save_pretrained` raises UsageError: transformers would draw anew what it does not find in
    such a file. Raises UsageError if the folder is not factored, RunError if its weights are damaged or of
    another model.
    """
    ranks = factored.ranks_of(folder)
    if ranks is None:
        raise UsageError(f"{folder} has no {factored.DESCRIPTION}: load it with {otherwise}")
    plain = type(skeleton(folder))
    model, found = _from_pretrained(_with_factors(plain, ranks), folder)
    if wrong := sorted(found["missing_keys"]) + sorted(found["unexpected_keys"]):
        raise RunError(f"{folder} cannot be loaded: {wrong[0]} is not as its description says")
    model.__class__ = plain  # from here on it is built
    model.save_pretrained = _refuse_saving
    loaded: nn.Module = model.eval()
    return loaded


def _refuse_saving(*arguments: Any, **named: Any) -> None:
    raise UsageError(
        "a factored model cannot be saved as a transformers checkpoint: copy its folder, or its state dict"
    )


def _with_factors(plain: type[nn.Module], ranks: dict[str, int]) -> Any:
    """The model's class with factored layers: from_pretrained fills them as it does all others."""

    def build(self: nn.Module, *arguments: Any, **named: Any) -> None:
        plain.__init__(self, *arguments, **named)
        factored.exchange(self, ranks)

    return type(plain.__name__, (plain,), {"__init__": build, "__module__": plain.__module__})


def _from_pretrained(cls: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model in factored.safetensors or its shards, and what transformers says of the loading."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    is_sharded = (folder / factored.INDEX).is_file()
    config.transformers_weights = factored.INDEX if is_sharded else factored.WEIGHTS
    try:
        with without_bars():
            found: tuple[Any, dict[str, Any]] = cls.from_pretrained(
                folder,
                config=config,
                dtype="auto",
                use_safetensors=True,
                output_loading_info=True,
            )
    except RunError:
        raise
    except Exception as error:  # damaged files and wrong shapes fail in many ways there
        raise RunError(f"{folder} cannot be loaded: {' '.join(str(error).split())}") from None
    return found


@contextmanager
def without_bars() -> Iterator[None]:
    """transformers shows no progress within the context."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()
