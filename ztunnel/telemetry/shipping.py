"""One process's numbers as messages: only what has changed, names and labels only once.

A message is JSON, because the process that reads it must not be at the mercy of the one that
wrote it: ``{"new": [[id, family, [label…]]…], "gone": [id…], "values": [[id, number…]…]}``, with
``"fresh": true`` in the first, which voids all that the same sender has said before. Numbers are
cumulative, so that a message that is lost does no harm.
"""

from __future__ import annotations

import json

from ztunnel.telemetry.counters import Counters, Labels
from ztunnel.telemetry.families import TCP

FOLDED = ("ztunnel_metric_series_folded", ())


class Shipper:
    """Encodes what has changed in ``counters`` since the last message."""

    __slots__ = ("_counters", "_fresh", "_ids", "_next", "_sent")

    def __init__(self, counters: Counters) -> None:
        self._counters: Counters = counters
        self._ids: dict[tuple[str, Labels], int] = {}
        self._sent: dict[int, list[float]] = {}
        self._next: int = 0
        self._fresh: bool = True

    def restart(self) -> None:
        """Makes the next message carry everything: the receiver is new."""
        self._ids.clear()
        self._sent.clear()
        self._next = 0
        self._fresh = True

    def encode(self) -> bytes | None:
        """The next message; None where nothing has changed."""
        new: list[tuple[int, str, Labels]] = []
        values: list[list[float]] = []
        current = self._numbers()
        gone = [self._ids.pop(key) for key in [key for key in self._ids if key not in current]]
        for identifier in gone:
            del self._sent[identifier]
        for key, numbers in current.items():
            identifier = self._ids.get(key, -1)
            if identifier < 0:
                identifier = self._ids[key] = self._next
                self._next += 1
                new.append((identifier, *key))
            elif self._sent[identifier] == numbers:
                continue
            self._sent[identifier] = numbers
            values.append([identifier, *numbers])
        if not (new or gone or values or self._fresh):
            return None
        message: dict[str, object] = {"new": new, "gone": gone, "values": values}
        if self._fresh:
            message["fresh"] = True
            self._fresh = False
        return json.dumps(message, separators=(",", ":")).encode()

    def _numbers(self) -> dict[tuple[str, Labels], list[float]]:
        table = self._counters.table
        current = {key: cell.numbers() for key, cell in self._counters.cells.items()}
        if table.folded:
            current[FOLDED] = [table.folded]
        for labels, series in table.series.items():
            current[TCP, labels] = [
                series.opened,
                series.closed,
                series.failed,
                series.received,
                series.sent,
            ]
        return current
