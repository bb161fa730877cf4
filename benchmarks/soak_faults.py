"""What soak.py does to a run: processes killed and stopped, files damaged, a disk filled."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PATIENCE = 180  # seconds after which a process counts as hung
START_UP = (0.2, 4.0)  # seconds after its start in which a process is killed before it trains
SHORT = 0.03  # seconds, about a step: how long after the moment that was waited for, at most

KILLS = ("start-up", "step", "event", "event", "saving", "saving", "end")
STOPS = ("SIGTERM", "SIGINT", "SIGINT twice", "SIGTERM, then SIGKILL")
DISKS = ("full from the start", "filled while it trains")
DAMAGES = (
    *("truncated", "bit flipped", "file deleted", "manifest deleted", "foreign checkpoint"),
    *("half a row", "metrics deleted", "left-overs"),
)
PLACES = ("starting", "in a write", "at an event", "between events", "ending")
BALLAST = "ballast"
RUNNING: set[subprocess.Popen[bytes]] = set()  # what has to go if the soak itself is stopped


class Start:
    """The command once started; what it says goes to `said`."""

    def __init__(self, command: Sequence[str], directory: Path, said: Path) -> None:
        self.directory, self.said = directory, said
        self._rows = directory / "metrics.jsonl"
        self._before = self._file()
        with said.open("wb") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        RUNNING.add(self.process)

    def step(self) -> int | None:
        """The step of the newest row; None before this process has taken over the rows."""
        if self._file() in (None, self._before):
            return None
        with self._rows.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 400))
            lines = file.read().split(b"\n")[:-1]
        return int(json.loads(lines[-1])["step"]) if lines else None

    def has_reached(self, step: int) -> bool:
        """Whether this process has written the row of `step`, or a later one."""
        found = self.step()
        return found is not None and found >= step

    def is_saving(self) -> bool:
        """Whether a checkpoint is being written."""
        folder = self.directory / "checkpoints"
        return any(name.endswith(".new.partial") for name in _names(folder))

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Whether `condition` came true before the process ended."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if condition():
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(0.001)
        return False

    def end(self) -> int:
        """Its exit code, when it has ended. Raises TimeoutExpired, having killed it, if it hangs."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL, if it has not ended."""
        self.process.kill()
        self.process.wait()
        RUNNING.discard(self.process)

    def _file(self) -> int | None:
        """Which file the rows are in: a process that goes on exchanges it for one of its own."""
        try:
            return self._rows.stat().st_ino
        except FileNotFoundError:
            return None


def strike(fault: str, start: Start, step: int, last: int, draw: random.Random) -> bool:
    """Wait for the moment that belongs to `fault`, and strike; False if the process ended before.

    step: not before it, but for a process that is killed while it starts. last: the run's last one.
    """
    if fault == "start-up":
        time.sleep(draw.uniform(*START_UP))
    elif fault == "saving":
        here = start.wait_for(lambda: start.has_reached(step) and start.is_saving())
        time.sleep(draw.uniform(0, SHORT) if here else 0)
    elif fault == "end":
        start.wait_for(lambda: start.has_reached(last))
        time.sleep(draw.uniform(0, 0.5))
    else:
        start.wait_for(lambda: start.has_reached(step))
        time.sleep(draw.uniform(0, SHORT))
    if start.process.poll() is not None:
        return False
    if fault in KILLS:
        start.process.kill()
    elif fault == DISKS[1]:
        fill(start.directory.parent)
    elif fault in STOPS:
        names = fault.split(", then ") if "," in fault else fault.split(" twice") * 2
        number = getattr(signal, names[0])
        start.process.send_signal(number)
        if fault != names[0]:
            time.sleep(draw.uniform(0, SHORT))
            start.process.send_signal(getattr(signal, names[1] or names[0]))
    return True


def place(start: Start, periods: Sequence[int], last: int) -> str:
    """Where a process that is dead was, by what it left."""
    if any(start.directory.rglob("*.partial")):
        return "in a write"
    step = start.step()
    if step is None:
        return "starting"
    if step >= last:
        return "ending"
    beside = any(step % period in (0, period - 1) for period in periods)
    return "at an event" if beside else "between events"


def damage(kind: str, directory: Path, foreign: Path, draw: random.Random) -> bool:
    """Damage a run that nobody works at; False if it has nothing yet that could be damaged so.

    foreign: a checkpoint of another run.
    """
    rows, folder = directory / "metrics.jsonl", directory / "checkpoints"
    found = sorted(path for path in _paths(folder) if path.name.startswith("step-"))
    if kind in ("half a row", "metrics deleted", "left-overs") and not rows.exists():
        return False
    if kind == "half a row":
        with rows.open("a") as file:
            file.write('{"step": 7, "lo')
    elif kind == "metrics deleted":
        rows.unlink()
    elif kind == "left-overs":
        (directory / ".metrics.jsonl.0123.partial").write_text('{"step": 1')
        for name in (".step-00000001.new.partial", ".step-00000002.partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / "model.safetensors").write_bytes(b"half")
    elif not found:
        return False
    elif kind == "foreign checkpoint":
        later = int(found[-1].name.removeprefix("step-")) + 1
        shutil.copytree(foreign, folder / f"step-{later:08d}", dirs_exist_ok=True)
    else:
        _damage_file(kind, found[-1], draw)
    return True


def _damage_file(kind: str, checkpoint: Path, draw: random.Random) -> None:
    manifest = checkpoint / "manifest.json"
    file = manifest if kind == "manifest deleted" else draw.choice(sorted(checkpoint.iterdir()))
    content = bytearray(file.read_bytes())
    if kind == "truncated":
        file.write_bytes(content[: draw.randrange(len(content))])
    elif kind == "bit flipped":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
    else:
        file.unlink()


def mount(folder: Path, megabytes: int) -> None:
    """A small file system of its own in `folder`. Raises CalledProcessError where that is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={megabytes}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", str(folder)], check=True)


def fill(folder: Path, room: int = 0) -> None:
    """Write until the file system of `folder` has but `room` bytes left."""
    with (folder / BALLAST).open("ab", buffering=0) as file:
        try:
            while (left := shutil.disk_usage(folder).free - room) > 0:
                file.write(bytes(min(left, 2**20)))
        except OSError:  # full
            return


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _paths(folder: Path) -> list[Path]:
    return [folder / name for name in _names(folder)]
