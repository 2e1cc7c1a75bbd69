"""Connections between two pods of one node that the kernel carries without any relay.

What is decided, logged, counted and judged again is what a joined connection has (see `neighbour`);
only the bytes go another way: from socket to socket, so that they cost what they cost without a
mesh. What happened to them is read from the kernel: its own counts of both sockets, and connection
tracking, which knows who closed first. To end one, both sockets are aborted.
"""

import logging
import time
from typing import Final, Protocol

from ztunnel.linux.sockets import SocketAddress
from ztunnel.linux.tcp_sockets import ESTABLISHED, SYN_SENT, TIME_WAIT, Tally, TcpSockets
from ztunnel.mesh.changes import Changes
from ztunnel.mesh.state import MeshState
from ztunnel.proxy.connection import Connection
from ztunnel.proxy.local_pod import LocalPod
from ztunnel.proxy.neighbour import ToNeighbour
from ztunnel.relay.flow import ClosedBy, Outcome
from ztunnel.telemetry.labels import CONNECT

log = logging.getLogger("ztunnel.proxy")

ARRIVAL: Final = 3.0  # seconds within which a first packet must have come through the node
_DISTRUST: Final = 600.0  # seconds for which a pair of pods is left to tunnels
_LOOKS: Final = 500  # connections whose counts are asked for at a time

_Ends = tuple[SocketAddress, SocketAddress]


class End(Protocol):
    """One end of such a connection: the gate of the pod there."""

    pod: LocalPod
    sockets: TcpSockets
    closed: bool

    @property
    def is_open(self) -> bool:
        """Whether the pod's rules ask it about first packets."""

    def how_ended(self, flow: "DirectFlow") -> tuple[ClosedBy | None, bool]:
        """(who closed first, whether it was reset) of a connection that the pod opened."""


class DirectOutbound(Connection):
    """The side of the pod that connects."""

    __slots__ = ("direct", "other")

    direct: "DirectFlow"
    other: "DirectInbound"

    def leave(self, reason: str) -> None:
        """See `Connection`."""
        self.direct.leave(reason)

    def rejudge(self, state: MeshState, changes: Changes) -> None:
        """Both sides live and die together."""
        self.other.rejudge(state, changes)

    def cancel(self, flags: str, reason: str) -> None:
        """See `Connection`."""
        self.fail_record(flags, reason)


class DirectInbound(ToNeighbour):
    """The side of the pod that is connected to."""

    __slots__ = ("direct",)

    direct: "DirectFlow"

    def leave(self, reason: str) -> None:
        """See `Connection`."""
        self.direct.leave(reason)

    def cancel(self, flags: str, reason: str) -> None:
        """See `Connection`."""
        self.fail_record(flags, reason)


