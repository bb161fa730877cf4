"""A plain checkpoint whose layers keep their largest singular values alone, made one matrix at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from spectrain.diagnostics.spectrum import singular_values
from spectrain.errors import NonFiniteError, RunError
from spectrain.pruning import Pruning, relative_change, thin_factors, thin_is_smaller, truncated
from spectrain.runs.factored import Plain

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class PrunedLayer:
    """What became of one layer's W (m, n)."""

    name: str
    shape: tuple[int, int]
    rank: int
    share: float  # of the sum of its singular values that is kept
    change: float  # ‖W − W_r‖_F / ‖W‖_F
    is_thin: bool  # whether two factors have fewer numbers than W

    @property
    def dense(self) -> int:
        """Numbers of W, and multiplications of W x."""
        return self.shape[0] * self.shape[1]

    @property
    def least(self) -> int:
        """The same of the smaller form, W or two factors."""
        return self.rank * sum(self.shape) if self.is_thin else self.dense


@dataclass(frozen=True)
class Pruned:
    """What pruning did to a model."""

    pruning: Pruning
    factored: bool  # whether thin layers are stored as two factors
    layers: tuple[PrunedLayer, ...]
    parameters: tuple[int, int]  # of the whole checkpoint, before and after
    bytes: tuple[int, int]

    @property
    def ratio(self) -> float:
        """Multiplications of the pruned layers in their smaller form, over those of dense ones."""
        return sum(layer.least for layer in self.layers) / sum(layer.dense for layer in self.layers)

    @property
    def most_changed(self) -> PrunedLayer:
        """The layer of the largest relative change."""
        return max(self.layers, key=lambda layer: layer.change)


def prune(
    plain: Plain, pruning: Pruning, *, factored: bool, progress: Progress
) -> tuple[Plain, Pruned]:
    """The same checkpoint with pruned layers, and what is different.

    Every layer's spectrum is taken first, since a threshold for all needs all of them and a file's header
    the ranks; the matrices are decomposed when they are made. factored: layers whose two factors
    have fewer numbers are stored as `left` (m, r) and `right` (r, n). progress is called before each
    spectrum. Raises RunError if a matrix has NaN or infinite entries.
    """
    spectra = {}
    for i, layer in enumerate(plain.layers):
        progress(i, len(plain.layers), layer)
        spectra[layer] = _spectrum(plain, layer)
    layers = []
    for name, rank in pruning.ranks(spectra).items():
        shape = _shape(plain, name)
        s, whole = spectra[name], float(spectra[name].sum())
        layers.append(
            PrunedLayer(
                name,
                shape,
                rank,
                share=float(s[:rank].sum()) / whole if whole else 1.0,
                change=relative_change(s, rank),
                is_thin=thin_is_smaller(rank, shape),
            )
        )
    thin = {layer.name: layer.rank for layer in layers if factored and layer.is_thin}
    made = _Maker(plain, {layer.name: layer.rank for layer in layers}, thin)
    after = replace(plain, like=_like(plain, thin), make=made)
    counts = [sum(t.numel() for t in p.like.values()) for p in (plain, after)]
    return after, Pruned(
        pruning,
        factored,
        tuple(layers),
        parameters=(counts[0], counts[1]),
        bytes=(_bytes(plain.like), _bytes(after.like)),
    )


def thin_ranks(pruned: Pruned) -> dict[str, int]:
    """The layers that are stored as two factors, with their ranks."""
    return {layer.name: layer.rank for layer in pruned.layers if pruned.factored and layer.is_thin}


class _Maker:
    """Makes the pruned tensors by name. Of two factors, the second waits until it is asked for."""

    def __init__(self, plain: Plain, ranks: Mapping[str, int], thin: Mapping[str, int]) -> None:
        self.plain, self.ranks, self.thin = plain, ranks, thin
        self.waiting: dict[str, Tensor] = {}

    def __call__(self, name: str) -> Tensor:
        layer, _, kind = name.rpartition(".")
        if layer in self.thin and kind in ("left", "right"):
            if name not in self.waiting:
                weight = self.plain.make(f"{layer}.weight")
                W = weight.mT if self.plain.layers[layer] else weight
                left, right = thin_factors(W, self.thin[layer])
                self.waiting |= {f"{layer}.left": left, f"{layer}.right": right}
            return self.waiting.pop(name)
        tensor = self.plain.make(name)
        if layer in self.ranks and kind == "weight":
            return truncated(tensor, self.ranks[layer]).contiguous()
        return tensor


def _spectrum(plain: Plain, layer: str) -> Tensor:
    try:
        return singular_values(plain.make(f"{layer}.weight"))
    except NonFiniteError:
        raise RunError(
            f"{layer}.weight has NaN or infinite entries, so it cannot be pruned: take an earlier one"
        ) from None


def _shape(plain: Plain, layer: str) -> tuple[int, int]:
    """(m, n), out × in."""
    rows, columns = plain.like[f"{layer}.weight"].shape
    return (columns, rows) if plain.layers[layer] else (rows, columns)


def _like(plain: Plain, thin: Mapping[str, int]) -> dict[str, Tensor]:
    """What the tensors are like when these layers are two factors, which stand where W stood."""
    like: dict[str, Tensor] = {}
    for name, tensor in plain.like.items():
        layer, _, kind = name.rpartition(".")
        if layer in thin and kind == "weight":
            m, n = _shape(plain, layer)
            shapes = {"left": (m, thin[layer]), "right": (thin[layer], n)}
            like |= {f"{layer}.{k}": tensor.new_empty(shape) for k, shape in shapes.items()}
        else:
            like[name] = tensor
    return like


def _bytes(like: Mapping[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in like.values())
