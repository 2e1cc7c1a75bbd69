"""Programs that run beside a test, each with a log: started, waited for until ready, ended."""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from ztunnel.linux.netns import NetworkNamespace

T = TypeVar("T")

PATIENCE = 120.0
"""Seconds for whatever is waited for: generous, since the machine may be busy."""
GRACE = 10.0
_POLL_SECONDS = 0.05
_LAST_WORDS = 4000


class NotInTime(Exception):
    """Something did not come about; the text says what, and how far it got."""


class ProgramEnded(RuntimeError):
    """A program does not run any more; the text has the end of its log."""


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


class Program:
    """One program; use as a context manager, or `start` and `stop` it, as often as is wanted.

    Args:
        name: how errors call it.
        command: its words.
        log: takes what it says, after what is there.
        namespace: where its sockets live; None is the caller's own.
        environment: all of it; None is the caller's own.
        folder: where it works; None is the caller's own.
        grace: seconds between asking it to end and killing it; with 0 it is not asked.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        namespace: NetworkNamespace | None = None,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        grace: float = GRACE,
    ) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._namespace = namespace
        self._environment = environment
        self._folder = folder
        self._grace = grace
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    def is_ready(self) -> bool:
        """Whether it serves; not yet while this raises OSError or HTTPException."""
        return True

    def start(self) -> None:
        """Start it, and wait until it is ready.

        Raises:
            OSError: there is no such program.
            ProgramEnded, NotInTime: it is not to be had; the text has the end of its log.
        """
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(self.log.open("ab"))
            if self._namespace is not None:
                stack.enter_context(self._namespace.enter())
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            wait_for(f"{self.name} is ready", self._serves)
        except NotInTime as error:
            self.stop()
            raise NotInTime(f"{error}: {self.last_words()}") from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> int | None:
        """End it, if it runs, and wait for that; its status, None when it was not started."""
        process, self._process = self._process, None
        if process is None:
            return None
        if self._grace:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(self._grace)
        process.kill()
        return process.wait()

    def check(self) -> None:
        """Raises ProgramEnded when it does not run any more."""
        status = None if self._process is None else self._process.poll()
        if status is not None:
            raise ProgramEnded(f"{self.name} ended with status {status}: {self.last_words()}")

    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-_LAST_WORDS:]

    def _serves(self) -> bool:
        self.check()
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.is_ready()
        return False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