class DirectFlow:
    """A connection from the moment its first packet was let go.

    Args:
        flows: what it belongs to from `DirectFlows.add` on.
        near, far: the ends at both pods.
        destination: where the client connects to, which may be a service.
        target: the socket at the other pod.
        sequence: of the first packet; nobody else can know it.
        mark: the verdict on that packet.

    Attributes:
        arrived: the packet has come to the other pod.
        near_end, far_end: last counts of the client's and of the server's socket, once it is gone.
    """

    __slots__ = (
        "_first_gone", "_inbound", "_looked_at", "_missing", "_outbound", "arrived", "begun",
        "client", "closed", "destination", "far", "far_end", "flows", "from_client", "from_server",
        "mark", "near", "near_end", "path", "sequence", "target",
    )  # fmt: skip

    def __init__(
        self,
        flows: "DirectFlows",
        near: End,
        far: End,
        client: SocketAddress,
        destination: SocketAddress,
        target: SocketAddress,
        sequence: int,
        mark: int,
    ) -> None:
        self.flows = flows
        self.near = near
        self.far = far
        self.client = client
        self.destination = destination
        self.target = target
        self.sequence = sequence
        self.mark = mark
        self.begun = time.monotonic()
        self.arrived = False
        self.closed = False
        self.path = "direct"
        self.from_client = 0
        self.from_server = 0
        self.near_end: Tally | None = None
        self.far_end: Tally | None = None
        self._looked_at: Tally | None = None
        self._first_gone = ClosedBy.SERVER
        self._missing = False  # the client's socket is gone, and its last counts have not come

    def belongs_to(self, outbound: DirectOutbound, inbound: DirectInbound) -> None:
        """Both sides, which are told when it ends."""
        self._outbound = outbound
        self._inbound = inbound
        outbound.other = inbound
        outbound.direct = inbound.direct = self
        outbound.running(self)
        inbound.running(self)

    # ---- what the kernel tells

    def client_ended(self, tally: Tally) -> None:
        """The client's socket is gone."""
        self.near_end = tally
        if self.far_end is None:
            self._first_gone = ClosedBy.CLIENT
        if not tally.acknowledged:
            self._not_connected()
        elif self.far_end is not None:
            self._finish(None)

    def server_ended(self, tally: Tally) -> None:
        """The server's socket is gone."""
        self.far_end = tally
        if self.near_end is not None:
            self._finish(None)

    def look(self) -> None:
        """Asks the kernel: brings the counts up to date, and finds out about an end that nobody
        told of. Raises OSError."""
        if self.near_end is None:
            near = self.near.sockets.look(self.client, self.destination)
            if near is not None and near.state != TIME_WAIT:
                self._looked_at = near
                self.from_client = max(near.sent, self.from_client)
                self.from_server = max(near.received, self.from_server)
                if not self.arrived and time.monotonic() - self.begun > ARRIVAL:
                    # Nobody is asked any more at a pod that is about to leave the mesh.
                    self.arrived = not self.far.is_open and near.state == ESTABLISHED
                    if not self.arrived:
                        self._astray(near)
                return
            if not self._missing:
                # What has been counted is about to be told, mostly.
                self._missing = True
                return
            if self._looked_at is None or not self._looked_at.acknowledged:
                self._not_connected()
                return
        if self.far_end is None:
            far = self.far.sockets.look(self.target, self.client)
            if far is not None and far.state != TIME_WAIT:
                self.from_client = max(far.received, self.from_client)
                self.from_server = max(far.sent, self.from_server)
                return
        self._finish(None)

    def _astray(self, near: Tally) -> None:
        """The first packet did not come to the other pod: something between the pods holds it
        back (a NetworkPolicy that lets tunnels pass alone, say), or turns it elsewhere."""
        self.flows.distrust(self)
        state = "is answered from elsewhere" if near.state == ESTABLISHED else "does not arrive"
        reason = f"the first packet to {self.target[0]}:{self.target[1]} of this node {state}"
        for connection in (self._outbound, self._inbound):
            connection.record.fail(CONNECT, reason)
        self.abort(reason)

    # ---- end

    def abort(self, reason: str) -> None:
        """Resets both sockets."""
        if self.closed:
            return
        self._kill()
        self._close(Outcome(ClosedBy.PROXY, reason, self.from_client, self.from_server))

    def leave(self, reason: str) -> None:
        """One of the pods is not served any more.

        A first packet that still waits in a queue then goes where it would go without a mesh, or,
        while the pod is captured, into capture.
        """
        try:
            near = self.near.sockets.look(self.client, self.destination)
        except OSError:
            near = None  # not known to be at its beginning: ended, which says so
        if near is None or near.state != SYN_SENT:
            self.abort(reason)
        else:
            reason += " before it was connected; it goes on without the proxies"
            self._close(Outcome(ClosedBy.PROXY, reason, 0, 0))

    def _kill(self) -> None:
        for end, local, remote in (
            (self.near, self.client, self.destination),
            (self.far, self.target, self.client),
        ):
            try:
                tally = end.sockets.look(local, remote)
                end.sockets.abort(local, remote)
            except OSError as error:
                # It must not live on: tried again until it succeeds.
                log.error("%s:%d cannot be reset, trying again: %s", *local, error)
                self.flows.condemn(end, local, remote)
                continue
            if tally is not None and end is self.near:
                self.from_client = max(tally.sent, self.from_client)
                self.from_server = max(tally.received, self.from_server)

    def _not_connected(self) -> None:
        host, port = self.target
        reason = f"connect to {host}:{port}: refused, without an answer, or given up by the client"
        self.flows.forget(self)
        self.closed = True
        for connection in (self._outbound, self._inbound):
            connection.flow = None
            connection.fail_record(CONNECT, reason)

    def _finish(self, error: str | None) -> None:
        near_told, far_told = self.near_end is not None, self.far_end is not None
        near, far = self.near_end or self._looked_at, self.far_end
        if near is not None and far is not None:
            # A FIN counts as one that came; what was sent and never came does not count.
            self.from_client = min(near.sent, far.received)
            self.from_server = min(far.sent, near.received)
        first, reset = self.near.how_ended(self)
        if first is None:
            first = self._first_gone
            # The kernel does not tell whose socket it was that was closed by a reset of its own.
            if reset and near_told != far_told:
                first = ClosedBy.SERVER if near_told else ClosedBy.CLIENT
        if reset:
            error = f"{first.value}: Connection reset by peer"
        self._close(Outcome(first, error, self.from_client, self.from_server))

    def _close(self, outcome: Outcome) -> None:
        if self.closed:
            return
        self.closed = True
        self.flows.forget(self)
        self._outbound.flow_ended(outcome)
        self._inbound.flow_ended(outcome)


