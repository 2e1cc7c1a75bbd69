"""The sum of all processes' numbers, held by the control process.

Counters stay when the process that counted them ends; its gauges go with it.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

from ztunnel.telemetry.counters import Labels
from ztunnel.telemetry.families import FAMILIES, TCP, TCP_FAMILIES, Kind

Key = tuple[str, Labels]
_MOST_SERIES: Final = 1_000_000


class UpdateError(ValueError):
    """A message that no :class:`~ztunnel.telemetry.shipping.Shipper` writes."""


class _Source:
    """What one sender has said: the key and the last numbers of each of its identifiers."""

    __slots__ = ("keys", "numbers")

    def __init__(self) -> None:
        self.keys: dict[int, Key] = {}
        self.numbers: dict[int, list[float]] = {}


class Aggregate:
    """Adds up what senders say. ``totals`` maps (family, labels) to its numbers."""

    def __init__(self) -> None:
        self.totals: dict[Key, list[float]] = {}
        self._sources: dict[str, _Source] = {}
        self._holders: dict[Key, int] = {}

    def update(self, source: str, message: bytes) -> None:
        """Takes in a message of ``source``, a name that no other process ever had.

        Raises:
            UpdateError: the message makes no sense; nothing of it has been taken in.
        """
        new, gone, values, fresh = _parse(message)
        state = self._sources.get(source)
        if state is None or fresh:
            keys: dict[int, Key] = {}
        else:
            keys = dict(state.keys) if new or gone else state.keys
        for identifier in gone:
            if keys.pop(identifier, None) is None:
                raise UpdateError(f"{source}: nothing has the identifier {identifier}")
        for identifier, key in new:
            if keys.setdefault(identifier, key) is not key:
                raise UpdateError(f"{source}: the identifier {identifier} is taken")
        if len(keys) > _MOST_SERIES:
            raise UpdateError(f"{source}: more than {_MOST_SERIES} series")
        for identifier, numbers in values:
            key_ = keys.get(identifier)
            if key_ is None or len(numbers) != _width(key_[0]):
                raise UpdateError(f"{source}: unexpected numbers for {identifier}: {key_}")
        if fresh or state is None:
            state = self._sources[source] = self._renewed(state, new)
        for identifier in gone:
            self._drop(state, identifier)
        state.keys = keys
        for identifier, numbers in values:
            self._move(state, identifier, numbers)

    def _renewed(self, old: _Source | None, new: list[tuple[int, Key]]) -> _Source:
        """A sender starts over: its numbers are still those of the same process, and what it has
        said of them before must not be counted twice."""
        state = _Source()
        if old is None:
            return state
        before = {key: identifier for identifier, key in old.keys.items()}
        for identifier, key in new:
            known = before.pop(key, None)
            if known is not None and known in old.numbers:
                state.numbers[identifier] = old.numbers[known]
        for identifier in before.values():
            self._drop(old, identifier)
        return state

    def end(self, source: str) -> None:
        """``source`` is no more: its counters stay in the totals, its gauges leave them."""
        state = self._sources.pop(source, None)
        if state is not None:
            for identifier in list(state.keys):
                self._drop(state, identifier)

    def snapshot(self) -> dict[Key, list[float]]:
        """A copy of the totals that a thread may read."""
        return {key: numbers.copy() for key, numbers in self.totals.items()}

    def _move(self, state: _Source, identifier: int, numbers: list[float]) -> None:
        key = state.keys[identifier]
        before = state.numbers.get(identifier)
        if before is None:
            self._holders[key] = self._holders.get(key, 0) + 1
        total = self.totals.get(key)
        if total is None:
            total = self.totals[key] = [0] * len(numbers)
        for at, number in enumerate(numbers):
            total[at] += number - before[at] if before is not None else number
        state.numbers[identifier] = numbers

    def _drop(self, state: _Source, identifier: int) -> None:
        key = state.keys[identifier]
        last = state.numbers.pop(identifier, None)
        family = FAMILIES.get(key[0])
        if last is None or family is None or family.kind is not Kind.GAUGE:
            return  # what has been counted stays counted
        self._holders[key] -= 1
        if self._holders[key]:
            self.totals[key][0] -= last[0]
        else:
            del self.totals[key], self._holders[key]


def _width(name: str) -> int:
    return len(TCP_FAMILIES) if name == TCP else FAMILIES[name].values


def _parse(
    message: bytes,
) -> tuple[list[tuple[int, Key]], list[int], list[tuple[int, list[float]]], bool]:
    try:
        document = json.loads(message)
        new = [(_identifier(entry[0]), _key(entry[1], entry[2])) for entry in document["new"]]
        gone = [_identifier(entry) for entry in document["gone"]]
        values = [
            (_identifier(entry[0]), [_number(number) for number in entry[1:]])
            for entry in document["values"]
        ]
        return new, gone, values, document.get("fresh") is True
    except UpdateError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UpdateError(f"not a message of counters: {error}") from error


def _identifier(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise UpdateError(f"{value!r} is not an identifier")
    return value


def _number(value: Any) -> float:
    # Counters of bytes stay whole numbers; beyond 2**80 nobody has counted anything.
    if type(value) is int and -(2**80) < value < 2**80:
        return value
    if type(value) is float and math.isfinite(value):
        return value
    raise UpdateError(f"{str(value)[:40]} is not a number")


def _key(name: Any, labels: Any) -> Key:
    family = TCP_FAMILIES[0] if name == TCP else FAMILIES[name]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise UpdateError(f"{labels!r} are not labels")
    if len(labels) != len(family.labels):
        raise UpdateError(f"{name} has {len(family.labels)} labels, not {len(labels)}")
    return name, tuple(labels)
