"""dynamics.jsonl with known content, for tests of reports: what `spectrain train` would have written."""

import json
import math
import random
from pathlib import Path

LAYERS = tuple(
    f"model.layers.{block}.self_attn.{name}_proj" for block in range(2) for name in "qkvo"
)
VECTORS, RANK = 24, 6


def gradient(step: int, place: int, factor: str) -> float:
    """Of the layer at `place`."""
    return (1 + place) * {"U": 0.1, "s": 0.02, "V": 0.3}[factor] * math.exp(-step / 300)


def singular(step: int, place: int, index: int) -> float:
    """The first ones grow."""
    return (2 - place / 10) * math.exp(-index / 8) * (1 + step / 400 * math.exp(-index / 3))


def drawn(step: int) -> list[int]:
    return sorted(random.Random(step).sample(range(VECTORS), RANK))


def mask(vectors: list[int]) -> str:
    return f"{sum(1 << vector for vector in vectors):x}"


def rows(steps: int = 400) -> list[dict]:
    """In the order of steps: draws every 40 of them, re-decomposed every 200, looks every 20."""
    found = [_spectra(0), _draw(0)]
    for step in range(20, steps + 1, 20):
        looks = {
            layer: {
                "gradient": {f: gradient(step, place, f) for f in ("U", "s", "V")},
                "update": {f: 1e-3 * gradient(step, place, f) for f in ("U", "s", "V")},
                "norm": {"U": 2.0},
                "drift": 1e-7 * (1 + step * (place + 1)),
            }
            for place, layer in enumerate(LAYERS)
        }
        if step in (140, 160):
            looks[LAYERS[3]]["saddle"] = True
        found.append({"step": step, "layers": looks})
        if step % 40 == 0:
            found.append({"step": step, "event": "resample", "layers": len(LAYERS)})
            found.append(_draw(step))
        if step % 200 == 0:
            found.append({"step": step, "event": "redecompose", "layers": len(LAYERS)})
        if step % 50 == 0:
            found.append(_spectra(step))
    return found


def _draw(step: int) -> dict:
    layers = LAYERS[:2]
    return {
        "step": step,
        "sampled": {layer: mask(drawn(step + place)) for place, layer in enumerate(layers)},
        "of": dict.fromkeys(layers, VECTORS),
    }


def _spectra(step: int) -> dict:
    values = {
        layer: [float(f"{singular(step, place, i):.4g}") for i in range(VECTORS)]
        for place, layer in enumerate(LAYERS)
    }
    return {"step": step, "spectra": values, "of": dict.fromkeys(LAYERS, VECTORS)}


def write_dynamics(directory: Path, steps: int = 400) -> None:
    lines = (json.dumps(row) + "\n" for row in rows(steps))
    (directory / "dynamics.jsonl").write_text("".join(lines))
