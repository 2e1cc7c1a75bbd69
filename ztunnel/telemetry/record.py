"""The record of one connection: filled by the proxy, read by the metrics, the access log and the
list of live connections."""

from __future__ import annotations

from typing import Final

from ztunnel.mesh.address import SocketAddress
from ztunnel.telemetry.labels import NO_FLAGS, Ends, LabelTable

# Values of ``closed_by``: who ended the connection first.
CLIENT: Final = "client"
SERVER: Final = "server"
PROXY: Final = "proxy"


class ConnectionRecord:
    """Everything that is told about one connection.

    ``up`` are bytes from the end that opened the connection, ``down`` bytes to it, whichever side
    reports. The relay writes running totals; :meth:`count` moves what is new into the metrics, so
    that a live connection shows in them.

    Attributes (all but the first five may be set at any time before :meth:`close`):
        ends: source, destination, service, principals.
        source_address: the client's address and port.
        destination_address: outbound the real next hop, inbound the pod's own address and port.
        hbone_address: the authority of the CONNECT request, "" without one.
        opened_at: seconds of the monotonic clock.
        original_destination: where the client meant to go; unset, the destination address.
        pod: the uid under which the node agent knows the local pod.
        decision: why the connection goes where it goes, in words.
        verdict: "allowed" or "denied" with the policy and the rule that said so, "" where no
            policy was asked.
        policy: "namespace/name" of the policy that decided, "".
        closed_by: who ended it first: client, server, proxy, "" while it lives.
        path: how its bytes move: direct, sockmap, ktls, splice, copy, tls.
        flags: why it failed, as in the metric label response_flags.
        error: why it failed, in words; "" where it did not.
        discarded: bytes that one end sent after the other had finished and wanted no more.
    """

    __slots__ = (
        "_counted_down",
        "_counted_up",
        "closed_at",
        "closed_by",
        "decision",
        "destination_address",
        "discarded",
        "down",
        "ends",
        "error",
        "flags",
        "hbone_address",
        "opened_at",
        "original_destination",
        "path",
        "pod",
        "policy",
        "source_address",
        "up",
        "verdict",
    )

    def __init__(
        self,
        ends: Ends,
        source_address: SocketAddress,
        destination_address: SocketAddress,
        opened_at: float,
        hbone_address: str = "",
    ) -> None:
        self.ends: Ends = ends
        self.source_address: SocketAddress = source_address
        self.destination_address: SocketAddress = destination_address
        self.hbone_address: str = hbone_address
        self.opened_at: float = opened_at
        self.closed_at: float = -1.0
        self.original_destination: SocketAddress = destination_address
        self.pod: str = ""
        self.decision: str = ""
        self.verdict: str = ""
        self.policy: str = ""
        self.closed_by: str = ""
        self.path: str = ""
        self.flags: str = NO_FLAGS
        self.error: str = ""
        self.discarded: int = 0
        self.up: int = 0
        self.down: int = 0
        self._counted_up: int = 0
        self._counted_down: int = 0

    def open(self) -> None:
        """Counts the connection as opened."""
        self.ends.series.opened += 1

    def replace_ends(self, ends: Ends) -> None:
        """Better knowledge of an end, learnt after the opening (the inner tunnel of another
        network names the destination). What is counted already stays where it is."""
        self.count()
        self.ends = ends

    def count(self) -> None:
        """Adds the bytes that are new since the last call to the metrics."""
        series = self.ends.series
        if self.up != self._counted_up:
            series.received += self.up - self._counted_up
            self._counted_up = self.up
        if self.down != self._counted_down:
            series.sent += self.down - self._counted_down
            self._counted_down = self.down

    def fail(self, flags: str, error: str) -> None:
        """Notes why the connection failed. The first reason stays."""
        if not self.error:
            self.flags = flags
            self.error = error

    def close(self, table: LabelTable, now: float) -> None:
        """Counts the end of the connection, under the flags that it ended with. Later calls do
        nothing."""
        if self.closed_at >= 0:
            return
        self.closed_at = now
        self.count()
        series = table.flagged(self.ends, self.flags)
        series.closed += 1
        if self.flags != NO_FLAGS:
            series.failed += 1
