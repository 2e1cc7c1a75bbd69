"""Our TLS, HTTP/2 and HBONE rooms on a socket, driven by trio: just enough to talk to a peer.

A `Tunnel` is one connection; a `Flow` one stream on it, with a way to read and to write.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

import trio

from ztunnel.hbone.client import TunnelClient
from ztunnel.hbone.events import ConnectRequested, TunnelAccepted, TunnelRefused
from ztunnel.hbone.server import TunnelServer
from ztunnel.http2.errors import ErrorCode
from ztunnel.http2.events import (
    Event,
    GoAwayReceived,
    PingAcknowledged,
    SettingsReceived,
    StreamReset,
    StreamWritable,
)
from ztunnel.http2.settings import LocalSettings
from ztunnel.http2.stream import Stream
from ztunnel.tls.contexts import Records, make_context
from ztunnel.tls.errors import TlsError
from ztunnel.tls.handshake import Handshake, HandshakeResult
from ztunnel.tls.session import OPEN_SLACK, sealed_size
from ztunnel.tls.spiffe import PeerCertificate
from ztunnel.tls.workload_certificate import WorkloadCertificate

CHUNK = 256 * 1024
TEST_SECONDS = 60  # a test whose peer does not answer fails and does not hang
End = TypeVar("End", TunnelClient, TunnelServer)
Verify = Callable[[PeerCertificate], None]


class Refused(Exception):
    """The server did not accept the CONNECT."""

    def __init__(self, event: TunnelRefused) -> None:
        super().__init__(event.reason)
        self.status = event.status


class TunnelLost(Exception):
    """The connection ended; the text says how."""


class Change:
    """Wakes everybody who waits for something to change."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def tell(self) -> None:
        self._event.set()
        self._event = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._event.wait()


class Flow:
    """One stream.

    Attributes:
        received: what has come and was not taken yet.
        ended: the peer has sent END_STREAM.
        reset: how the stream was reset, if it was.
        paused: what comes is kept and not consumed, so that its window runs out.
    """

    def __init__(self, tunnel: Tunnel[Any], stream: Stream) -> None:
        self.tunnel = tunnel
        self.stream = stream
        self.received = bytearray()
        self.total = 0
        self.ended = False
        self.reset: StreamReset | None = None
        self.accepted: TunnelAccepted | None = None
        self.refused: TunnelRefused | None = None
        self.request: ConnectRequested | None = None
        self.paused = False
        stream.owner = self

    def _over(self) -> bool:
        return self.ended or self.reset is not None or self.tunnel.lost is not None

    async def established(self) -> Flow:
        """Wait for the answer to our CONNECT. Raises Refused, TunnelLost."""
        await self.tunnel.change.until(
            lambda: bool(self.accepted or self.refused or self.tunnel.lost)
        )
        if self.refused is not None:
            raise Refused(self.refused)
        if self.accepted is None:
            raise TunnelLost(self.tunnel.lost)
        return self

    async def read(self, count: int) -> bytes:
        """Exactly `count` bytes, or fewer where the stream is over."""
        await self.tunnel.change.until(lambda: len(self.received) >= count or self._over())
        taken = bytes(self.received[:count])
        del self.received[: len(taken)]
        return taken

    async def read_some(self) -> bytes:
        """What there is, once there is something; nothing where the stream is over."""
        await self.tunnel.change.until(lambda: bool(self.received) or self._over())
        return await self.read(len(self.received))

    async def read_to_end(self) -> bytes:
        """All that comes before END_STREAM. Raises TunnelLost when it is cut short."""
        await self.tunnel.change.until(self._over)
        if not self.ended:
            raise TunnelLost(str(self.reset or self.tunnel.lost))
        taken = bytes(self.received)
        self.received.clear()
        return taken

    async def until_reset(self) -> StreamReset:
        """How the stream was reset. Raises TunnelLost when the tunnel ended instead."""
        await self.tunnel.change.until(
            lambda: self.reset is not None or self.tunnel.lost is not None
        )
        if self.reset is None:
            raise TunnelLost(self.tunnel.lost)
        return self.reset

    async def write(self, data: bytes, end: bool = False) -> None:
        """Send all of it, as windows allow. Raises TunnelLost when the stream is reset."""
        view = memoryview(data)
        connection = self.tunnel.connection
        while True:
            if self.reset is not None or self.tunnel.lost is not None:
                raise TunnelLost(str(self.reset or self.tunnel.lost))
            view = view[connection.send(self.stream, view, end) :]
            await self.tunnel.flush()
            if not view:
                return
            await self.tunnel.change.until(
                lambda: connection.sendable(self.stream) > 0 or self._cut()
            )

    def _cut(self) -> bool:
        return self.reset is not None or self.tunnel.lost is not None

    async def end(self) -> None:
        self.tunnel.connection.end(self.stream)
        await self.tunnel.flush()

    async def cancel(self, code: ErrorCode = ErrorCode.CANCEL) -> None:
        """Reset the stream."""
        self.tunnel.connection.reset(self.stream, code, trio.current_time())
        await self.tunnel.flush()

    def resume(self) -> None:
        """Consume what has come while paused."""
        self.paused = False
        self.tunnel.connection.consumed(self.stream, len(self.received))


