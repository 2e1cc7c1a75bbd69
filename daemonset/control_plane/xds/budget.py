"""How much may be on its way to clients at once.

The resources of a mesh are encoded once, but each client is sent a copy, which is held until the
client has taken it. Five hundred node proxies that come back at one moment would want a gigabyte
for a mesh of 5,000 pods: they take turns. One that takes nothing when its turn has come holds up
the others for a moment only; if it is dead, keepalive finds that out and frees what it was sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

LIMIT = 64 * 1024 * 1024
FREE = 256 * 1024
"""Bytes; answers that are not longer wait for nobody."""
PATIENCE = 2.0
"""Seconds after which a client's turn does not keep others from theirs."""


@dataclass(eq=False, slots=True)
class _Turn:
    since: float
    size: int


class SendBudget:
    """Lets clients take turns. Used in one event loop; times in seconds, sizes in bytes."""

    def __init__(self, limit: int = LIMIT, free: int = FREE, patience: float = PATIENCE) -> None:
        self._limit = limit
        self._free = free
        self._patience = patience
        self._turns: dict[_Turn, None] = {}  # oldest first
        self._left = asyncio.Event()

    def used(self, now: float) -> int:
        """Bytes on their way to clients that may still be quick."""
        return sum(turn.size for turn in self._turns if not self._is_over(turn, now))

    async def send(self, write: Callable[[bytes], Awaitable[None]], data: bytes) -> None:
        """Write ``data`` when there is room for it. One that is alone with it has room."""
        if len(data) <= self._free:
            await write(data)
            return
        loop = asyncio.get_running_loop()
        while (used := self.used(loop.time())) and used + len(data) > self._limit:
            await self._wait(loop.time())
        turn = _Turn(loop.time(), len(data))
        self._turns[turn] = None
        try:
            await write(data)
        finally:
            del self._turns[turn]
            self._left.set()
            self._left = asyncio.Event()

    def _is_over(self, turn: _Turn, now: float) -> bool:
        return now - turn.since >= self._patience

    async def _wait(self, now: float) -> None:
        """Until somebody has taken what it was sent, or has had its time."""
        oldest = next(turn for turn in self._turns if not self._is_over(turn, now))
        left = self._left
        try:
            async with asyncio.timeout_at(oldest.since + self._patience):
                await left.wait()
        except TimeoutError:
            return
