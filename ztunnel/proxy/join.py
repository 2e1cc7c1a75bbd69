"""Joins two captured pods of one node without a tunnel, by a relay between two plain sockets.

See `neighbour` for who may. The relay's kernel paths move the bytes where they are on.
"""

import socket
from typing import Protocol

from ztunnel.linux.sockets import SocketAddress
from ztunnel.mesh.decision import Hbone
from ztunnel.mesh.inbound import UNAUTHORIZED, UNAVAILABLE, InboundTarget
from ztunnel.mesh.workload import Workload
from ztunnel.proxy.admit import admit
from ztunnel.proxy.connection import failure_of
from ztunnel.proxy.local_pod import LocalPod
from ztunnel.proxy.neighbour import Neighbour, ToNeighbour, find_neighbour
from ztunnel.proxy.upstream import connect_to_application
from ztunnel.relay.flow import Outcome
from ztunnel.telemetry.labels import DENY


class Source(Protocol):
    """The side of the pod that connects."""

    client: SocketAddress

    def joined(self, sock: socket.socket, other: "Joined") -> None:
        """The application is connected to."""

    def not_joined(self, status: int, reason: str) -> None:
        """It was refused, or cannot be reached; `status` is what a tunnel would have answered."""

    def flow_ended(self, outcome: Outcome) -> None:
        """The relay is done with it."""


class Joined(ToNeighbour):
    """The side of the pod that is connected to."""

    __slots__ = ("_source",)

    def __init__(self, neighbour: Neighbour, source: Source) -> None:
        super().__init__(neighbour, source.client)
        self._source = source

    def start(self, target: InboundTarget) -> None:
        """Opens the record, and connects where that is allowed."""
        context = self.context
        record = self.open(target, f"joined with workload {self.client_workload} of this node")
        verdict = admit(context, record, self.workload, self.attributes)
        if not verdict.allowed:
            self._refuse(UNAUTHORIZED, DENY, verdict.reason)
            return
        source = None if target.from_loopback else self.client[0]
        try:
            sock = connect_to_application(self.pod, target.connect, source)
        except OSError as error:
            self._refuse(UNAVAILABLE, *failure_of(error, target.connect))
            return
        self.wait_for(sock, self._connected)

    def _connected(self, sock: socket.socket | None, error: OSError | None) -> None:
        self.connecting = None
        if sock is None:
            assert error is not None
            self._refuse(UNAVAILABLE, *failure_of(error, self.record.destination_address))
            return
        self._source.joined(sock, self)

    def _refuse(self, status: int, flags: str, reason: str) -> None:
        self.fail_record(flags, reason)
        # A refused client learns that it was refused; which policy says so is for our own log.
        self._source.not_joined(status, "" if status == UNAUTHORIZED else reason)

    def cancel(self, flags: str, reason: str) -> None:
        """See `Connection`."""
        self.stop_waiting()
        self._refuse(UNAUTHORIZED if flags == DENY else UNAVAILABLE, flags, reason)


class BothSides:
    """The owner of a joined flow."""

    __slots__ = ("_joined", "_source")

    def __init__(self, source: Source, joined: Joined) -> None:
        self._source = source
        self._joined = joined

    def flow_ended(self, outcome: Outcome) -> None:
        """Both sides write down what became of it."""
        self._source.flow_ended(outcome)
        self._joined.flow_ended(outcome)


def join(pod: LocalPod, source: Source, client: Workload, decision: Hbone) -> bool:
    """Begins to join, if that is switched on and both pods are here and in order.

    Returns:
        Whether `source.joined` or `source.not_joined` will be called (or was); else the
        connection must take a tunnel.
    """
    neighbour = find_neighbour(pod, source.client[0], client, decision)
    if neighbour is None:
        return False
    Joined(neighbour, source).start(neighbour.target)
    return True