class Tunnel(Generic[End]):
    """One connection that has finished its handshake.

    Attributes:
        lost: why the connection is over, or None.
        goaway: the peer's last GOAWAY.
        pongs: payloads of PINGs that were answered.
    """

    def __init__(
        self,
        transport: trio.SocketStream,
        result: HandshakeResult,
        connection: End,
        on_request: Callable[[Flow], Awaitable[None]] | None = None,
    ) -> None:
        self.transport = transport
        self.peer = result.peer
        self.alpn = result.alpn
        self.session = result.session
        self.connection: End = connection
        self.lost: str | None = None
        self.goaway: GoAwayReceived | None = None
        self.pongs: list[bytes] = []
        self.change = Change()
        self._on_request = on_request
        self._leftover = result.leftover
        self._lock = trio.Lock()

    async def flush(self) -> None:
        """Send what the connection has to say."""
        async with self._lock:
            while self.connection.out and self.lost is None:
                plain = self.connection.take()
                size = len(plain)
                plain.append(0)  # the session borrows one byte behind the content
                sealed = bytearray(sealed_size(size))
                length = self.session.seal(memoryview(plain), 0, size, memoryview(sealed), 0)
                try:
                    await self.transport.send_all(sealed[:length])
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return  # why is in what the peer has sent before, and run() reads that

    async def run(self, nursery: trio.Nursery) -> None:
        """Receive until the connection ends."""
        await self.flush()
        wire = self._leftover
        while self.lost is None:
            wire = wire[self._open(wire, nursery) :]
            await self.flush()
            if self.session.ended:
                error = self.session.error
                self._lose(str(error) if error else "close_notify")
                return
            try:
                more = await self.transport.receive_some(CHUNK)
            except trio.BrokenResourceError as error:
                self._lose(f"broken: {error.__cause__ or error}")
                return
            except trio.ClosedResourceError:
                self._lose("closed by the test")
                return
            if not more:
                self._lose("end of stream without close_notify")
            wire += more

    def _lose(self, why: str) -> None:
        self.lost = self.lost or why
        self.change.tell()

    def _open(self, wire: bytes, nursery: trio.Nursery) -> int:
        plain = bytearray(len(wire) + OPEN_SLACK)
        size = len(wire)
        consumed, produced = self.session.open(memoryview(wire), 0, size, memoryview(plain), 0)
        view = memoryview(plain)[:produced]
        for event in self.connection.receive(view, trio.current_time()):
            if isinstance(event, tuple):
                self._data(*event)
            else:
                self._handle(event, nursery)
        self.change.tell()
        return consumed

    def _data(self, stream: Stream, view: memoryview, ends: bool) -> None:
        flow: Flow = stream.owner
        flow.received += view
        flow.total += len(view)
        flow.ended = ends
        if view and not flow.paused:
            self.connection.consumed(stream, len(view))

    def _handle(self, event: Event, nursery: trio.Nursery) -> None:
        match event:
            case ConnectRequested():
                flow = Flow(self, event.stream)
                flow.request = event
                flow.ended = event.end_stream
                assert self._on_request is not None
                nursery.start_soon(self._on_request, flow)
            case TunnelAccepted():
                event.stream.owner.accepted = event
            case TunnelRefused():
                event.stream.owner.refused = event
            case StreamReset():
                event.stream.owner.reset = event
            case GoAwayReceived():
                self.goaway = event
            case PingAcknowledged():
                self.pongs.append(event.payload)
            case StreamWritable() | SettingsReceived():
                pass
        if self.connection.terminated is not None:
            self._lose(self.connection.terminated.reason)


class ClientTunnel(Tunnel[TunnelClient]):
    """Our end opens streams."""

    async def connect(
        self, authority: str, *, baggage: str = "", forwarded: str = "", traceparent: str = ""
    ) -> Flow:
        """Open a stream, as soon as the peer allows one more. Raises Refused, TunnelLost."""
        connection = self.connection
        await self.change.until(lambda: connection.can_open() or self.lost is not None)
        if self.lost is not None:
            raise TunnelLost(self.lost)
        stream = connection.connect(
            authority, baggage=baggage, forwarded=forwarded, traceparent=traceparent
        )
        flow = Flow(self, stream)
        await self.flush()
        return await flow.established()


