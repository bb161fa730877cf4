"""Every matrix of a checkpoint measured, and its change since another checkpoint: one at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spectrain.diagnostics.matrices import as_matrix
from spectrain.diagnostics.measures import RANK, Difference, Measures, compare, measure
from spectrain.errors import NonFiniteError, RunError, UsageError
from spectrain.runs.weights import Stored, Weights, open_weights

FORMAT = 1
MEASURED = ("F64", "F32", "BF16", "F16")
IGNORED = ("I64", "BOOL")  # positions, indices, masks: whole numbers that are no weights


@dataclass(frozen=True)
class Layer:
    """One matrix: its measures and, against another checkpoint, its change."""

    name: str
    measures: Measures
    difference: Difference | None

    @property
    def kind(self) -> str:
        """The name with its numbers as stars: what equal places of all blocks have in common."""
        return ".".join("*" if part.isdecimal() else part for part in self.name.split("."))


@dataclass(frozen=True)
class Inspection:
    """What was measured of a checkpoint."""

    checkpoint: str
    against: str | None
    rank: int  # of the subspaces compared
    layers: list[Layer]  # in the order of their names, blocks by number
    vectors: int  # tensors of fewer than two dimensions, which are not measured
    vector_numbers: int  # how many numbers they have
    unmatched: list[str]  # selected matrices that the other checkpoint lacks, measured alone

    @property
    def numbers(self) -> int:
        """How many numbers the measured matrices have."""
        return sum(math.prod(layer.measures.shape) for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """All of it, for a JSON file; angles in radians, infinite ratios null."""
        layers = [asdict(layer) | {"kind": layer.kind} for layer in self.layers]
        totals = {
            "matrices": len(self.layers),
            "numbers": self.numbers,
            "vectors_left_out": self.vectors,
            "numbers_left_out": self.vector_numbers,
        }
        head = {"format": FORMAT, "checkpoint": self.checkpoint, "against": self.against}
        rest = {"rank": self.rank, "unmatched": self.unmatched, "totals": totals, "layers": layers}
        finite: dict[str, Any] = _finite(head | rest)
        return finite


def by_kind(layers: Sequence[Layer]) -> dict[tuple[str, tuple[int, int]], list[Layer]]:
    """Layers of one kind and one shape together, in the order of the first of each."""
    groups: dict[tuple[str, tuple[int, int]], list[Layer]] = {}
    for layer in layers:
        groups.setdefault((layer.kind, layer.measures.shape), []).append(layer)
    return groups


def inspect(
    path: Path,
    against: Path | None = None,
    layers: str | None = None,
    rank: int = RANK,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> Inspection:
    """Measure every matrix of the checkpoint at `path` (`open_weights` says what it may be).

    against: another one to measure the change from. layers: a regular expression, searched for in names.
    rank: of the leading subspaces that are compared. progress is called before each matrix.

    Tensors of two and more dimensions are taken, embeddings among them; those of more are flattened to
    (first, rest). At any time one matrix of each checkpoint is in memory. Everything that can be refused
    without reading a matrix is refused first.

    Raises UsageError if nothing is selected, a tensor is quantised, nothing corresponds or shapes differ,
    RunError if a file is damaged or a matrix has NaN or infinite entries.
    """
    pattern = _pattern(layers)
    new = open_weights(path)
    old = None if against is None else open_weights(against)
    chosen = {n: s for n, s in new.tensors.items() if pattern.search(n)}
    names = sorted((n for n, s in chosen.items() if _is_matrix(n, s, new.title)), key=_natural)
    if not names:
        which = "no matrix" if layers is None else f"no matrix whose name has {layers!r}"
        raise UsageError(f"{new.title} has {which} among its {len(new.tensors)} tensors")
    unmatched = [] if old is None else [name for name in names if name not in old.tensors]
    if old is not None:
        _require_same_shapes(names, new, old)
    found = []
    for i, name in enumerate(names):
        progress(i, len(names), name)
        found.append(_layer(name, new, None if name in unmatched else old, rank))
    vectors = [s for s in chosen.values() if len(s.shape) < 2]
    return Inspection(
        checkpoint=new.title,
        against=None if old is None else old.title,
        rank=rank,
        layers=found,
        vectors=len(vectors),
        vector_numbers=sum(math.prod(s.shape) for s in vectors),
        unmatched=unmatched,
    )


def _layer(name: str, new: Weights, old: Weights | None, rank: int) -> Layer:
    """One matrix read and measured; none of it outlives the call."""
    matrix = as_matrix(new.read(name))
    other = None if old is None else as_matrix(old.read(name))
    try:
        if other is None:
            return Layer(name, measure(matrix), None)
        return Layer(name, *compare(matrix, other, rank))
    except NonFiniteError:
        where = old if old is not None and matrix.isfinite().all() else new
        raise RunError(
            f"{name} of {where.title} has NaN or infinite entries, so it has no spectrum: take an earlier "
            "checkpoint, or leave it out with --layers"
        ) from None


def _is_matrix(name: str, stored: Stored, title: str) -> bool:
    if len(stored.shape) < 2 or 0 in stored.shape or stored.dtype in IGNORED:
        return False
    if stored.dtype not in MEASURED:
        raise UsageError(
            f"{name} of {title} is stored as {stored.dtype}: quantised weights are not measured; save the "
            "model dequantised, or leave such tensors out with --layers"
        )
    return True


def _require_same_shapes(names: list[str], new: Weights, old: Weights) -> None:
    common = [name for name in names if name in old.tensors]
    if not common:
        raise UsageError(
            f"{old.title} has none of the matrices of {new.title} (the first is {names[0]}): compare "
            "checkpoints of one model"
        )
    for name in common:
        shapes = [" × ".join(map(str, w.tensors[name].shape)) for w in (new, old)]
        if shapes[0] != shapes[1]:
            raise UsageError(
                f"{name} is {shapes[0]} in {new.title} and {shapes[1]} in {old.title}: compare checkpoints "
                "of one model, or leave it out with --layers"
            )
        _is_matrix(name, old.tensors[name], old.title)  # refuses quantised weights


def _pattern(layers: str | None) -> re.Pattern[str]:
    try:
        return re.compile(layers or "")
    except re.error as error:
        raise UsageError(f"--layers {layers} is no regular expression: {error}") from None


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts layer 10 behind layer 9."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def _finite(value: Any) -> Any:
    """The same with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
