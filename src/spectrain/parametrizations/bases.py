"""Where the basis of a projected layer is kept: as numbers, as a seed, or as indices into a table."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from spectrain.abstract import is_abstract
from spectrain.errors import UsageError
from spectrain.linalg import cosine_basis, gaussian, orthogonality_error
from spectrain.parametrizations.base import event_generator
from spectrain.parametrizations.projected import Projected

if TYPE_CHECKING:
    from spectrain.method import Method


class StoredBasis(Projected):
    """A basis of any r orthonormal rows: the frozen parameter `basis` (r, a).

    Buffer `refreshed_at`: number of the step whose gradient the basis is from, −1 for none.
    """

    refreshed_at: Tensor

    def __init__(self, linear: nn.Module, method: Method, **settings: Any) -> None:
        super().__init__(linear, method, **settings)
        self.basis = nn.Parameter(
            self.R.detach().new_zeros(self.rank, self.length), requires_grad=False
        )
        self._refreshed: int | None = None  # the buffer's value: looking there may stall a GPU
        self.register_buffer("refreshed_at", torch.full((), -1, device=self.base.device))

    def table(self) -> tuple[Tensor, None]:
        return self.basis, None

    def drift(self) -> Tensor:
        return orthogonality_error(self.basis)

    @property
    def last_refresh(self) -> int:
        """The value of `refreshed_at`."""
        if self._refreshed is None:
            self._refreshed = int(self.refreshed_at)
        return self._refreshed

    @torch.no_grad()
    def take_basis(self, basis: Tensor, step: int) -> None:
        """Hold `basis`, from the gradient of step number `step`."""
        self.basis.copy_(basis)
        self.refreshed_at.fill_(step)
        self._refreshed = None

    def require_untouched_gradient(self) -> None:
        """Refuse a gradient of R that was clipped or scaled after the backward pass.

        A same-step refresh derives the new one from `gathered`, which would undo that.
        """
        if self.gathered is None or self.R.grad is None or is_abstract(self.R):
            return
        if not self.R.grad.isfinite().all():
            return
        expected = self.down(self.gathered)
        factor = (self.R.grad * expected).sum() / expected.square().sum()
        if abs(float(factor) - 1) > 1e-2:  # more than rounding in bf16
            raise UsageError(
                f"{self.method.title}: gradients were clipped or scaled between backward and step, "
                "which refresh='same_step' would undo; use refresh='next_step'"
            )

    def forget(self) -> None:
        super().forget()
        self._refreshed = None


class SeededBasis(Projected):
    """A random basis, N(0, 1/r), drawn anew every `period` steps: nothing of it is state.

    It follows from the layer's seed and the clock. Drawn on the CPU, so that it is the same on every
    device, it is held until the next one is due.
    """

    _passing = (*Projected._passing, "_drawn")

    def __init__(self, linear: nn.Module, method: Method, *, period: int, **settings: Any) -> None:
        super().__init__(linear, method, **settings)
        self.period = period
        self._drawn: Tensor | None = None  # (r, a)
        self._number = 0  # of the period that it was drawn for
        self.resident += ("_drawn",)

    def table(self) -> tuple[Tensor, None]:
        if self._drawn is None:
            self.draw(0 if is_abstract(self.clock) else int(self.clock))
        return self._drawn, None  # type: ignore[return-value]

    @torch.no_grad()
    def draw(self, clock: int) -> None:
        """Hold the basis of the step that begins at `clock`."""
        number = clock // self.period
        if self._drawn is None or self._number != number:
            self._drawn = None  # before there is a second one
            generator = event_generator(self, number)
            drawn = gaussian((self.rank, self.length), generator, like=self.R)
            self._drawn, self._number = drawn / math.sqrt(self.rank), number

    def forget(self) -> None:
        super().forget()
        self._drawn = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._drawn = None
        return super()._apply(fn, recurse)


class CosineBasis(Projected):
    """r rows of the cosine basis (a, a), which all layers of that size share.

    Buffer `indices` (r,): which rows. Frozen parameter `error` (m, n), if asked for: what projections
    have left out so far.
    """

    indices: Tensor
    _passing = (*Projected._passing, "_cosines")

    def __init__(
        self, linear: nn.Module, method: Method, *, keeps_error: bool, **settings: Any
    ) -> None:
        super().__init__(linear, method, **settings)
        self._cosines: Tensor | None = None  # (a, a), shared
        self.resident += ("_cosines",)
        self.register_buffer("indices", torch.arange(self.rank, device=self.base.device))
        self.error: nn.Parameter | None = None
        if keeps_error:
            nothing = self.R.detach().new_zeros(self.out_features, self.in_features)
            self.error = nn.Parameter(nothing, requires_grad=False)

    def table(self) -> tuple[Tensor, Tensor]:
        if self._cosines is None:
            self._cosines = _shared_cosines(self.length, self.R)
        return self._cosines, self.indices

    def transform(self, dense: Tensor) -> Tensor:
        """A matrix (m, n) in the coordinates of all cosines: (a, n) on the left, (m, a) on the right."""
        cosines = self.table()[0]
        return cosines @ dense if self.side == "left" else dense @ cosines.mT

    @torch.no_grad()
    def choose(self, rows: Tensor) -> Tensor:
        """Hold the cosines `rows` (r,); returns a mask (r,) of the places whose cosine is another now.

        One that was held already keeps its place, so that its moments are right where they are.
        """
        kept, known = torch.isin(self.indices, rows), torch.isin(rows, self.indices)
        # As many places are free as there are new rows: the i-th of these goes to the i-th of those.
        free, new = (flags.int().argsort(stable=True) for flags in (kept, known))
        filled = torch.empty_like(rows).index_copy_(0, free, rows[new])
        self.indices.copy_(torch.where(kept, self.indices, filled))
        return ~kept

    def forget(self) -> None:
        super().forget()
        self._cosines = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._cosines = None
        return super()._apply(fn, recurse)


_COSINES: WeakValueDictionary[object, Tensor] = WeakValueDictionary()


def _shared_cosines(size: int, like: Tensor) -> Tensor:
    """One cosine basis for each size, dtype and device, alive while a layer holds it."""
    key = size, like.dtype, like.device, id(getattr(like, "fake_mode", None))
    found = _COSINES.get(key)
    if found is None:
        found = _COSINES[key] = cosine_basis(size, like=like)
    return found
