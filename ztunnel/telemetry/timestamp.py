"""RFC 3339 timestamps in UTC with microseconds, one formatted date for each second."""

from __future__ import annotations

import time


class Clock:
    """Formats ``time.time()``. The part up to the second is kept until the second changes."""

    __slots__ = ("_prefix", "_second")

    def __init__(self) -> None:
        self._second: int = -1
        self._prefix: str = ""

    def format(self, now: float) -> str:
        """``now``, in seconds since 1970, such as 2026-11-21T10:09:08.070605Z."""
        second = int(now)
        if second != self._second:
            self._second = second
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._prefix}.{int((now - second) * 1000000):06d}Z"
