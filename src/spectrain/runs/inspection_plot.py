"""The picture of an inspection: spectra by kind of matrix, and how the blocks differ in rank or change."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from spectrain.runs.canvas import draw_spectrum, legible, save, style_of
from spectrain.runs.inspection import Inspection, Layer, by_kind

KINDS = 14  # at most so many in a picture, those of the most numbers


def plot_inspection(found: Inspection, path: Path) -> Path:
    """Draw singular values by kind (medians over equal places of all blocks, over s₁), and beside it a map
    of kinds by blocks where there are several: effective rank over size, or the relative change.

    Raises RunError if `path` cannot be written.
    """
    kinds = _kinds(found)
    blocks = sorted(
        {b for layers in kinds.values() for x in layers if (b := _block(x)) is not None}
    )
    has_map = len(blocks) > 1
    figure = Figure(figsize=(12 if has_map else 7, 4.8), dpi=150, layout="constrained")
    axes: Any = figure.subplots(1, 2 if has_map else 1, squeeze=False)[0]
    _draw_spectra(axes[0], kinds)
    if has_map:
        _draw_map(figure, axes[1], kinds, blocks)
    figure.suptitle(legible(found.checkpoint), fontsize=10)
    return save(figure, path)


def _kinds(found: Inspection) -> dict[str, list[Layer]]:
    """Matrices by kind and shape, with the label that the picture has for them."""
    groups = by_kind(found.layers)
    largest = sorted(groups, key=lambda key: -len(groups[key]) * math.prod(key[1]))[:KINDS]
    shown = [key for key in groups if key in largest]
    short = [kind.rpartition("*.")[2] for kind, _ in shown]
    labels = {}
    for (kind, shape), name in zip(shown, short, strict=True):
        # Encoder and decoder may have parts of one name: those are shown with all of it.
        named = (name if short.count(name) == 1 else kind).removesuffix(".weight")
        labels[f"{legible(named)} {shape[0]}×{shape[1]}"] = groups[kind, shape]
    return labels


def _draw_spectra(axes: Any, kinds: dict[str, list[Layer]]) -> None:
    for i, (label, layers) in enumerate(kinds.items()):
        relative = [
            np.array(x.measures.singular_values) / x.measures.spectral_norm
            for x in layers
            if x.measures.spectral_norm
        ]
        if relative:
            look = style_of(i) | {"marker": None}
            draw_spectrum(axes, np.median(relative, axis=0).tolist(), label=label, **look)
    axes.set_xlabel("index")
    axes.set_ylabel("singular value / the largest")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7)


def _draw_map(figure: Figure, axes: Any, kinds: dict[str, list[Layer]], blocks: list[int]) -> None:
    """A row for each kind that stands in several blocks, a column for each block."""
    compared = any(x.difference is not None for layers in kinds.values() for x in layers)
    rows = {label: layers for label, layers in kinds.items() if len(layers) > 1}
    table = np.full((len(rows), len(blocks)), np.nan)
    for i, layers in enumerate(rows.values()):
        for layer in layers:
            block = _block(layer)
            if block is not None:
                table[i, blocks.index(block)] = _value(layer, compared)
    image = axes.imshow(table, aspect="auto", cmap="viridis", interpolation="nearest")
    axes.set_yticks(range(len(rows)), list(rows), fontsize=7)
    step = max(1, len(blocks) // 10)
    axes.set_xticks(range(0, len(blocks), step), [str(b) for b in blocks[::step]])
    axes.set_xlabel("block")
    label = "‖ΔW‖ / ‖W‖" if compared else "effective rank / largest possible"
    figure.colorbar(image, ax=axes, label=label)


def _value(layer: Layer, compared: bool) -> float:
    if not compared:
        return layer.measures.effective_rank / layer.measures.size
    change = math.nan if layer.difference is None else layer.difference.relative_change
    return change if math.isfinite(change) else math.nan


def _block(layer: Layer) -> int | None:
    """The first number in the name: the block that the matrix stands in."""
    found = re.search(r"(?:^|\.)(\d+)\.", layer.name)
    return int(found[1]) if found else None
