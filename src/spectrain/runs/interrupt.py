"""Ctrl-C and SIGTERM: the first asks the run to save and leave, the second leaves at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop has saved and left; the message says how to continue."""


class StopRequest:
    """Whether a stop was asked for, once (`asked`) or more often (`again`)."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.asked = self.again = False
        self._say = say
        self._steps = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            self.again = True
            raise KeyboardInterrupt
        self.asked = True
        if not self._steps:
            raise KeyboardInterrupt
        with suppress(RuntimeError):  # the signal came while something else was being printed
            self._say("stopping after this step; again to leave now")

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Within the block a first signal only sets `asked`, which the block looks at in time."""
        self._steps = True
        try:
            yield
        finally:
            self._steps = False


@contextmanager
def stop_on_signal(say: Callable[[str], None]) -> Iterator[StopRequest]:
    """Within the block, SIGINT and SIGTERM go to the request; outside they are what they were.

    Where training cannot stop in good order, and at the second signal, KeyboardInterrupt is raised.
    """
    request = StopRequest(say)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {n: signal.signal(n, request) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
