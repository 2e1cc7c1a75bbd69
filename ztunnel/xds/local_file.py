"""State from a file: read at start, watched, and applied again whenever it changes.

A file that is being written looks valid when it is cut off at the right place, and then lacks
policies. So a change is read only once the file has stayed the same for a moment, and what cannot
be read leaves the last good state in force.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

import trio

POLL_INTERVAL: Final = 0.5

log = logging.getLogger("ztunnel.xds.local")

State = TypeVar("State")
_Mark = tuple[int, int, int, int]


class LocalFile(Generic[State]):
    """Watches ``path``.

    Args:
        path: the file; it may be replaced, also through a symbolic link as Kubernetes does it.
        parse: text and the file's name -> state; raises ValueError with file and line.
        apply: takes a state into force.
    """

    def __init__(
        self,
        path: Path,
        parse: Callable[[str, str], State],
        apply: Callable[[State], Awaitable[None]],
    ) -> None:
        self._path = path
        self._parse = parse
        self._apply = apply
        self._mark: _Mark | None = None

    async def load(self) -> None:
        """Reads and applies the file for the first time.

        Raises:
            OSError: it cannot be read.
            ValueError: it makes no sense.
        """
        mark = self._look()
        await self._read()
        self._mark = mark

    async def watch(self) -> None:
        """Applies every change, until cancelled. A file that has gone changes nothing."""
        seen, complained = self._mark, ""
        while True:
            await trio.sleep(POLL_INTERVAL)
            try:
                mark = self._look()
                if mark == self._mark or mark != seen:
                    seen = mark
                    continue
                # Also after a failure: what has not changed will not be better next time.
                self._mark = mark
                await self._read()
            except (OSError, ValueError) as error:
                if str(error) != complained:
                    complained = str(error)
                    log.error("the last good state stays in force: %s", complained)
                continue
            complained = ""
            log.info("%s has changed and is in force", self._path)

    async def _read(self) -> None:
        data = await trio.to_thread.run_sync(self._path.read_bytes)
        await self._apply(self._parse(data.decode(), str(self._path)))

    def _look(self) -> _Mark:
        status = os.stat(self._path)
        return (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
