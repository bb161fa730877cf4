"""What fits into a given memory: the largest batch, the largest rank."""

from __future__ import annotations

from collections.abc import Callable

from spectrain.memory.plan import Plan

LARGEST_BATCH = 2**20


def largest(make: Callable[[int], Plan], budget: int, most: int) -> tuple[int, Plan]:
    """The largest n ≤ most whose plan fits into `budget` bytes, with its plan; (0, plan of 1) if none.

    make: plan of n, a batch size or a rank. Peaks are affine in the batch, and nearly so in the
    rank, until another moment of the step becomes the highest; so each next n to try lies on the
    line through two known points, and the answer is one that was planned itself, as was n + 1.
    """
    known: dict[int, Plan] = {}

    def fits(n: int) -> bool:
        known.setdefault(n, make(n))
        return known[n].peak <= budget

    if not fits(1):
        return 0, known[1]
    low, high = 1, most + 1  # low fits; high does not, or is not allowed
    before, trial = 1, 2
    while high - low > 1:
        trial = min(max(trial, low + 1), high - 1)
        if fits(trial):
            before, low = low, trial
        else:
            high = trial
        trial = _on_the_line(known, low, high if high in known else before, budget)
        if len(known) % 4 == 0 and high in known:  # a line may close in from one side only, slowly
            trial = (low + high) // 2
    return low, known[low]


def _on_the_line(known: dict[int, Plan], a: int, b: int, budget: int) -> int:
    """Where the line through the peaks of a, which fits, and b reaches the budget."""
    slope = (known[b].peak - known[a].peak) / (b - a)
    return a + int((budget - known[a].peak) / slope) if slope > 0 else 2 * max(a, b)
