"""From texts to texts: a network with what turns text into tokens and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spectrain.tasks.translate.corpus import prepared
from spectrain.tasks.translate.decoding import translate
from spectrain.tasks.translate.transformer import Translator
from spectrain.tasks.translate.vocabulary import Vocabularies


@dataclass(frozen=True)
class Translating:
    """A trained network, its vocabularies, and how it translates unless told otherwise."""

    model: Translator
    vocabularies: Vocabularies
    lowercase: bool
    max_length: int
    beam: int
    length_penalty: float

    def __call__(
        self,
        texts: Sequence[str],
        *,
        beam: int | None = None,
        length_penalty: float | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[str]:
        """Each text's translation, one line; of a text without words it is as empty.

        A text of more than `max_length` tokens is cut to that. `progress` hears how many are done.
        """
        given = self._given(texts)
        tokens = translate(
            self.model,
            self.vocabularies.encode_source(list(given.values()), self.max_length + 1),
            beam=self.beam if beam is None else beam,
            penalty=self.length_penalty if length_penalty is None else length_penalty,
            most=self.max_length + 1,
            progress=progress,
        )
        found = {i: self.vocabularies.decode(t) for i, t in zip(given, tokens, strict=True)}
        return [found.get(i, "") for i in range(len(texts))]

    def cut(self, texts: Sequence[str]) -> int:
        """How many of the texts are too long to be read whole."""
        given = list(self._given(texts).values())
        most = self.max_length + 2
        return sum(len(s) == most for s in self.vocabularies.encode_source(given, most))

    def _given(self, texts: Sequence[str]) -> dict[int, str]:
        """The texts that have words, prepared, by their places."""
        ready = {i: prepared(text, self.lowercase) for i, text in enumerate(texts)}
        return {i: text for i, text in ready.items() if text}
