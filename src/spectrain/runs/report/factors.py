"""What the factors of one run did during training: the figures of its dynamics.jsonl."""

import numpy as np

from spectrain.runs.report.axes import Array, number
from spectrain.runs.report.chart import Chart, figure_of
from spectrain.runs.report.dynamics import Draws, Dynamics, Spectra, Spread
from spectrain.runs.report.heatmap import COLUMNS, heatmap, scale
from spectrain.runs.report.page import grid, paragraph, table
from spectrain.runs.report.series import Series

SHADES = 64  # of a spectrum
DECADES = 3  # below the largest singular value
# The shades of draws: how many draws ago the latest was that a vector took part in.
AGES = ("never yet", "32 or more", "16–31", "8–15", "4–7", "2–3", "1", "trains now")
VECTORS = 128  # rows of a map of draws
DRAWS = 256  # of a map


def norms(dynamics: Dynamics) -> str:
    """Gradient norms, update-to-weight ratios and drift over steps."""
    drift = dynamics.drift()
    return grid(
        [
            _spreads(
                "Gradient norms",
                "Frobenius norms of the factors' gradients before clipping: median over layers, with "
                "a band from the least to the largest.",
                "norm of the gradient",
                dynamics.by_factor("gradient"),
            ),
            _spreads(
                "Update-to-weight ratios",
                "How far one step moved a factor over its norm: median over layers, with a band from "
                "the least to the largest. About 1e-3 is common.",
                "‖change‖ / ‖factor‖",
                dynamics.by_factor("update"),
            ),
            _spreads(
                "Orthogonality drift",
                "The largest entry of |UᵀU − I| of a layer's singular vectors: median over layers, "
                "with a band from the least to the largest.",
                "drift",
                {"drift": drift} if drift else {},
            ),
        ]
    )


def _spreads(title: str, caption: str, label: str, spreads: dict[str, Spread]) -> str:
    series = [
        Series(factor, s.steps, s.median, look, s.low, s.high)
        for look, (factor, s) in enumerate(spreads.items(), 1)
    ]
    return figure_of(Chart(title, caption, "step", label, series, logarithmic=True))


def alarms(dynamics: Dynamics) -> str:
    """Where the saddle alarm rang."""
    rang = dynamics.saddles()
    if not rang:
        return ""
    rows = [(layer, number(steps[0]), number(steps[-1])) for layer, steps in rang.items()]
    lead = "Gradients of these layers stayed near zero after a restart of their factors:"
    return paragraph(lead) + table(("layer", "from step", "to step"), rows)


def spectra_maps(dynamics: Dynamics) -> str:
    """Singular values of layers over training, with one scale for all."""
    found = dynamics.spectra()
    largest = max((float(s.values.max()) for s in found.values()), default=0.0)
    if largest <= 0:
        return ""
    high = np.log10(largest)
    positive = np.concatenate([s.values[s.values > 0] for s in found.values()])
    # The few that are nearly zero would leave no shades for the others.
    low = min(max(np.log10(np.quantile(positive, 0.05)), high - DECADES), high - 0.1)
    by_index = all(s.size for s in found.values())  # one kind of axis for all maps
    maps = [_spectra_map(layer, s, low, high, by_index) for layer, s in found.items()]
    lead = (
        "Singular values of W by layer: the largest at the top, steps from left to right. All maps "
        "have one scale of logarithms; what is smaller still has its lightest shade. Point at a map to "
        "read a value."
    )
    ends = [number(float(f"{10**v:.2g}")) for v in np.linspace(low, high, 5)]
    return paragraph(lead) + scale(SHADES, ends) + grid(maps, "maps")


