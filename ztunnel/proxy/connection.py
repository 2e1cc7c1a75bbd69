"""What every proxied connection does: keep its record, log its line, end once."""

import socket
import time
from typing import Any, Final

from ztunnel.linux.sockets import SocketAddress
from ztunnel.mesh.changes import Changes
from ztunnel.mesh.state import MeshState
from ztunnel.proxy.context import Context
from ztunnel.relay.connect import ConnectDone, Connecting
from ztunnel.relay.flow import Flow, Outcome
from ztunnel.relay.stream_owner import StreamOwner
from ztunnel.telemetry.connections import describe
from ztunnel.telemetry.labels import CONNECT, NO_FLAGS, Ends
from ztunnel.telemetry.record import PROXY, ConnectionRecord

UNKNOWN_WORKLOAD: Final = "unknown workload"  # why a connection is refused early, as a label


class Connection(StreamOwner):
    """A connection from its beginning to its log line. Subclasses say how it is made.

    Attributes:
        connecting: to the application, while that is under way.
        relayed: bytes that the metrics of its path have.
    """

    __slots__ = (
        "client", "connecting", "context", "ended", "flow", "opened_at", "record", "relayed", "uid",
    )  # fmt: skip

    record: ConnectionRecord

    def __init__(self, context: Context, uid: str, client: SocketAddress) -> None:
        self.context = context
        self.uid = uid
        self.client = client
        self.opened_at = time.monotonic()
        self.flow: Flow | None = None
        self.ended = False
        self.relayed = 0
        self.connecting: Connecting | None = None

    def open_record(
        self, ends: Ends, destination: SocketAddress, hbone: str, decision: str
    ) -> ConnectionRecord:
        """Starts the record: from here on the connection is counted and will be logged."""
        record = ConnectionRecord(ends, self.client, destination, self.opened_at, hbone)
        record.decision = decision
        record.pod = self.uid
        record.open()
        self.record = record
        self.context.registry.add(self)
        self.context.access_log.opened(record)
        return record

    def wait_for(self, sock: socket.socket, done: ConnectDone) -> None:
        """Has `done` called once a connect has come to its end, or has had its time."""
        context = self.context
        limit = context.deadline(context.config.sockets.connect_timeout)
        self.connecting = Connecting(context.engine, sock, done, limit)

    def stop_waiting(self) -> None:
        """Gives up the connect, where one is under way."""
        if self.connecting is not None:
            self.connecting.cancel()
            self.connecting = None

    def running(self, flow: Flow) -> None:
        """Bytes flow from now on."""
        self.flow = flow
        self.record.path = flow.path

    def flow_ended(self, outcome: Outcome) -> None:
        """The relay is done with it."""
        record = self.record
        if self.flow is not None:
            record.path = self.flow.path
        self.context.relayed(record.path, 1, 0)
        record.up = outcome.from_client
        record.down = outcome.from_server
        record.closed_by = outcome.closed_by.value
        record.discarded = outcome.discarded
        if outcome.error is not None and not record.error:
            # The stream broke while it ran: told in words, but not counted as a failure to connect.
            record.fail(record.flags, outcome.error)
        self.flow = None
        self.finish()

    def finish(self) -> None:
        """Writes the record down, once."""
        if self.ended:
            return
        self.ended = True
        context = self.context
        context.registry.remove(self)
        self._count_path()
        self.record.close(context.labels, time.monotonic())
        context.access_log.complete(self.record)

    def fail_record(self, flags: str, reason: str) -> None:
        """It could not be made, or may not go on."""
        self.record.fail(flags, reason)
        self.record.closed_by = PROXY
        self.finish()

    def end(self, flags: str, reason: str) -> None:
        """Ends a connection, running or still being made, with that reason."""
        if self.flow is not None:
            self.record.fail(flags, reason)
            self.flow.abort(reason)
        elif not self.ended:
            self.cancel(flags, reason)

    def leave(self, reason: str) -> None:
        """Its pod is not served any more."""
        self.end(NO_FLAGS, reason)

    def cancel(self, flags: str, reason: str) -> None:
        """Gives up what is still being made, tells the client, and writes the record down."""
        raise NotImplementedError

    def count(self) -> None:
        """Brings the record and the metrics up to date."""
        if self.flow is not None:
            self.record.path = self.flow.path
            self.record.up = self.flow.from_client
            self.record.down = self.flow.from_server
        self._count_path()
        self.record.count()

    def _count_path(self) -> None:
        record = self.record
        total = record.up + record.down
        if total != self.relayed:
            self.context.relayed(record.path, 0, total - self.relayed)
            self.relayed = total

    def rejudge(self, state: MeshState, changes: Changes) -> None:
        """Outbound connections are judged at their destination."""

    def describe(self) -> dict[str, Any]:
        """For the list of live connections."""
        return describe(self.record, self.context.worker, time.monotonic())


def failure_of(error: OSError, target: SocketAddress) -> tuple[str, str]:
    """(flags, words) for a connect that failed."""
    return CONNECT, f"connect to {target[0]}:{target[1]}: {error.strerror or error}"
