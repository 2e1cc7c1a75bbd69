"""The one writer of the log: a thread that empties a queue into a descriptor."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from typing import Final

from ztunnel.telemetry.log_queue import LogQueue

_BATCH: Final = 262144
_POLL_MILLISECONDS: Final = 100


class LogWriter:
    """Writes what is put into ``queue`` to ``descriptor``, in order and whole lines.

    A reader that is slow fills the queue, and only that. A reader that is gone ends the writing:
    lines are then counted as dropped.
    """

    def __init__(self, descriptor: int, capacity: int, drop_notice: Callable[[int], bytes]) -> None:
        self._wake = threading.Event()
        self.queue = LogQueue(capacity, drop_notice, self._wake.set)
        self._descriptor = descriptor
        self._stop = False
        self._deadline = 0.0
        self._all_written = False
        self.broken: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
        self._thread.start()

    def close(self, timeout: float) -> bool:
        """Writes what waits, for at most ``timeout`` seconds. True when all of it is written."""
        self._deadline = time.monotonic() + timeout
        self._stop = True
        self._wake.set()
        self._thread.join(timeout + 1.0)
        return self._all_written

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            while batch := self.queue.take(_BATCH):
                if not self._write(batch):
                    return
            if self._stop:
                self._all_written = True
                return

    def _write(self, batch: bytes) -> bool:
        """False where writing has come to its end."""
        view = memoryview(batch)
        while view:
            if self._stop and time.monotonic() > self._deadline:
                self.queue.shut(bytes(view))
                return False
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                # Someone shares the descriptor and has made it non-blocking.
                poller = select.poll()
                poller.register(self._descriptor, select.POLLOUT)
                poller.poll(_POLL_MILLISECONDS)
            except OSError as error:
                self.broken = error
                self.queue.shut(bytes(view))
                return False
        return True
