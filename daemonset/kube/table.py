"""A sink that keeps one value of each object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import trio

from daemonset.kube.client import Json

V = TypeVar("V")
Key = tuple[str, str]
"""(namespace, name); the namespace is empty for kinds of the whole cluster."""


class Table(Generic[V]):
    """Values by key, with an event for changes (see ``daemonset.kube.reflector.Sink``).

    Args:
        extract: the value to keep; objects for which it is None are left out.

    Attributes:
        complete: has there been a whole list? changed: is set, and replaced, by each change.
    """

    def __init__(self, extract: Callable[[Json], V | None]) -> None:
        self._extract = extract
        self._listed: set[Key] | None = None
        self.values: dict[Key, V] = {}
        self.complete = False
        self.changed = trio.Event()

    def begin(self) -> None:
        self._listed = set()

    def put(self, item: Json) -> None:
        key = _key(item)
        value = self._extract(item)
        if value is None:
            self._drop(key)
            return
        if self._listed is not None:
            self._listed.add(key)
        if self.values.get(key) != value:
            self.values[key] = value
            self._announce()

    def remove(self, item: Json) -> None:
        self._drop(_key(item))

    def commit(self) -> None:
        assert self._listed is not None
        for key in self.values.keys() - self._listed:
            self._drop(key)
        self._listed = None
        if not self.complete:
            self.complete = True
            self._announce()

    def set_absent(self, absent: bool) -> None:
        """Kinds of the core are never absent, and of an absent kind there are no values."""

    def _drop(self, key: Key) -> None:
        if self.values.pop(key, None) is not None:
            self._announce()

    def _announce(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


def _key(item: Json) -> Key:
    meta = item["metadata"]
    return str(meta.get("namespace", "")), str(meta["name"])
