"""A small file system that a test may fill and make read-only; it goes with the test's process."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path


class SmallDisk:
    """A file system in a mount namespace that ends with the shell in it; no root is needed."""

    def __init__(self, place: Path) -> None:
        self._shell = subprocess.Popen(
            ["unshare", "--map-root-user", "--mount", "sh"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._place = place
        self.path = Path(f"/proc/{self._shell.pid}/root{place}")  # how others see what is mounted
        self.do("mount -t tmpfs -o size=6m none .")

    def do(self, command: str) -> None:
        """Run a command in the disk's folder; its own output is the reason if it fails."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        place = shlex.quote(str(self._place))
        with suppress(OSError):  # if it is gone, its output says why
            self._shell.stdin.write(f"cd {place} && {command} && echo ok || echo no\n")
            self._shell.stdin.flush()
        said = []
        while (line := self._shell.stdout.readline().strip()) not in ("ok", "no", ""):
            said.append(line)
        if line != "ok":
            raise OSError(" ".join(said) or "refused")

    def fill(self, room: int = 0) -> None:
        """Leave but `room` bytes."""
        ballast = (self.path / "ballast").open("ab", buffering=0)
        with ballast as file, suppress(OSError):  # others may be writing, too
            while (left := shutil.disk_usage(self.path).free - room) > 0:
                file.write(bytes(min(left, 2**20)))

    def clear(self) -> None:
        """Give the room back."""
        (self.path / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        self._shell.communicate()
