"""Log lines on their way out: a queue that never makes its writer wait.

A proxy that blocks because nobody reads its log stops all traffic of a node. Here a line that
finds the queue full is dropped and counted, and the next batch tells how many are missing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

BATCH_BYTES: Final = 65536
_BYTES_PER_LINE: Final = 1024


class LogQueue:
    """A bounded queue of lines, each with its newline. May be used from several threads.

    Args:
        capacity: lines that may wait; the bytes of all of them are bounded by 1 KiB for each.
        drop_notice: makes the line that reports a number of dropped lines.
        on_ready: called, in the thread of the writer, when the queue stops being empty.
    """

    __slots__ = (
        "_bytes",
        "_capacity",
        "_drop_notice",
        "_lines",
        "_lock",
        "_most_bytes",
        "_on_ready",
        "_unreported",
        "dropped",
    )

    def __init__(
        self,
        capacity: int,
        drop_notice: Callable[[int], bytes],
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        self._capacity: int = capacity
        self._most_bytes: int = capacity * _BYTES_PER_LINE
        self._drop_notice: Callable[[int], bytes] = drop_notice
        self._on_ready: Callable[[], None] | None = on_ready
        self._lock = threading.Lock()
        self._lines: deque[bytes] = deque()
        self._bytes: int = 0
        self._unreported: int = 0
        self.dropped: int = 0

    def put(self, line: bytes) -> None:
        """Queues a line (or a batch of whole lines), or drops it where the queue is full."""
        with self._lock:
            if len(self._lines) >= self._capacity or self._bytes + len(line) > self._most_bytes:
                self._count_lost(line)
                return
            first = not self._lines
            self._lines.append(line)
            self._bytes += len(line)
        if first and self._on_ready is not None:
            self._on_ready()

    def shut(self, undelivered: bytes) -> None:
        """Nobody will take lines any more: counts what waits, what was taken and could not be
        delivered, and all that is still to come as dropped."""
        with self._lock:
            self._count_lost(undelivered)
            for line in self._lines:
                self._count_lost(line)
            self._lines.clear()
            self._capacity = 0

    def take(self, limit: int = BATCH_BYTES) -> bytes:
        """The oldest lines as one text of at most ``limit`` bytes (a single longer line comes
        alone); empty where nothing waits."""
        batch: list[bytes] = []
        size = 0
        with self._lock:
            lines = self._lines
            while lines and (not batch or size + len(lines[0]) <= limit):
                line = lines.popleft()
                batch.append(line)
                size += len(line)
            self._bytes -= size
            lost, self._unreported = self._unreported, 0
        if lost:
            batch.append(self._drop_notice(lost))
        return b"".join(batch)

    def __len__(self) -> int:
        return len(self._lines)

    def _count_lost(self, lines: bytes) -> None:
        lost = lines.count(b"\n")
        self._unreported += lost
        self.dropped += lost
