"""The network that the options describe."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from spectrain.errors import UsageError
from spectrain.tasks.translate import euclidean
from spectrain.tasks.translate.options import TranslateOptions
from spectrain.tasks.translate.transformer import Translator

EXTRA = 2  # positions beyond max_length: start and end


def describe(options: TranslateOptions, sizes: tuple[int, int]) -> dict[str, Any]:
    """The network in JSON: what `build` makes it of. sizes: tokens of both vocabularies."""
    o = options
    description: dict[str, Any] = {
        "geometry": o.geometry,
        "vocabularies": list(sizes),
        "shared": o.vocabulary == "shared",
        "positions": o.max_length + EXTRA,
        "dim": o.dim,
        "layers": o.layers,
        "heads": o.heads,
        "width": o.width,
        "dropout": o.dropout,
        "attention_dropout": o.attention_dropout,
    }
    own = {"curvature": o.curvature} if o.geometry == "hyperbolic" else {"norm": o.norm or "pre"}
    return description | own


def build(description: Mapping[str, Any]) -> Translator:
    """A new network, initialised from torch's global random numbers.

    The head's weights are the target's embeddings, and with a shared vocabulary the source's, too.
    Raises UsageError for what describes no network.
    """
    try:
        d = dict(description)
        make = {"euclidean": _euclidean, "hyperbolic": _hyperbolic}[d["geometry"]]
        return make(d, (d["vocabularies"][0], d["vocabularies"][1]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UsageError(f"the description of a network is damaged: {error!r}") from None


def _euclidean(d: dict[str, Any], sizes: tuple[int, int]) -> Translator:
    dim, pre = d["dim"], d["norm"] == "pre"
    target = euclidean.table(sizes[1], dim)
    source = target if d["shared"] else euclidean.table(sizes[0], dim)
    embed = partial(euclidean.Embedding, positions=d["positions"], dropout=d["dropout"])
    how = (dim, d["heads"], d["width"], d["norm"], d["dropout"], d["attention_dropout"])
    model = Translator(
        embed(source),
        embed(target),
        [euclidean.Encoder(*how) for _ in range(d["layers"])],
        [euclidean.Decoder(*how) for _ in range(d["layers"])],
        (nn.LayerNorm(dim), nn.LayerNorm(dim)) if pre else (nn.Identity(), nn.Identity()),
        euclidean.Head(target),
    )
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def _hyperbolic(d: dict[str, Any], sizes: tuple[int, int]) -> Translator:
    from spectrain.tasks.translate import hyperbolic

    dim, curvature = d["dim"], d["curvature"]
    target = hyperbolic.table(sizes[1], dim, curvature)
    source = target if d["shared"] else hyperbolic.table(sizes[0], dim, curvature)
    embed = partial(
        hyperbolic.Embedding,
        positions=d["positions"],
        dropout=d["dropout"],
        curvature=curvature,
    )
    how = (dim, d["heads"], d["width"], d["dropout"], d["attention_dropout"], curvature)
    return Translator(
        embed(source),
        embed(target),
        [hyperbolic.Encoder(*how) for _ in range(d["layers"])],
        [hyperbolic.Decoder(*how) for _ in range(d["layers"])],
        (nn.Identity(), nn.Identity()),
        hyperbolic.head(target, curvature),
    )
