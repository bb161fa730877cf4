"""Final numbers of responses, and what a share of right ones may be by chance."""

from __future__ import annotations

import math
import re
from decimal import Decimal

MARK = (
    "####"  # before the final number of a response, in GSM8K (Cobbe et al. 2021, arXiv:2110.14168)
)
_NUMBER = re.compile(r"-?(?:\d[\d,]*)?\.?\d+")


def final_number(text: str, complete: bool = True) -> Decimal | None:
    """The number behind the last "####" of a text, or its last number where it has no such mark.

    A text that is not `complete`, that is, was cut off before its end, has come to a final number only if
    it has the mark. Commas between digits mean nothing, nor does what stands around a number ("$", a full
    stop).
    """
    behind = text.rpartition(MARK)
    found = _NUMBER.findall(behind[2])
    if not found or not (behind[1] or complete):
        return None
    return Decimal((found[0] if behind[1] else found[-1]).replace(",", ""))


def ends_in_number(text: str) -> bool:
    """Whether a text ends in "#### number"."""
    behind = text.rpartition(MARK)
    return bool(behind[1]) and _NUMBER.fullmatch(behind[2].strip()) is not None


def wilson(right: float, count: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The interval of a share in which `right` of `count` are observed (Wilson 1927).

    It holds the true share with a probability of about 95 % at the default z, also where few or almost
    all are right.
    """
    share = right / count
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
