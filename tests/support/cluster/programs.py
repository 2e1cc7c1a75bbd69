"""Programs that run for a while, each with a log of its own; and waiting for what they do."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ztunnel.linux.netns import NetworkNamespace

T = TypeVar("T")

LAUNCHER = Path(__file__).with_name("launch.py")
PATIENCE = 120.0
"""Seconds for whatever is waited for: generous, since the machine may be busy."""
_POLL_SECONDS = 0.1
_LAST_WORDS = 3000


class NotInTime(Exception):
    """Something did not come about; the text says what, and how far it got."""


def wait_for(what: str, look: Callable[[], T | None], seconds: float = PATIENCE) -> T:
    """What `look` finds, once it is anything that counts as true. Raises NotInTime."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise NotInTime(f"{what}: not within {seconds:g} s, but {found!r}")
        time.sleep(_POLL_SECONDS)


class Programs:
    """Programs by name. None of them outlives this process, or `end`.

    To be started from the main thread: they end when the thread that started them does.
    """

    def __init__(self, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        namespace: NetworkNamespace,
        cgroups: Sequence[Path] = (),
    ) -> None:
        """Start it in a network namespace, and in control groups."""
        launch = [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid())]
        with open(self.log(name), "ab") as log, namespace.enter():
            self._running[name] = subprocess.Popen(
                [*launch, *map(str, cgroups), "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=Path(__file__).parents[3],
            )

    def pid(self, name: str) -> int:
        return self._running[name].pid

    def check(self, name: str) -> None:
        """Raises RuntimeError, with the end of its log, when it does not run any more."""
        status = self._running[name].poll()
        if status is not None:
            raise RuntimeError(f"{name} ended with status {status}: {self.last_words(name)}")

    def log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def last_words(self, name: str) -> str:
        return self.log(name).read_text(errors="replace")[-_LAST_WORDS:]

    def end(self, name: str) -> None:
        """Kill it (there is nothing here worth saving), and wait for that."""
        process = self._running.pop(name, None)
        if process is not None:
            process.kill()
            process.wait()

    def end_all(self) -> None:
        """The last one first."""
        for name in reversed(list(self._running)):
            self.end(name)
