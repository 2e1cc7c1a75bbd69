"""The live connections of a worker, so that they can be listed, counted and judged again."""

import logging
from collections.abc import Container
from typing import Any, Protocol

from ztunnel.mesh.changes import Changes
from ztunnel.mesh.state import MeshState
from ztunnel.telemetry.labels import DENY
from ztunnel.telemetry.record import ConnectionRecord

log = logging.getLogger("ztunnel.proxy")


class Live(Protocol):
    """A connection in the registry."""

    record: ConnectionRecord
    uid: str

    def count(self) -> None:
        """Brings the record's byte totals up to date."""

    def describe(self) -> dict[str, Any]:
        """For the list of connections."""

    def end(self, flags: str, reason: str) -> None:
        """Ends it now."""

    def leave(self, reason: str) -> None:
        """The pod is not served any more: end, or go on without the proxy."""

    def rejudge(self, state: MeshState, changes: Changes) -> None:
        """The mesh changed: end yourself if you are no longer allowed."""


class Registry:
    """A set of live connections.

    Attributes:
        live: all of them, to be looked at only.
        open: how many there were when they were last counted, (outbound, inbound).
    """

    def __init__(self) -> None:
        self.live: set[Live] = set()
        self._by_pod: dict[str, int] = {}
        self.open = (0, 0)

    def __len__(self) -> int:
        return len(self.live)

    def add(self, connection: Live) -> None:
        """Before it is judged: a policy that changes meanwhile must find it here."""
        if connection not in self.live:
            self.live.add(connection)
            self._by_pod[connection.uid] = self._by_pod.get(connection.uid, 0) + 1

    def remove(self, connection: Live) -> None:
        """Idempotent."""
        if connection in self.live:
            self.live.remove(connection)
            left = self._by_pod[connection.uid] - 1
            if left:
                self._by_pod[connection.uid] = left
            else:
                del self._by_pod[connection.uid]

    def rejudge(self, state: MeshState, changes: Changes, uids: Container[str]) -> None:
        """Lets every connection of these pods look at what changed. One that cannot be judged is
        ended."""
        for connection in [one for one in self.live if one.uid in uids]:
            try:
                connection.rejudge(state, changes)
            except Exception as error:
                log.exception("a connection cannot be judged again")
                connection.end(DENY, f"it could not be judged by what changed: {error!r}")

    def of(self, uid: str) -> list[Live]:
        """Those of one pod."""
        return [connection for connection in self.live if connection.uid == uid]

    def count_of(self, uid: str) -> int:
        """How many one pod has."""
        return self._by_pod.get(uid, 0)

    def count(self) -> None:
        """Moves the bytes of live connections into the metrics."""
        inbound = 0
        for connection in self.live:
            connection.count()
            inbound += connection.record.ends.inbound
        self.open = (len(self.live) - inbound, inbound)

    def describe(self) -> list[dict[str, Any]]:
        """All of them."""
        self.count()
        return [connection.describe() for connection in self.live]
