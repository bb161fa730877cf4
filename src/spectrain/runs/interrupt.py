"""Ctrl-C and SIGTERM: the first asks the run to save and leave, the second leaves at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SAME = 2.0  # seconds within which a forwarded signal is the one that came directly


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop has saved and left; the message says how to continue."""


class StopRequest:
    """Whether a stop was asked for, once (`asked`) or more often (`again`)."""

    def __init__(self, say: Callable[[str], None], forwarded: bool = False) -> None:
        """forwarded: a launcher passes on the signal that the terminal sent to all of its processes."""
        self.asked = self.again = False
        self._say = say
        self._steps = False
        self._forwarded = forwarded
        self._when = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            if self._forwarded and time.monotonic() - self._when < SAME:
                return
            self.again = True
            raise KeyboardInterrupt
        self.asked, self._when = True, time.monotonic()
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
def stop_on_signal(say: Callable[[str], None], forwarded: bool = False) -> Iterator[StopRequest]:
    """Within the block, SIGINT and SIGTERM go to the request; outside they are what they were.

    Where training cannot stop in good order, and at the second signal, KeyboardInterrupt is raised.
    """
    request = StopRequest(say, forwarded)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {n: signal.signal(n, request) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