def _spectra_map(layer: str, spectra: Spectra, low: float, high: float, by_index: bool) -> str:
    """(n, t) shades of the logarithms of singular values."""
    places = np.log10(np.maximum(spectra.values, 10.0**low))
    shades = np.round((SHADES - 1) * np.clip((places - low) / (high - low), 0, 1))
    steps = spectra.steps
    first, last = float(steps[0]), float(steps[-1])
    at = np.linspace(first, last, COLUMNS)
    columns = np.abs(at[:, None] - steps).argmin(1)
    rows = (1.0, float(spectra.size)) if by_index else (0.0, 100.0)
    return heatmap(
        layer,
        f"Map of the singular values of {layer} over training",
        shades[columns].T.astype(np.uint8),
        SHADES,
        (first, last if last > first else first + 1),
        rows,
        {
            "kind": "spectra",
            "at": _numbers(steps),
            "values": ";".join(_numbers(row) for row in spectra.values),
            "rows": f"{rows[0]:g} {rows[1]:g}",
        },
        "index" if by_index else "rank from the largest (%)",
    )


def draw_maps(dynamics: Dynamics, last_step: float) -> str:
    """Which singular vectors trained when, by layer."""
    found = dynamics.draws()
    if not found:
        return ""
    lead = (
        "Singular vectors by index, steps from left to right: darkest while a vector trains, lighter "
        "the more draws ago it last did. The shades mean recorded draws since the latest that it was in:"
    )
    end = max(last_step, *(float(d.steps[-1]) for d in found.values()))
    maps = [_draw_map(layer, draws, end) for layer, draws in found.items()]
    rows = [(layer, *_counts(draws, end)) for layer, draws in found.items()]
    headings = (
        "layer",
        "vectors",
        "recorded draws",
        "times drawn",
        "never drawn",
        "longest wait now",
    )
    return paragraph(lead) + scale(len(AGES), AGES) + grid(maps, "maps") + table(headings, rows)


def _draw_map(layer: str, draws: Draws, end: float) -> str:
    """(rows, columns) shades of ages; of many vectors or draws every so many are shown."""
    vectors = np.arange(0, draws.size, -(-draws.size // VECTORS))
    chosen = np.arange(0, len(draws.steps), -(-len(draws.steps) // DRAWS))
    ages = draws.ages()[np.ix_(chosen, vectors)]
    # 0: shade 7; 1: 6; 2 and 3: 5; 4 to 7: 4; … and never: 0.
    shades = np.clip(len(AGES) - 1 - np.ceil(np.log2(np.maximum(ages, 0) + 1.0)), 1, None)
    shades = np.where(ages < 0, 0, shades)
    steps = draws.steps[chosen]
    first = float(steps[0])
    end = max(end, first + 1)
    middles = first + (np.arange(COLUMNS) + 0.5) / COLUMNS * (end - first)
    columns = np.searchsorted(steps, middles, side="right") - 1
    few = f"; every {vectors[1] - vectors[0]}th vector" if draws.size > VECTORS else ""
    shown = draws.drawn[np.ix_(chosen, vectors)]
    masks = [np.packbits(row, bitorder="little").tobytes().hex() for row in shown]
    return heatmap(
        layer,
        f"Map of the singular vectors of {layer} that trained at each step{few}",
        shades[columns].T.astype(np.uint8),
        len(AGES),
        (first, end),
        (1.0, float(vectors[-1] + 1)),
        {
            "kind": "draws",
            "at": _numbers(steps),
            "values": ";".join(masks),
            "rows": f"1 {vectors[-1] + 1}",
            "shown": str(len(vectors)),
        },
        "index of vector",
    )


def _counts(draws: Draws, end: float) -> tuple[str, ...]:
    times = draws.drawn.sum(0)
    latest = np.where(times > 0, len(draws.steps) - 1 - draws.drawn[::-1].argmax(0), -1)
    # A vector trains until the next draw.
    until = np.append(draws.steps[1:], end)
    waits = np.where(latest >= 0, end - until[latest], -1.0)
    wait = float(waits.max())
    return (
        number(float(draws.size)),
        number(float(len(draws.steps))),
        f"{times.mean():.2f} ({times.min()}–{times.max()})",
        number(float((times == 0).sum())),
        f"{number(wait)} steps" if wait >= 0 else "–",
    )


def _numbers(values: Array) -> str:
    return " ".join(f"{value:.5g}" if value < 1e5 else f"{value:.0f}" for value in values)
