"""Connections that a pod of this node makes."""

import socket
import time
from collections.abc import Mapping, Sequence
from typing import Final

from ztunnel.hbone.events import TunnelAccepted, TunnelRefused
from ztunnel.hbone.forwarded import format_forwarded
from ztunnel.hbone.traceparent import RANDOM_BITS, new_traceparent
from ztunnel.http2.errors import UsageError
from ztunnel.http2.stream import Stream
from ztunnel.linux.sockets import SocketAddress, start_connect
from ztunnel.mesh.changes import Changes
from ztunnel.mesh.decision import (
    Decision,
    Direct,
    Hbone,
    NeedsDns,
    NeedsLookup,
    Passthrough,
    RefusalCode,
    Refuse,
    Via,
)
from ztunnel.mesh.inbound import UNAVAILABLE
from ztunnel.mesh.outbound import decide
from ztunnel.mesh.service import Service
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import Workload
from ztunnel.proxy.captured import Captured
from ztunnel.proxy.connection import failure_of
from ztunnel.proxy.failure import ConnectFailure
from ztunnel.proxy.inquiry import Unanswered, inquire
from ztunnel.proxy.join import BothSides, Joined, join
from ztunnel.proxy.local_pod import LocalPod
from ztunnel.proxy.routes import Route
from ztunnel.relay.flow import ClosedBy
from ztunnel.relay.pair import PairFlow
from ztunnel.relay.stream import StreamFlow
from ztunnel.relay.tunnel import Tunnel
from ztunnel.telemetry.labels import CONNECT, DENY, IDENTITY_ERROR, TLS_FAILURE, Ends

_TRIES: Final = 3  # endpoints tried before a connection is given up

_NO_NAMES: Mapping[str, Sequence[str]] = {}


