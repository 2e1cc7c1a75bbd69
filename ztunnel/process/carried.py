"""Which connections a worker carries: should it be killed, the control process writes their lines.

About once a second a worker tells what has begun and lives, and what has ended of that. So
connections that come and go within a second cost nothing; those that a worker took with it, and had
not told of yet, are missing from the lines and from their number.
"""

import time
from collections.abc import Callable
from typing import Any, Final

from ztunnel.proxy.registry import Live, Registry
from ztunnel.telemetry.access_log import AccessLog, lost_line
from ztunnel.telemetry.timestamp import Clock

MOST: Final = 1000
"""Connections of one worker that are known by name; of the others only how many they are."""

Begun = tuple[int, float, str]
"""Number, begin on the monotonic clock (which is the same in all processes), fields of the line."""


class Telling:
    """The worker's side: what is to be told."""

    def __init__(self, registry: Registry, access_log: AccessLog) -> None:
        self._registry = registry
        self._access_log = access_log
        self._told: dict[Live, int] = {}
        self._others = 0
        self._last = 0

    def restart(self) -> None:
        """A control process that knows nothing yet."""
        self._told.clear()
        self._others = 0

    def changes(self) -> tuple[list[Begun], list[int], int] | None:
        """What has begun, the numbers of what has ended, and how many others there are; None where
        nothing has changed."""
        live, told = self._registry.live, self._told
        ended = [(one, number) for one, number in told.items() if one not in live]
        for one, _ in ended:
            del told[one]
        begun: list[Begun] = []
        if len(told) < MOST:
            for one in live:
                if one not in told:
                    self._last += 1
                    told[one] = self._last
                    record = one.record
                    fields = self._access_log.describe(record)
                    begun.append((self._last, record.opened_at, fields))
                    if len(told) == MOST:
                        break
        others = len(live) - len(told)
        if not begun and not ended and others == self._others:
            return None
        self._others = others
        return begun, [number for _, number in ended], others


class Carried:
    """The control process's side: what one worker carries, as it said last."""

    def __init__(self) -> None:
        self._begun: dict[int, tuple[float, str]] = {}
        self._others = 0

    def update(self, begun: list[Begun], ended: list[int], others: int) -> None:
        """Takes in what the worker said."""
        for number in ended:
            self._begun.pop(number, None)
        for number, since, fields in begun:
            self._begun[number] = (since, fields)
        self._others = others

    def __len__(self) -> int:
        return len(self._begun) + self._others

    def write_lines(self, write: Callable[[bytes], Any], as_json: bool, error: str) -> None:
        """A line for each that was known by name and is not silenced, then forgets them."""
        clock, now = Clock(), time.monotonic()
        moment = clock.format(time.time())
        for since, fields in self._begun.values():
            if fields:
                write(lost_line(as_json, moment, fields, now - since, error))
        self._begun.clear()
        self._others = 0