class DirectFlows:
    """All that are under way on a node, and the pods between which they do not arrive.

    Attributes:
        begun: by what the client sees: its own address, and where it connects to.
        arriving: the same by what the other pod sees.
    """

    def __init__(self) -> None:
        self.begun: dict[_Ends, DirectFlow] = {}
        self.arriving: dict[_Ends, DirectFlow] = {}
        self._distrusted: dict[tuple[str, str], float] = {}
        self._condemned: list[tuple[End, SocketAddress, SocketAddress]] = []

    def add(self, flow: DirectFlow) -> None:
        """A connection is let go."""
        self.begun[flow.client, flow.destination] = flow
        self.arriving[flow.client, flow.target] = flow

    def forget(self, flow: DirectFlow) -> None:
        """It has ended."""
        for table, key in (
            (self.begun, (flow.client, flow.destination)),
            (self.arriving, (flow.client, flow.target)),
        ):
            if table.get(key) is flow:
                del table[key]

    def trusts(self, near: LocalPod, far: LocalPod) -> bool:
        """False while first packets between these two are known to get lost."""
        until = self._distrusted.get((near.uid, far.uid))
        return until is None or until < time.monotonic()

    def distrust(self, flow: DirectFlow) -> None:
        """Leaves what goes between two pods to tunnels for a while."""
        near, far = flow.near.pod, flow.far.pod
        self._distrusted[near.uid, far.uid] = time.monotonic() + _DISTRUST
        log.warning(
            "connections from pod %s to pod %s do not arrive past the proxies; tunnels serve them"
            " for %d minutes", near, far, _DISTRUST / 60,
        )  # fmt: skip

    def condemn(self, end: End, local: SocketAddress, remote: SocketAddress) -> None:
        """A socket that could not be aborted yet."""
        self._condemned.append((end, local, remote))

    def look_after(self) -> set[End]:
        """Once a second: asks for counts, in turns; finds ends that nobody told of.

        Returns:
            the ends that have connections.
        """
        self._execute()
        busy: set[End] = set()
        for number, flow in enumerate(list(self.begun.values())):
            busy.update((flow.near, flow.far))
            half_over = flow.near_end is not None or flow.far_end is not None
            if number >= _LOOKS and not half_over and flow.arrived:
                continue
            try:
                flow.look()
            except OSError as error:
                log.debug("a connection cannot be looked at: %s", error)
            if not flow.closed:
                # To the end of the queue, so that all have their turn.
                key = flow.client, flow.destination
                self.begun[key] = self.begun.pop(key)
        return busy

    def _execute(self) -> None:
        waiting, self._condemned = self._condemned, []
        for end, local, remote in waiting:
            if not end.closed:
                try:
                    end.sockets.abort(local, remote)
                except OSError:
                    self.condemn(end, local, remote)
