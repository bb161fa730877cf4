"""How far training turned the leading singular vectors of a matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from spectrain.diagnostics.spectrum import Eigen
from spectrain.errors import UsageError

LEADING = 10  # k of the paper on intruder dimensions
THRESHOLD = 0.5  # its ε


def principal_angles(
    first: Tensor,  # (d, r), orthonormal columns
    second: Tensor,  # (d, q), orthonormal columns
) -> Tensor:  # (min(r, q),), radians, ascending
    """The principal angles between the spans of two bases, from 0 to π/2.

    Björck & Golub, "Numerical methods for computing angles between linear subspaces", 1973: cosines are
    the singular values of AᵀB, sines those of B − A AᵀB. Either alone loses half of the digits at one
    end, so angles below 45° are taken from the sines. Raises UsageError if the columns differ in length.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[0] != second.shape[0]:
        shapes = " and ".join(" × ".join(map(str, b.shape)) for b in (first, second))
        raise UsageError(
            f"two bases of one space are needed, with vectors as columns, not {shapes}"
        )
    wide, narrow = (first, second) if first.shape[1] >= second.shape[1] else (second, first)
    wide, narrow = wide.double(), narrow.double()
    if not narrow.shape[1]:
        return narrow.new_empty(0)
    product = wide.mT @ narrow
    cosines = torch.linalg.svdvals(product).clamp(max=1)
    sines = torch.linalg.svdvals(narrow - wide @ product).flip(0).clamp(max=1)
    # A line in a plane has more rows than columns: both lists have min(r, q) entries, in one order.
    return torch.where(sines.square() < 0.5, sines.asin(), cosines.acos())


def intruder_dimensions(
    trained: Eigen | Tensor,  # W' (m, n)
    base: Eigen | Tensor,  # W (m, n)
    *,
    leading: int = LEADING,
    threshold: float = THRESHOLD,
    side: str = "left",
) -> list[int]:
    """Which of the `leading` singular vectors of W' resemble none of W: their places, from 0.

    u'_j is an intruder dimension if max_i |⟨u'_j, u_i⟩| < threshold over all singular vectors u_i of W
    (Shuttleworth et al., "LoRA vs Full Fine-tuning: An Illusion of Equivalence", 2024; left vectors,
    k = 10 and ε = 0.5 there). side: "right" for matrices stored as (in, out), like embeddings.
    Nearly equal singular values turn their vectors freely, so they make intruders of their own; vectors
    whose singular value counts as 0 are left out on both sides.

    Raises UsageError if the shapes differ, `leading` is below 1, `threshold` outside of 0 to 1 or `side`
    neither "left" nor "right", and as `singular_values` does.
    """
    if leading < 1 or not 0 <= threshold <= 1 or side not in ("left", "right"):
        raise UsageError(
            f"leading={leading}, threshold={threshold}, side={side!r}: give at least 1 vector, a threshold "
            "from 0 to 1, and left or right"
        )
    after = trained if isinstance(trained, Eigen) else Eigen(trained)
    before = base if isinstance(base, Eigen) else Eigen(base)
    if after.matrix.shape != before.matrix.shape:
        raise UsageError("intruder dimensions need two matrices of one shape")
    if side == "left":
        overlaps = before.along_left(after.left(leading))
    else:
        overlaps = before.along_right(after.right(leading))
    if not before.rank:
        return list(range(overlaps.shape[1]))
    places: list[int] = (overlaps.abs().amax(0) < threshold).nonzero().squeeze(1).tolist()
    return places
