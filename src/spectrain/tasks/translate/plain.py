"""The plain form of a trained translator: its ordinary weights, its vocabularies, how to translate."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from spectrain.errors import RunError, UsageError
from spectrain.tasks.translate.decoding import translate
from spectrain.tasks.translate.models import build
from spectrain.tasks.translate.transformer import Translator, probe_of
from spectrain.tasks.translate.vocabulary import Vocabularies

FOLDERS = ("model", "vocabulary")
LOADER = "spectrain.tasks.translate.plain.load_translator"


@dataclass(frozen=True)
class Translating:
    """A trained network with what turns text into tokens and back."""

    model: Translator
    vocabularies: Vocabularies
    how: dict[str, Any]  # as config.json has it under "translation"

    def __call__(
        self,
        texts: Sequence[str],
        *,
        beam: int | None = None,
        length_penalty: float | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[str]:
        """Each text's translation; beams and penalty are those of the training unless given.

        Of a text without words it is as empty.
        """
        rows = [i for i, text in enumerate(texts) if text.strip()]
        given = [texts[i].lower() if self.how["lowercase"] else texts[i] for i in rows]
        most = self.how["max_length"] + 1
        tokens = translate(
            self.model,
            self.vocabularies.encode_source(given, most),
            beam=self.how["beam"] if beam is None else beam,
            penalty=self.how["length_penalty"] if length_penalty is None else length_penalty,
            most=most,
            progress=progress,
        )
        found = {i: self.vocabularies.decode(t) for i, t in zip(rows, tokens, strict=True)}
        return [found.get(i, "") for i in range(len(texts))]


def load_translator(directory: Path | str) -> Translating:
    """What `spectrain merge` wrote to `directory`, ready for use.

    Raises UsageError if the folder holds none, RunError if its weights are of another one.
    """
    folder = Path(directory)
    content = _described(folder)
    with torch.random.fork_rng(devices=[]):
        model = build(content["network"])
    try:
        state = load_file(folder / "model.safetensors")
        found = model.load_state_dict(state, strict=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise RunError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from None
    own = {name for name, _ in model.named_parameters()}  # of tied ones the first
    if wrong := [*found.unexpected_keys, *(name for name in found.missing_keys if name in own)]:
        raise RunError(f"{folder} cannot be loaded: {wrong[0]} is not as its description says")
    return Translating(model.eval(), Vocabularies.load(folder), content["translation"])


def skeleton(folder: Path) -> Translator:
    """The network that config.json in `folder` describes, without numbers."""
    with torch.random.fork_rng(devices=[]):
        return build(_described(folder)["network"]).to("meta")


def _described(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict) or not {"network", "translation"} <= content.keys():
        raise UsageError(f"{path} describes no translator")
    return content


@torch.no_grad()
def outputs(directory: Path, ids: Tensor) -> Tensor:
    """The logits of the written network for source tokens (1, S) and themselves as the target.

    Raises RunError if they are no input of it.
    """
    model = load_translator(directory).model
    size = model.get_parameter("source.table.weight").shape[0]
    whole = ids.dtype == torch.int64 and ids.ndim == 2 and ids.numel() > 0
    if not whole or ids.min() < 0 or ids.max() >= size:
        raise RunError("the probe is no input of this model")
    found: Tensor = model(ids, probe_of(ids)).float()
    return found
