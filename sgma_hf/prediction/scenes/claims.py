"""Which process has which scene, on a disk that they share: `Claims`."""

import itertools
import json
import os
import socket
import tempfile
import threading
from pathlib import Path
from types import TracebackType

import psutil


BEAT_SECONDS = 60  # how often a process says that it lives
DEAD_AFTER_SECONDS = 600  # of silence on another machine


class Claims:
    """Files that say who has a scene. One exists as a whole or not at all, so of several processes one makes it.

    A claim is stale if its process has ended, or, where that is on another machine, has long not touched it. Nobody
    takes a file away from somebody else, who might live: of a stale claim the next one is made, `NAME.1` after
    `NAME.0`, and that too by one process alone. The last of them counts.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._held: dict[str, Path] = {}
        self._stopped = threading.Event()
        own = psutil.Process()
        self._owner = {"machine": _machine(), "process": own.pid, "started": own.create_time()}

    def __enter__(self) -> "Claims":
        self._folder.mkdir(parents=True, exist_ok=True)
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        for name in list(self._held):
            self.release(name)

    def _beat(self) -> None:
        while not self._stopped.wait(BEAT_SECONDS):
            for path in list(self._held.values()):
                if path.exists():
                    os.utime(path)

    def take(self, name: str) -> bool:
        """Claim a scene; False if another process that lives has it."""
        for number in itertools.count():
            path = self._path(name, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(path, "x", encoding="utf-8") as file:
                    json.dump(self._owner, file)
            except FileExistsError:
                if not self._path(name, number + 1).exists() and self._is_alive(path):
                    return False
            else:
                self._held[name] = path
                return True
        raise AssertionError  # the numbers do not end

    def release(self, name: str) -> None:
        """Give a scene back."""
        last = int(self._held.pop(name).suffix[1:])
        for number in range(last, -1, -1):
            self._path(name, number).unlink(missing_ok=True)

    def _path(self, name: str, number: int) -> Path:
        return self._folder / f"{name}.{number}"

    def _is_alive(self, path: Path) -> bool:
        try:
            changed = path.stat().st_mtime
            owner = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:  # given back meanwhile
            return False
        except ValueError:  # it is being written, or was when its process died
            owner = {}
        if owner.get("machine") == self._owner["machine"]:
            return _lives(owner["process"], owner["started"])
        # The clock of the disk, where the other one's touch was noted as well.
        with tempfile.TemporaryFile(dir=self._folder) as file:
            return os.fstat(file.fileno()).st_mtime - changed < DEAD_AFTER_SECONDS


def _machine() -> str:
    """Where a process's number means something: a machine, or a container on it."""
    numbers = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {os.readlink(numbers) if numbers.exists() else ''}"


def _lives(process: int, started: float) -> bool:
    try:
        found = psutil.Process(process)
        return found.status() != psutil.STATUS_ZOMBIE and abs(found.create_time() - started) < 1
    except psutil.NoSuchProcess:
        return False
