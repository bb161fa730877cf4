"""A picture of the images that a network takes for something else."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

COLUMNS = 6
MOST = 18  # images in the picture
LONGEST = 16  # characters of a class's name


def mistakes(
    pixels: Tensor,  # (N, C, H, W), uint8
    labels: Tensor,  # (N,)
    probabilities: Tensor,  # (N, classes) that the network gives
    classes: Sequence[str],
) -> bytes | None:
    """The images it is most confidently wrong about, the worst first, as a PNG; None if there are none."""
    confidence, predicted = probabilities.max(1)
    wrong = (predicted != labels).nonzero().flatten()
    if not len(wrong):
        return None
    chosen = wrong[confidence[wrong].argsort(descending=True, stable=True)[:MOST]].tolist()
    rows = -(-len(chosen) // COLUMNS)
    figure = Figure(figsize=(1.5 * COLUMNS, 2.05 * rows), dpi=120, layout="constrained")
    for axes in figure.subplots(rows, COLUMNS, squeeze=False).flat:
        axes.axis("off")
    for axes, number in zip(figure.axes, chosen, strict=False):
        image = pixels[number].permute(1, 2, 0).squeeze(-1).numpy()
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        is_, taken = (_short(classes[int(of[number])]) for of in (labels, predicted))
        text = f"is {is_}\ntaken for {taken}\nat {100 * confidence[number]:.0f} %"
        axes.set_title(text, fontsize=8, parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