async def shake_hands(
    transport: trio.SocketStream,
    certificate: WorkloadCertificate,
    verify: Verify,
    server_side: bool,
    records: Records,
) -> HandshakeResult:
    """Raises TlsError; what we owe the peer then has been sent."""
    context = make_context(certificate, server_side=server_side, records=records)
    handshake = Handshake(context, verify)
    try:
        handshake.start()
        await transport.send_all(handshake.outgoing())
        while not handshake.done:
            data = await transport.receive_some(CHUNK)
            if not data:
                raise TunnelLost("the peer closed in the handshake")
            handshake.feed(data)
            await transport.send_all(handshake.outgoing())
    except TlsError as error:
        await transport.send_all(error.reply)
        raise
    return handshake.result


@asynccontextmanager
async def client(
    port: int,
    certificate: WorkloadCertificate,
    verify: Verify,
    records: Records = "own",
    settings: LocalSettings | None = None,
) -> AsyncIterator[ClientTunnel]:
    """A tunnel to an HBONE server on loopback. Raises TlsError."""
    transport = await trio.open_tcp_stream("127.0.0.1", port)
    async with client_on(transport, certificate, verify, records, settings) as tunnel:
        yield tunnel


@asynccontextmanager
async def client_on(
    transport: trio.SocketStream,
    certificate: WorkloadCertificate,
    verify: Verify,
    records: Records = "own",
    settings: LocalSettings | None = None,
) -> AsyncIterator[ClientTunnel]:
    """A tunnel over a connection to an HBONE server. Raises TlsError."""
    with trio.fail_after(TEST_SECONDS):
        async with transport:
            result = await shake_hands(transport, certificate, verify, False, records)
            tunnel = ClientTunnel(transport, result, TunnelClient(settings))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tunnel.run, nursery)
                yield tunnel
                nursery.cancel_scope.cancel()


async def until_settings(tunnel: Tunnel[Any]) -> None:
    """Wait for the peer's SETTINGS, or the end."""
    await tunnel.change.until(
        lambda: tunnel.connection.settings_received or tunnel.lost is not None
    )


class ServerTunnel(Tunnel[TunnelServer]):
    """The peer opens streams."""

    async def accept(self, flow: Flow) -> None:
        self.connection.accept(flow.stream)
        await self.flush()

    async def refuse(self, flow: Flow, status: int, reason: str = "") -> None:
        self.connection.refuse(flow.stream, status, reason)
        await self.flush()


class TunnelListener:
    """An HBONE server of ours on loopback.

    Attributes:
        tunnels: all connections, in the order they came.
        failures: handshakes that failed.
    """

    def __init__(
        self,
        certificate: WorkloadCertificate,
        verify: Verify,
        on_request: Callable[[Flow], Awaitable[None]],
        records: Records,
        settings: LocalSettings | None,
    ) -> None:
        self.port = 0
        self.tunnels: list[ServerTunnel] = []
        self.failures: list[TlsError | TunnelLost] = []
        self.change = Change()
        self._arguments = (certificate, verify, True, records)
        self._settings = settings
        self._on_request = on_request

    async def serve(self, transport: trio.SocketStream) -> None:
        async with transport:
            try:
                result = await shake_hands(transport, *self._arguments)
            except (TlsError, TunnelLost) as error:
                self.failures.append(error)
                self.change.tell()
                return
            server = TunnelServer(self._settings)
            tunnel = ServerTunnel(transport, result, server, self._on_request)
            self.tunnels.append(tunnel)
            self.change.tell()
            async with trio.open_nursery() as nursery:
                await tunnel.run(nursery)


@asynccontextmanager
async def listener(
    certificate: WorkloadCertificate,
    verify: Verify,
    on_request: Callable[[Flow], Awaitable[None]],
    records: Records = "own",
    settings: LocalSettings | None = None,
    sock: trio.SocketListener | None = None,
) -> AsyncIterator[TunnelListener]:
    """Serve tunnels on `sock`, or on loopback; each request is a task of `on_request`."""
    with trio.fail_after(TEST_SECONDS):
        found = TunnelListener(certificate, verify, on_request, records, settings)
        if sock is None:
            [sock] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        found.port = sock.socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, found.serve, [sock])
            yield found
            nursery.cancel_scope.cancel()
