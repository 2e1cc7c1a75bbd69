"""A semaphore that serves the most urgent first."""

import enum
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Priority(enum.IntEnum):
    """How urgently a certificate is wanted. Lower numbers go first."""

    REAL_TIME = 0
    """A connection waits for it."""
    WARMUP = 1
    """A pod was added, its first connection may come at any time."""
    BACKGROUND = 2
    """Renewal of one that is still valid."""


class Turn:
    """A place in the queue, whose priority may rise while it waits."""

    def __init__(self, priority: Priority) -> None:
        self.priority = priority
        self.granted = trio.Event()


class Slots:
    """At most `limit` holders at a time; those that wait are served by priority, then by age."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: list[Turn] = []

    @asynccontextmanager
    async def held(self, turn: Turn) -> AsyncIterator[None]:
        """Hold one slot inside the block. Set `turn.priority` lower to hurry while waiting."""
        self._waiting.append(turn)
        self._serve()
        try:
            await turn.granted.wait()
        except BaseException:
            self._leave(turn)
            raise
        try:
            yield
        finally:
            self._leave(turn)

    def _leave(self, turn: Turn) -> None:
        if turn.granted.is_set():
            self._free += 1
        else:
            self._waiting.remove(turn)
        self._serve()

    def _serve(self) -> None:
        while self._free and self._waiting:
            turn = min(self._waiting, key=lambda waiting: waiting.priority)
            self._waiting.remove(turn)
            self._free -= 1
            turn.granted.set()
