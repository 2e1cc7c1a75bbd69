"""The programs of a cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.program import Program
from ztunnel.linux.netns import NetworkNamespace

LAUNCHER = Path(__file__).with_name("launch.py")


class Programs:
    """Programs by name. None of them outlives this process, or `end`.

    To be started from the main thread: they end when the thread that started them does.
    """

    def __init__(self, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self._running: dict[str, Program] = {}

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
        program = Program(
            name,
            [*launch, *map(str, cgroups), "--", *command],
            self._logs / f"{name}.log",
            namespace=namespace,
            folder=Path(__file__).parents[3],
            grace=0.0,  # there is nothing here worth saving
        )
        self._running[name] = program
        program.start()

    def pid(self, name: str) -> int:
        return self._running[name].pid

    def check(self, name: str) -> None:
        """Raises ProgramEnded when it does not run any more."""
        self._running[name].check()

    def end(self, name: str) -> None:
        """Kill it, and wait for that."""
        program = self._running.pop(name, None)
        if program is not None:
            program.stop()

    def end_all(self) -> None:
        """The last one first."""
        for name in reversed(list(self._running)):
            self.end(name)
