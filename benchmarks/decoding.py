"""Beam search with keys and values kept, against the same search without, in both geometries.

    python benchmarks/decoding.py --data FOLDER      some minutes on two cores

FOLDER is Multi30K's. d = 128, three layers, beam 4, the 1,000 sentences of test_2016_flickr. Weights are
random, and the end is made so unlikely that translations go on as far as they may, to twice their source
and 8 tokens: a trained network ends earlier. Writes results/decoding.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from speed_report import machine

from spectrain.tasks.translate import decoding
from spectrain.tasks.translate.options import TranslateOptions
from spectrain.tasks.translate.task import Translation
from spectrain.tasks.translate.transformer import Decoding, Translator
from spectrain.tasks.translate.vocabulary import END

RESULTS = Path(__file__).parent / "results" / "decoding.md"
UNLIKELY = 1e4  # taken from the end's logit
FEW = 40  # sentences that are also translated without anything kept


class Forgetful(torch.nn.Module):
    """Answers as a `Translator` does, and computes everything anew at each step."""

    def __init__(self, model: Translator) -> None:
        super().__init__()
        self.model = model

    def begin(self, source: torch.Tensor) -> _Past:
        return _Past(source)

    def step(self, tokens: torch.Tensor, state: _Past) -> torch.Tensor:
        state.grow(tokens)
        texts, beams = tokens.shape
        source = state.source.repeat_interleave(beams, 0)
        return self.model(source, state.tokens.flatten(0, 1))[:, -1].view(texts, beams, -1)


class _Past(Decoding):
    """All tokens of all beams."""

    def __init__(self, source: torch.Tensor) -> None:
        super().__init__([], source, [])
        self.source, self.tokens = source, torch.empty(0)

    def grow(self, tokens: torch.Tensor) -> None:
        new = tokens[..., None]
        self.tokens = torch.cat((self.tokens, new), 2) if self.tokens.numel() else new

    def select(self, texts: torch.Tensor | None, beams: torch.Tensor) -> None:
        count = len(self.source) if texts is None else len(texts)
        self.tokens = self.tokens.flatten(0, 1)[beams].unflatten(0, (count, -1))
        if texts is not None:
            self.source = self.source[texts]


def timed(
    model: torch.nn.Module, source: list[torch.Tensor]
) -> tuple[float, list[list[int]], float]:
    """(seconds, translations, tokens that were computed for each beam of each sentence)."""
    count, step = 0, model.step

    def counted(tokens: torch.Tensor, state: Decoding) -> torch.Tensor:
        nonlocal count
        count += len(tokens)
        logits = step(tokens, state)
        logits[..., END] -= UNLIKELY
        return logits

    model.step = counted  # type: ignore[method-assign, assignment]
    began = time.perf_counter()
    found = decoding.translate(model, source, beam=4, penalty=0.6, most=129)  # type: ignore[arg-type]
    seconds = time.perf_counter() - began
    del model.step
    return seconds, found, count / len(source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the texts")
    given = parser.parse_args()
    rows = []
    for geometry in ("euclidean", "hyperbolic"):
        options = TranslateOptions(
            data=str(given.data), dim=128, layers=3, geometry=geometry, test_set="test_2016_flickr"
        )
        task = Translation.load(options)
        torch.manual_seed(0)
        model = task.build_model().eval()
        source = task.vocabularies.encode_source(task.corpus.splits["test"][0], 129)
        seconds, _, length = timed(model, source)
        few, kept, _ = timed(model, source[:FEW])
        slow, forgotten, _ = timed(Forgetful(model), source[:FEW])
        same = sum(a == b for a, b in zip(kept, forgotten, strict=True))
        rows.append(
            f"| {geometry} | {seconds:.1f} s | {length:.1f} | {slow / few:.1f} | {same} of {FEW} |"
        )
        print(rows[-1], flush=True)
    where = machine(torch.device("cpu"))
    lines = [
        "# Beam search\n",
        "Made by `python benchmarks/decoding.py --data FOLDER`: d = 128, three layers, test_2016_flickr, "
        "random weights, translations as long as they may be "
        f"({where['processor']}, {where['threads']} threads).\n",
        "| geometry | 1,000 sentences, beam 4 | tokens computed a beam | time without kept keys and "
        "values, over with | same translations |",
        "|---|--:|--:|--:|--:|",
        *rows,
    ]
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
