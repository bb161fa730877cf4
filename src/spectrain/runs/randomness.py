"""Random-number states: saved for every process, and given back to it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from spectrain.runs.processes import Team

_NAME = re.compile(r"rng/(cpu|cuda)(\.\d+)?")


def states(team: Team, device: torch.device) -> dict[str, Tensor]:
    """All processes' states by name: "rng/cpu" of the first, "rng/cpu.1" of the next; "rng/cuda"…"""
    found = {_name("cpu", rank): s for rank, s in enumerate(team.all(torch.get_rng_state()))}
    if device.type == "cuda":
        cuda = team.all(torch.cuda.get_rng_state())
        found |= {_name("cuda", rank): s for rank, s in enumerate(cuda)}
    return found


def is_state(name: str) -> bool:
    """Whether `name` is one of those that `states` gives."""
    return _NAME.fullmatch(name) is not None


def give_back(saved: Mapping[str, Tensor], team: Team, seed: int, step: int) -> None:
    """Go on with this process's state; with numbers of its own where there was no such process."""
    own = saved.get(_name("cpu", team.rank))
    if own is None:
        part(team, seed, step)
        return
    torch.set_rng_state(own)
    if (cuda := saved.get(_name("cuda", team.rank))) is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)


def part(team: Team, seed: int, step: int = 0) -> None:
    """Let every process but the first draw numbers of its own from here on, as for dropout."""
    if not team.first:
        torch.manual_seed(hash((seed, team.rank, step)) & 0x7FFF_FFFF_FFFF_FFFF)


def _name(device: str, rank: int) -> str:
    return f"rng/{device}" + (f".{rank}" if rank else "")
