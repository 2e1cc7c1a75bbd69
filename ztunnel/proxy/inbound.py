"""Connections to a pod of this node that come through a tunnel."""

import socket
from collections.abc import Callable
from typing import Any, Final

from ztunnel.hbone.events import ConnectRequested, RequestRejected
from ztunnel.hbone.proxy_protocol import build_proxy_header
from ztunnel.http2.errors import ErrorCode
from ztunnel.http2.events import StreamReset
from ztunnel.http2.stream import Stream
from ztunnel.linux.sockets import SocketAddress, is_connected
from ztunnel.mesh.changes import Changes
from ztunnel.mesh.connection import ConnectionAttributes
from ztunnel.mesh.decision import NeedsLookup
from ztunnel.mesh.identity import Identity
from ztunnel.mesh.inbound import (
    UNAUTHORIZED,
    UNAVAILABLE,
    InboundRefusal,
    InboundTarget,
)
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import Workload
from ztunnel.proxy.admit import admit, judge_again
from ztunnel.proxy.approach import Approaches
from ztunnel.proxy.connection import UNKNOWN_WORKLOAD, Connection, failure_of
from ztunnel.proxy.local_pod import LocalPod
from ztunnel.proxy.upstream import connect_to_application
from ztunnel.relay.stream import StreamFlow
from ztunnel.relay.stream_owner import NOBODY
from ztunnel.relay.tunnel import Tunnel
from ztunnel.telemetry.labels import CONNECT, DENY, Ends
from ztunnel.tls.spiffe import PeerCertificate

_EARLY_LIMIT: Final = 1 << 20  # bytes kept while the application is connected to; a window is less
_FROM_TUNNEL: Final = "tunnel from the peer's proxy"
_TOLD_FIRST: Final = "tunnel from the peer's proxy, handed on with a PROXY header"


class InboundTunnel:
    """A tunnel that a peer opened to one of our pods. Owns its `Tunnel`."""

    __slots__ = (
        "_ended", "approaches", "client", "identity", "leaving", "local_ip", "peer", "pod",
        "tunnel",
    )  # fmt: skip

    def __init__(
        self,
        pod: LocalPod,
        ended: "Callable[[InboundTunnel], None]",
        client: SocketAddress,
        local_ip: str,
        peer: PeerCertificate,
    ) -> None:
        self.pod = pod
        self._ended = ended
        self.client = client
        self.local_ip = local_ip
        self.peer = peer
        self.identity: Identity | None = peer.identity
        self.approaches = Approaches(pod.context, client[0], local_ip, peer.identity)
        self.leaving = False
        self.tunnel: Tunnel | None = None

    def worn_out(self, now: float) -> bool:
        """Whether new connections need a new handshake: the peer's certificate has expired, or
        the key has had its time."""
        exhausted = self.tunnel is not None and self.tunnel.session.exhausted
        return now >= self.peer.not_after or exhausted

    def event(self, tunnel: Tunnel, event: Any) -> None:
        """A new connection inside the tunnel, mostly."""
        if isinstance(event, ConnectRequested):
            if event.stream.closed:
                event.stream.owner = NOBODY  # reset by what came with it
                return
            connection = Inbound(self, tunnel, event)
            event.stream.owner = connection
            connection.start()
        elif isinstance(event, RequestRejected):
            event.stream.owner = NOBODY
            self.pod.context.refused(
                self.client, (self.local_ip, 15008), True, "request", event.reason
            )

    def tunnel_lost(self, tunnel: Tunnel, reason: str) -> None:
        """Whoever holds it forgets it."""
        if tunnel.http.terminated is not None:
            # There may be no connection in it whose log line could tell.
            words = f"tunnel of {self.peer.presented}: {reason}"
            self.pod.context.refused(self.client, (self.local_ip, 15008), True, "http2", words)
        self._ended(self)