class Outbound(Captured):
    """One connection from a pod, from accept to its log line."""

    __slots__ = (
        "_asked_at", "_failure", "_names", "_other", "_stream", "_taken", "_tried", "_tunnel",
    )  # fmt: skip

    inbound = False

    def __init__(
        self,
        pod: LocalPod,
        sock: socket.socket,
        client: SocketAddress,
        destination: SocketAddress,
    ) -> None:
        super().__init__(pod, sock, client, destination)
        self._names = _NO_NAMES
        self._tried: tuple[str, ...] = ()
        self._failure: tuple[str, str] | None = None  # flags and words of the last endpoint tried
        self._taken: Route | None = None
        self._other: Joined | None = None
        self._stream: Stream | None = None
        self._tunnel: Tunnel | None = None
        self._asked_at = 0.0

    # ---- decide

    def _begin(self) -> None:
        """Decides; once more for another endpoint where one could not be reached."""
        if not self._tried:
            route = self._pod.routes.certain(self.destination)
            if route is not None:
                self._reach(route)
                return
        decision = self._decide("")
        if isinstance(decision, NeedsDns | NeedsLookup):
            self.context.spawn(self._ask, decision)
        else:
            self._follow(decision)

    def _decide(self, prefer: str) -> Decision:
        context = self.context
        workload = self._workload
        assert workload is not None
        return decide(
            context.state,
            workload,
            self.destination,
            rng=context.rng,
            resolved=self._names,
            exclude=self._tried,
            prefer=prefer,
            illegal_ports=context.illegal_ports,
        )

    async def _ask(self, decision: Decision) -> None:
        """Gets what the decision needs, decides again, and follows what comes of it."""
        workload = self._workload
        assert workload is not None
        self._names = names = dict(self._names)
        try:
            decision = await inquire(self.context, workload, decision, names, self._decide)
        except Unanswered as unanswered:
            needed = unanswered.decision
            self._open_plain(None, needed.service, self.destination, needed.reason)
            self._give_up(CONNECT, str(unanswered))
            return
        self._follow(decision)

    def _follow(self, decision: Decision) -> None:
        if isinstance(decision, Hbone):
            self._reach(self._pod.routes.of(self.destination, decision))
        elif isinstance(decision, Passthrough | Direct):
            self._connect(decision)
        elif isinstance(decision, Refuse):
            flags = DENY if decision.code is RefusalCode.SELF_CALL else CONNECT
            self._open_plain(decision.workload, decision.service, self.destination, decision.reason)
            if self._failure is None:
                self._give_up(flags, decision.reason)
            else:
                self._give_up(self._failure[0], f"{decision.reason}; at last: {self._failure[1]}")
        else:
            reason = f"names that must be looked up follow one another: {decision.reason}"
            self._open_plain(None, decision.service, self.destination, decision.reason)
            self._give_up(CONNECT, reason)

    # ---- plain

    def _connect(self, decision: Passthrough | Direct) -> None:
        context = self.context
        self._open_plain(decision.workload, decision.service, decision.next_hop, decision.reason)
        try:
            sock = start_connect(
                decision.next_hop,
                mark=context.mark,
                keepalive=context.keepalive,
                stock=self._pod.sockets_ahead,
            )
        except OSError as error:
            self._give_up(*failure_of(error, decision.next_hop))
            return
        self.wait_for(sock, self._connected)

    def _connected(self, sock: socket.socket | None, error: OSError | None) -> None:
        self.connecting = None
        if sock is None:
            assert error is not None
            self._give_up(*failure_of(error, self.record.destination_address))
            return
        flow = PairFlow(self.context.engine, self._sock, sock, self, ClosedBy.SERVER)
        self.running(flow)

    def _reach(self, route: Route) -> None:
        workload = self._workload
        assert workload is not None
        self._taken = route
        if not join(self._pod, self, workload, route.decision):
            self._tunnel_to(route)

    # ---- joined with a pod of this node

    def joined(self, sock: socket.socket, other: Joined) -> None:
        """The application there is connected to."""
        context, route, pod = self.context, self._taken, self._pod
        assert route is not None
        if pod.scope.cancel_called:
            context.engine.close_later(sock)
            other.fail_record(CONNECT, "the client's pod has left the mesh")
            self._refuse_early("the pod has left the mesh")
            return
        decision = route.decision
        workload = decision.workload
        ends = self._ends(workload, decision.service, workload.identity.uri)
        reason = f"joined with workload {workload} of this node instead of a {decision.reason}"
        self._open(ends, other.record.destination_address, "", reason)
        self._other = other
        flow = PairFlow(context.engine, self._sock, sock, BothSides(self, other))
        self.running(flow)
        other.running(flow)

    def not_joined(self, status: int, reason: str) -> None:
        """It was refused there, or the application cannot be reached."""
        words = f"the destination refused the connection with status {status}"
        if reason:
            words += f": {reason}"
        if status == UNAVAILABLE:
            self._again(CONNECT, words)
        else:
            self._fail_tunnelled(CONNECT, words)

    # ---- through a tunnel

    def _tunnel_to(self, route: Route) -> None:
        context, workload = self.context, self._workload
        assert workload is not None
        context.engine.expire_at(self, context.deadline(context.answer_timeout))
        self._pod.pool(workload.identity).request(route.key, self)

    def tunnel_ready(self, tunnel: Tunnel) -> None:
        """A tunnel has room: ask for the connection."""
        route, pod, workload = self._taken, self._pod, self._workload
        assert route is not None
        assert workload is not None
        decision = route.decision
        self._tunnel = tunnel
        service = decision.service
        try:
            stream = tunnel.client.connect(
                decision.authority,
                baggage=pod.baggage(workload),
                forwarded=format_forwarded(
                    self.client[0], self.client[1], service.hostname if service is not None else ""
                ),
                traceparent=new_traceparent(self.context.rng.getrandbits(RANDOM_BITS)),
                extra=self._pod.network_header if decision.via is Via.GATEWAY else (),
            )
        except UsageError as error:
            # The peer takes no header list as long as ours.
            self._fail_tunnelled(CONNECT, f"the peer cannot be asked: {error}")
            return
        stream.owner = self
        self._stream = stream
        self._asked_at = time.monotonic()
        tunnel.mark_dirty()

    def tunnel_failed(self, failure: ConnectFailure) -> None:
        """No tunnel: another endpoint may do, for nothing has been sent yet."""
        self._again(failure.flags, str(failure))

    def accepted(self, event: TunnelAccepted) -> None:
        """The peer's proxy is connected to the application there."""
        tunnel, stream = self._tunnel, self._stream
        assert tunnel is not None
        assert stream is not None
        self.context.engine.in_time(self)
        self.context.answered.observe(time.monotonic() - self._asked_at)
        self._open_tunnelled(tunnel, event.baggage)
        self.running(StreamFlow(tunnel, stream, self._sock, self, app_is_client=True))

    def refused(self, event: TunnelRefused) -> None:
        """The peer's proxy answered otherwise."""
        self.context.took(False, "answer", False, self._asked_at)
        # 503 says that the application there could not be reached: another one may do.
        if event.status == 503 or event.retryable:
            self._again(CONNECT, event.reason, same_endpoint=event.retryable)
        else:
            self._fail_tunnelled(CONNECT, event.reason)

    def unprocessed(self) -> None:
        """The peer went away without looking at it."""
        self._again(CONNECT, "the peer is going away", same_endpoint=True)

    def lost(self, reason: str) -> None:
        """The tunnel broke while the CONNECT was under way."""
        if reason.startswith("TLS:"):
            self._again(TLS_FAILURE, reason)
        else:
            # A tunnel that stood for long may turn out to be dead, and nothing of the
            # application was sent yet.
            self._again(CONNECT, reason, same_endpoint=True)

    def expired(self) -> None:
        """No answer to the CONNECT in time."""
        if self._stream is not None and self._tunnel is not None:
            self._tunnel.client.abandon(self._stream, self.context.engine.now)
            self._tunnel.mark_dirty()
        elif self._taken is not None and self._workload is not None:
            self._pod.pool(self._workload.identity).give_up(self._taken.key, self)
        self._fail_tunnelled(CONNECT, "no answer to the CONNECT request in time")

    def _again(self, flags: str, reason: str, same_endpoint: bool = False) -> None:
        """Tries another endpoint of the service, if there is one and it was not tried yet."""
        assert self._taken is not None
        decision = self._taken.decision
        self.context.engine.in_time(self)  # what is tried next has a time limit of its own
        self._failure = (flags, reason)
        if len(self._tried) + 1 < _TRIES:
            # An empty entry counts the attempt without ruling the endpoint out.
            self._tried = (*self._tried, "" if same_endpoint else decision.workload.uid)
            if same_endpoint or (
                decision.service is not None and self._has_another(decision.service)
            ):
                self._stream = self._tunnel = None
                self._begin()
                return
        self._fail_tunnelled(flags, reason)

    def _has_another(self, service: Service) -> bool:
        return any(
            endpoint.uid not in self._tried
            for endpoint in self.context.state.endpoints(service.key)
        )

    def _open_tunnelled(self, tunnel: Tunnel | None, baggage: str = "") -> None:
        route = self._taken
        assert route is not None
        assert self._workload is not None
        decision = route.decision
        peer = None
        if tunnel is not None:
            peer = self._pod.pool(self._workload.identity).peer_of(tunnel)
        identity = peer.identity if peer is not None else None
        ends = route.ends if tunnel is not None and identity is route.identity else None
        if ends is None:
            ends = self._ends(
                decision.workload,
                decision.service,
                identity.uri if identity is not None else "",
                mutual_tls=tunnel is not None,
            )
            if tunnel is not None:
                route.identity, route.ends = identity, ends
        self._open(ends, decision.next_hop, decision.authority, decision.reason)
        believed = self.context.config.tunnel.response_baggage
        if decision.via is Via.GATEWAY and baggage and peer is not None and believed:
            # Who answered is known only from the other network's own words.
            self._pod.describe_far_end(self.record, baggage, peer.identity)

    def _fail_tunnelled(self, flags: str, reason: str) -> None:
        if not self.ended:
            self._open_tunnelled(self._tunnel)
            self._give_up(flags, reason)

    # ---- later

    def rejudge(self, state: MeshState, changes: Changes) -> None:
        """Ends the connection if its far end is no longer whom the mesh says it is.

        A workload that is gone is not cut here: its own proxy ends its tunnels, after what its
        termination period lets it finish, and a dead one does not answer the next PING.
        """
        if self._other is not None:
            self._other.rejudge(state, changes)
            return
        route = self._taken
        if route is None or self.flow is None or self._tunnel is None or self._workload is None:
            return
        decision = route.decision
        if decision.via is Via.GATEWAY or decision.workload.uid not in changes.workloads:
            return
        current = state.workload(decision.workload.uid)
        peer = self._pod.pool(self._workload.identity).peer_of(self._tunnel)
        if current is None or peer is None or current.identity.uri in peer.uris:
            return
        if current.identity != decision.workload.identity:
            self.context.revoked("identity")
            self.end(
                IDENTITY_ERROR,
                f"connection closed: workload {current} is {current.identity.uri} now, and the"
                f" tunnel leads to {peer.presented}",
            )

    # ---- records

    def _ends(
        self,
        workload: Workload | None,
        service: Service | None,
        peer_identity: str = "",
        mutual_tls: bool = False,
    ) -> Ends:
        context = self.context
        source = self._workload
        assert source is not None
        return context.labels.ends(
            False,
            context.peers.workload(source),
            context.peer(workload),
            context.peers.service(service) if service is not None else None,
            source.identity.uri if mutual_tls or peer_identity else "",
            peer_identity,
            mutual_tls,
        )

    def _open(self, ends: Ends, next_hop: SocketAddress, authority: str, reason: str) -> None:
        record = self.open_record(ends, next_hop, authority, reason)
        record.original_destination = self.destination

    def _open_plain(
        self,
        workload: Workload | None,
        service: Service | None,
        next_hop: SocketAddress,
        reason: str,
    ) -> None:
        """For a connection without a tunnel."""
        self._open(self._ends(workload, service), next_hop, "", reason)

    def _give_up(self, flags: str, reason: str) -> None:
        self.context.engine.in_time(self)
        super()._give_up(flags, reason)
