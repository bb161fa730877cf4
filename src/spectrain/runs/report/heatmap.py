"""Maps over training: steps across, singular values or vectors downwards, each cell a shade.

The shades are one hue from light to dark, evenly spaced in lightness; in the dark theme report.css
turns them round. report.js reads the values under the pointer from the attributes of the figure.
"""

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spectrain.runs.report.axes import Axis, number

WIDTH, HEIGHT = 340, 236
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 8, 40
COLUMNS = 160  # of a map's picture
LIGHT, DARK = (94.0, 4.0), (22.0, 34.0)  # lightness and chroma of CIELAB at both ends
HUE = np.deg2rad(262.0)  # blue


def shades(count: int) -> NDArray[np.uint8]:
    """(count, 3) colours of one hue from light to dark, evenly spaced in CIELAB's lightness."""
    t = np.linspace(0.0, 1.0, count)[:, None]
    lightness = LIGHT[0] + t * (DARK[0] - LIGHT[0])
    # Most chroma in the middle, where the screen's gamut has room for it.
    chroma = LIGHT[1] + t * (DARK[1] - LIGHT[1]) + 22.0 * t * (1 - t)
    a, b = chroma * np.cos(HUE), chroma * np.sin(HUE)
    f = (lightness + 16) / 116 + np.hstack([a / 500, np.zeros_like(a), -b / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.9505, 1.0, 1.089)
    from_xyz = np.array(
        [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.204, 1.057]]
    )
    linear = np.clip(xyz @ from_xyz.T, 0, 1)
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    found: NDArray[np.uint8] = np.round(255 * rgb).astype(np.uint8)
    return found


def image(levels: NDArray[np.uint8], count: int) -> str:
    """PNG of (rows, columns) `levels` below `count` as a data address."""
    picture = Image.fromarray(levels)
    picture.putpalette(shades(count).tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def heatmap(
    title: str,
    label: str,
    levels: NDArray[np.uint8],  # (rows, columns)
    count: int,  # of levels
    steps: tuple[float, float],  # first and last, at the edges of the map
    rows: tuple[float, float],  # index of the first and of the last row
    attributes: dict[str, str],  # data-* for the script
    y_label: str,
) -> str:
    """A figure; the first row is at the top."""
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    x = Axis(*steps)
    half = 0.5 * (rows[1] - rows[0]) / max(1, len(levels) - 1) or 0.5
    y = Axis(rows[1] + half, rows[0] - half)
    across = "".join(
        f'<text x="{LEFT + width * float(x.share(value)):.1f}" y="{TOP + height + 16}" '
        f'class="middle">{text}</text>'
        for value, text in x.ticks(4)
    )
    down = "".join(
        f'<text x="{LEFT - 5}" y="{TOP + height * (1 - float(y.share(value))) + 4:.1f}" '
        f'class="end">{text}</text>'
        for value, text in _rows(rows)
    )
    data = "".join(f' data-{name}="{escape(value)}"' for name, value in attributes.items())
    return (
        f'<figure class="map" data-steps="{steps[0]:.9g} {steps[1]:.9g}"{data}>'
        f"<h4>{escape(title)}</h4>"
        f'<svg class="picture" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">'
        f'<image class="shades" x="{LEFT}" y="{TOP}" width="{width}" height="{height}" '
        f'preserveAspectRatio="none" href="{image(levels, count)}"/>'
        f'<path class="axis" d="M{LEFT},{TOP}V{TOP + height}H{LEFT + width}"/>{across}{down}'
        f'<text x="{LEFT + width / 2:.0f}" y="{HEIGHT - 6}" class="middle">step</text>'
        f'<text transform="translate(11,{TOP + height / 2:.0f})rotate(-90)" class="middle">'
        f"{escape(y_label)}</text></svg><output></output></figure>"
    )


def scale(count: int, ends: Sequence[str]) -> str:
    """The scale of the shades: a bar with texts, evenly spaced from the lightest to the darkest."""
    levels = np.arange(count, dtype=np.uint8)[None]
    texts = "".join(f"<span>{escape(text)}</span>" for text in ends)
    return (
        f'<div class="scale"><img class="shades" alt="" src="{image(levels, count)}">'
        f"<div>{texts}</div></div>"
    )


def _rows(rows: tuple[float, float]) -> list[tuple[float, str]]:
    """Ticks of the axis of rows: its ends and what is round between them, not too close to them."""
    first, last = rows
    ticks = Axis(first, last).ticks(4) if last > first else []
    room = 0.09 * (last - first)
    inner = [t for t in ticks if first + room < t[0] < last - room]
    return [(first, number(first)), *inner, *([(last, number(last))] if last > first else [])]