class Inbound(Connection):
    """One CONNECT, from its headers to its log line."""

    __slots__ = (
        "_attributes", "_early", "_early_ended", "_looked_up", "_request",
        "_stream", "_target", "_tunnel", "_workload", "tunnel_owner",
    )  # fmt: skip

    def __init__(self, owner: InboundTunnel, tunnel: Tunnel, request: ConnectRequested) -> None:
        super().__init__(owner.pod.context, owner.pod.uid, owner.client)
        self.tunnel_owner = owner
        self._tunnel = tunnel
        self._request = request
        self._stream: Stream = request.stream
        self._workload: Workload | None = None
        self._attributes: ConnectionAttributes | None = None
        self._target: InboundTarget | None = None
        self._looked_up = False
        self._early = bytearray()
        self._early_ended = request.end_stream

    # ---- decide

    def start(self) -> None:
        """Validates, authorizes, connects."""
        self._workload = self.tunnel_owner.pod.workload()
        if self._workload is None:
            self.context.spawn(self._wait_for_workload)
        else:
            self._judge()

    async def _wait_for_workload(self) -> None:
        pod = self.tunnel_owner.pod
        self._workload = await pod.wait_for_workload()
        if self._stream.closed or self._tunnel.closed:
            return
        if self._workload is None:
            self._refuse_early(
                UNAVAILABLE, f"failed to fetch information about local workload {pod}"
            )
            return
        self._judge()

    def _judge(self) -> None:
        context, owner = self.context, self.tunnel_owner
        workload = self._workload
        assert workload is not None
        found = owner.approaches.find(workload, self._request)
        if isinstance(found, InboundRefusal):
            self._open_unknown()
            self._refuse(found.status, CONNECT, found.reason)
            return
        if isinstance(found, NeedsLookup):
            if self._looked_up:
                self._open_unknown()
                self._refuse(UNAVAILABLE, CONNECT, f"no answer: {found.reason}")
            else:
                self._looked_up = True
                context.spawn(self._look_up, found.key)
            return
        self._target = target = found.target
        self._open(found.ends, _TOLD_FIRST if target.proxy_protocol else _FROM_TUNNEL)
        self._attributes = found.attributes
        verdict = admit(context, self.record, workload, found.attributes)
        if not verdict.allowed:
            self._refuse(UNAUTHORIZED, DENY, verdict.reason)
            return
        self._connect(target)

    async def _look_up(self, key: str) -> None:
        await self.context.look_up(key)
        if not self._stream.closed and not self._tunnel.closed:
            self._judge()

    def _open_unknown(self) -> None:
        """For a request that leads nowhere."""
        workload = self._workload
        assert workload is not None
        ends = self.tunnel_owner.approaches.ends(workload, self._request, None)
        self._open(ends, _FROM_TUNNEL)

    def _open(self, ends: Ends, reason: str) -> None:
        address = (self.tunnel_owner.local_ip, 15008)
        self.open_record(ends, address, self._request.authority.text, reason)

    # ---- connect

    def _connect(self, target: InboundTarget) -> None:
        if self._stream.closed or self._tunnel.http.terminated is not None:
            return  # what came after the request, and is told next, ended it already
        owner = self.tunnel_owner
        source = None if target.from_loopback else owner.client[0]
        try:
            sock = connect_to_application(owner.pod, target.connect, source)
        except OSError as error:
            self._unreachable(error, target.connect)
            return
        if self.context.admission.is_full(sock):
            # A stream of a tunnel needs no descriptor but this one: nothing else would stop them.
            sock.close()
            self._refuse(UNAVAILABLE, CONNECT, "too many connections: no descriptors are left")
            return
        if is_connected(sock):
            # The application is on this machine: its kernel answered before the call returned.
            self._connected(sock, None)
            return
        self.wait_for(sock, self._connected)

    def _connected(self, sock: socket.socket | None, error: OSError | None) -> None:
        self.connecting = None
        target = self._target
        assert target is not None
        if sock is None:
            assert error is not None
            self._unreachable(error, target.connect)
            return
        if self.ended or self._stream.closed:
            self.context.engine.close_later(sock)
            return
        tunnel, stream = self._tunnel, self._stream
        baggage = ""
        if self.context.config.tunnel.response_baggage:
            assert self._workload is not None
            baggage = self.tunnel_owner.pod.baggage(self._workload)
        tunnel.server.accept(stream, baggage)
        tunnel.mark_dirty()
        flow = StreamFlow(tunnel, stream, sock, self, app_is_client=False)
        header = b""
        if target.proxy_protocol:
            header = self._proxy_header(target)
        if header or self._early or self._early_ended:
            flow.start_with(header, bytes(self._early), self._early_ended)
            self._early = bytearray()
        self.running(flow)

    def _proxy_header(self, target: InboundTarget) -> bytes:
        owner = self.tunnel_owner
        identity = owner.identity.uri if owner.identity is not None else ""
        return build_proxy_header(
            owner.client,
            target.proxy_destination or target.destination,
            identity=identity,
            target_host=target.service.hostname if target.service is not None else "",
        )

    def _unreachable(self, error: OSError, address: SocketAddress) -> None:
        flags, words = failure_of(error, address)
        self._refuse(UNAVAILABLE, flags, words)

    # ---- refuse

    def _refuse_early(self, status: int, reason: str) -> None:
        self.ended = True
        self.context.refused(
            self.client, (self.tunnel_owner.local_ip, 15008), True, UNKNOWN_WORKLOAD, reason
        )
        self._answer(status, reason)

    def _refuse(self, status: int, flags: str, reason: str) -> None:
        self._answer(status, reason)
        self.fail_record(flags, reason)

    def _answer(self, status: int, reason: str) -> None:
        stream, tunnel = self._stream, self._tunnel
        if tunnel.closed or stream.local_closed:
            return
        if stream.responded:
            tunnel.http.reset(stream, ErrorCode.INTERNAL_ERROR, self.context.engine.now)
        else:
            # A refused peer learns that it was refused; which policy says so is for our own log.
            tunnel.server.refuse(stream, status, "" if status == UNAUTHORIZED else reason)
        stream.owner = NOBODY
        tunnel.mark_dirty()

    # ---- from the peer, before the application is connected

    def deliver(self, view: memoryview, ended: bool) -> None:
        """Kept until there is somebody to take it; the stream's window bounds it."""
        if len(self._early) + len(view) > _EARLY_LIMIT:
            self._stop("the peer sent too much before it was accepted")
            return
        self._early += view
        self._early_ended = self._early_ended or ended

    def reset(self, event: StreamReset) -> None:
        """The peer lost interest before it was answered."""
        self._stop(f"the peer reset the stream ({event.code.name}) before it was answered")

    def lost(self, reason: str) -> None:
        """The tunnel broke before the connection was answered."""
        self._stop(reason)

    def _stop(self, reason: str) -> None:
        self.stop_waiting()
        if not self._stream.closed and not self._tunnel.closed:
            self._tunnel.http.reset(self._stream, ErrorCode.CANCEL, self.context.engine.now)
            self._tunnel.mark_dirty()
        self._stream.owner = NOBODY
        if not self.ended and hasattr(self, "record"):
            self.fail_record(CONNECT, reason)
        self.ended = True

    # ---- later

    def rejudge(self, state: MeshState, changes: Changes) -> None:
        """Ends the connection if what changed forbids it."""
        workload, attributes = self._workload, self._attributes
        if workload is None or attributes is None or not changes.rejudge(workload):
            return
        current = self.tunnel_owner.pod.workload()
        self._workload = current or workload
        judge_again(self.context, self, current, attributes)

    def cancel(self, flags: str, reason: str) -> None:
        """See `Connection`."""
        self.stop_waiting()
        self._refuse(UNAUTHORIZED if flags == DENY else UNAVAILABLE, flags, reason)
