"""One end of a tunnel in the engine: socket, TLS records, HTTP/2, and the flows on it.

In a round, each ready flow appends its frames to the tunnel's pending bytes;
at the round's end the tunnel seals and sends them in one go. In the other
direction one `recv` is opened and all its frames are dispatched in one loop.
"""

import logging
import select
import socket
import time
from typing import Any, Final, NamedTuple, Protocol

from ztunnel.hbone.client import TunnelClient
from ztunnel.hbone.events import ConnectRequested, TunnelAccepted, TunnelRefused
from ztunnel.hbone.server import TunnelServer
from ztunnel.http2.errors import ErrorCode
from ztunnel.http2.events import (
    ConnectionTerminated,
    GoAwayReceived,
    PingAcknowledged,
    SettingsAcknowledged,
    StreamReset,
    StreamWritable,
    TrailersReceived,
)
from ztunnel.http2.stream import Stream
from ztunnel.relay.buffers import HEADER, READ, RECORD
from ztunnel.relay.engine import Engine
from ztunnel.relay.leaving import Leaving
from ztunnel.relay.stream_owner import StreamOwner
from ztunnel.tls.session import Session

log = logging.getLogger("ztunnel.relay")

_IN: Final = select.EPOLLIN | select.EPOLLRDHUP
_OUT: Final = select.EPOLLOUT
_SUSPICIOUS: Final = 3.0  # seconds


class Keepalive(NamedTuple):
    """How the death of a peer that says nothing is noticed, in seconds; as Istio's proxies do."""

    interval: float = 10.0  # between two PINGs
    timeout: float = 20.0  # without an answer


class TunnelOwner(Protocol):
    """Who made the tunnel: a pool, or the inbound listener."""

    def event(self, tunnel: "Tunnel", event: Any) -> None:
        """An event that concerns no stream, or a new stream (server)."""

    def tunnel_lost(self, tunnel: "Tunnel", reason: str) -> None:
        """The tunnel is closed; all its streams have been told. Called once."""


class Tunnel:
    """An established tunnel. Registers itself with the engine.

    Attributes:
        blocked: the socket takes no more; flows must not read from their applications.
        path: who seals and opens its records, as flows report it: tls, or ktls (the kernel).
        splices: payload may be moved into it through a pipe now (see kernel_tunnel.py).
    """

    __slots__ = (
        "_client",
        "_closing",
        "_ping_sent",
        "_pinged",
        "_rest",
        "_server",
        "_unsent",
        "blocked",
        "buffers",
        "closed",
        "dirty",
        "engine",
        "fd",
        "http",
        "owner",
        "path",
        "recv_into",
        "send",
        "session",
        "sock",
        "splices",
        "started",
        "used",
        "waiting",
    )  # fmt: skip

    def __init__(
        self,
        engine: Engine,
        sock: socket.socket,
        session: Session,
        http: TunnelClient | TunnelServer,
        leftover: bytes,
        owner: TunnelOwner,
    ) -> None:
        self.engine = engine
        self.buffers = engine.buffers
        self.sock = sock
        self.fd = sock.fileno()
        self.recv_into = sock.recv_into
        self.send = sock.send
        self.session = session
        self.http = http
        self._client = http if isinstance(http, TunnelClient) else None
        self._server = http if isinstance(http, TunnelServer) else None
        self.owner = owner
        self.closed = False
        self.blocked = False
        self.path = "tls"
        self.splices = False
        self.dirty = False
        self.waiting: list[StreamOwner] = []
        self.started = self.used = time.monotonic()
        self._closing = False
        self._rest = leftover
        self._unsent = bytearray()
        self._pinged = self.started
        self._ping_sent = 0.0
        engine.register(self.fd, self, _IN)
        self.mark_dirty()  # the preface and the SETTINGS are waiting
        if leftover:
            engine.call_later(self._read_leftover)

    # ---- from the peer

    def ready(self, events: int) -> None:
        """Serves the socket."""
        if events & _OUT and self.blocked:
            self._unblock()
        if events & ~_OUT and not self.closed:
            self._read()

    def _read(self) -> None:
        self._receive(READ)

    def _receive(self, most: int) -> None:
        wire = self.buffers.wire
        rest = self._rest
        offset = len(rest)
        if offset:
            wire[:offset] = rest
        try:
            count = self.recv_into(wire[offset : offset + most])
        except BlockingIOError:
            return
        except OSError as error:
            self.close(f"the tunnel's connection broke: {error.strerror or error}")
            return
        if not count:
            self.close("the peer closed the tunnel's connection")
            return
        self._open(offset + count)

    def _read_leftover(self) -> None:
        """What arrived together with the end of the handshake."""
        if not self.closed and self._rest:
            rest = self._rest
            self.buffers.wire[: len(rest)] = rest
            try:
                self._open(len(rest))
            except Exception as error:
                self.failed(error)

    def _open(self, end: int) -> None:
        wire = self.buffers.wire
        plain = self.buffers.plain
        consumed, produced = self.session.open(wire, 0, end, plain, 0)
        self._rest = bytes(wire[consumed:end]) if consumed < end else b""
        if produced:
            self._dispatch(self.http.receive(plain[:produced], self.engine.now))
        if self.session.ended and not self.closed:
            self._session_ended()
        if self.http.out and not self.dirty:
            self.mark_dirty()

    def _dispatch(self, events: list[Any]) -> None:
        count = len(events)
        index = 0
        while index < count:
            event = events[index]
            index += 1
            if type(event) is not tuple:
                self._control(event)
                continue
            stream, view, ended = event
            owner = stream.owner
            if index < count and not ended:
                following = events[index]
                if type(following) is tuple and following[0] is stream:
                    # A peer with small frames: hand over all that follow at once.
                    views = [view]
                    while index < count:
                        following = events[index]
                        if type(following) is not tuple or following[0] is not stream or ended:
                            break
                        views.append(following[1])
                        ended = following[2]
                        index += 1
                    owner.deliver_many(views, ended)
                    continue
            owner.deliver(view, ended)

    def _control(self, event: Any) -> None:
        kind = type(event)
        if kind is ConnectRequested:
            self.owner.event(self, event)
        elif kind is TunnelAccepted:
            event.stream.owner.accepted(event)
        elif kind is StreamWritable:
            event.stream.owner.writable()
        elif isinstance(event, TunnelRefused):
            event.stream.owner.refused(event)
        elif isinstance(event, StreamReset):
            if event.stream.owner is not None:  # a malformed request has none
                event.stream.owner.reset(event)
            self._retire_if_done()
        elif isinstance(event, TrailersReceived):
            event.stream.owner.deliver(memoryview(b""), True)
        elif isinstance(event, GoAwayReceived):
            for stream in event.unprocessed:
                stream.owner.unprocessed()
            self.owner.event(self, event)
            self._retire_if_done()
        elif isinstance(event, ConnectionTerminated):
            self.close(f"the peer broke HTTP/2: {event.reason}", final_words=True)
        elif isinstance(event, PingAcknowledged):
            self._ping_sent = 0.0
        elif not isinstance(event, SettingsAcknowledged):
            self.owner.event(self, event)

    def _session_ended(self) -> None:
        error = self.session.error
        if error is None:
            self.close("the peer closed the tunnel")
        else:
            self.close(f"TLS: {error}", alert=error.reply)

    # ---- to the peer

    def mark_dirty(self) -> None:
        """Has `flush` called at the end of the round."""
        if not self.dirty:
            self.dirty = True
            self.engine.dirty(self)

    def flush(self) -> None:
        """Seals and sends what is pending."""
        self.dirty = False
        if not self.closed and not self.blocked:
            self._seal_pending()

    def _seal_pending(self) -> None:
        http = self.http
        if not http.out:
            return
        payload = http.take()
        count = len(payload)
        payload.append(0)  # the spare byte that sealing needs
        view = memoryview(payload)
        sealed = self.buffers.sealed
        position = 0
        while position < count:
            take = min(count - position, READ)
            size = self.session.seal(view, position, take, sealed, 0)
            self._put(sealed[:size])
            position += take

    def send_spliced(self, flow: Any, most: int) -> int:
        """See `KernelTunnel.send_spliced`; only where `splices` is set. Raises RuntimeError."""
        raise RuntimeError("nothing can be spliced into this tunnel")

    def send_scattered(self, stream: Stream, count: int, one_frame: bool) -> None:
        """Sends `count` bytes that were received into the scatter pieces.

        The windows must have room for them, and nothing may be pending or blocked.
        """
        http = self.http
        scatter = self.buffers.scatter
        if one_frame:
            http.write_data_header(scatter, 0, stream, count)
            total = count + HEADER
        else:
            room = RECORD - HEADER
            position = 0
            left = count
            total = count
            while left > 0:
                take = min(room, left)
                http.write_data_header(scatter, position, stream, take)
                total += HEADER
                left -= take
                position += RECORD + 1
        self._send_gathered(total)

    def _send_gathered(self, total: int) -> None:
        """Sends `total` bytes that lie in the scatter pieces."""
        sealed = self.buffers.sealed
        size = self.session.seal_scattered(self.buffers.scatter, 0, total, sealed, 0)
        self._put(sealed[:size])

    def _put(self, data: memoryview) -> None:
        if self.blocked:
            self._unsent += data
            return
        try:
            sent = self.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.close(f"the tunnel's connection broke: {error.strerror or error}")
            return
        if sent < len(data):
            self._unsent += data[sent:]
            self._block()

    def _block(self) -> None:
        self.blocked = True
        self.engine.modify(self.fd, _IN | _OUT)

    def _send_rest(self) -> bool:
        """Sends what the socket did not take before; whether that is all of it."""
        try:
            sent = self.send(self._unsent)
        except BlockingIOError:
            return False
        except OSError as error:
            self.close(f"the tunnel's connection broke: {error.strerror or error}")
            return False
        del self._unsent[:sent]
        return not self._unsent

    def _unblock(self) -> None:
        if not self._send_rest():
            return
        self.blocked = False
        self.engine.modify(self.fd, _IN)
        self.flush()
        waiting, self.waiting = self.waiting, []
        for owner in waiting:
            owner.writable()
        self._retire_if_done()

    # ---- life

    @property
    def client(self) -> TunnelClient:
        """The codec of a tunnel that we opened. Raises RuntimeError for any other."""
        if self._client is None:
            raise RuntimeError("the peer opened this tunnel")
        return self._client

    @property
    def server(self) -> TunnelServer:
        """The codec of a tunnel that the peer opened. Raises RuntimeError for any other."""
        if self._server is None:
            raise RuntimeError("we opened this tunnel")
        return self._server

    def tick(self, now: float, keepalive: Keepalive) -> None:
        """Looks after the peer; call about once a second."""
        self._retire_if_done()  # the last stream may have ended without a flow to tell us
        if self.closed:
            return
        if self._ping_sent:
            if now - self._ping_sent > keepalive.timeout:
                self.close(f"the peer did not answer a PING for {keepalive.timeout:g}s")
        elif now - self._pinged > keepalive.interval:
            self._pinged = self._ping_sent = now
            self.http.ping(int(now * 1000).to_bytes(8, "big"))
            self.mark_dirty()

    @property
    def answers(self) -> bool:
        """False while the peer owes the answer to a PING for suspiciously long."""
        return not self._ping_sent or self.engine.now - self._ping_sent < _SUSPICIOUS

    @property
    def idle(self) -> bool:
        """Whether no stream is open."""
        return not self.http.streams

    def finish_streams(self) -> None:
        """Closes as soon as no stream is left (a drain)."""
        self._closing = True
        self._retire_if_done()

    def stream_ended(self) -> None:
        """A flow is done with its stream."""
        self.used = self.engine.now
        if self._closing or self.http.goaway_received is not None:
            self._retire_if_done()

    def _retire_if_done(self) -> None:
        if (
            (self._closing or self.http.goaway_received is not None)
            and self.idle
            and not self.blocked
            and not self.closed
        ):
            self._seal_pending()  # the end of the last stream goes first
            if not self.blocked and not self.closed and self.all_sent():
                self._leave()

    def all_sent(self) -> bool:
        """Whether the connection has been given everything; else `tick` asks again."""
        return True

    def _leave(self) -> None:
        self.closed = True
        self._send_alert(self.session.close_notify())
        self.waiting = []
        self.engine.unregister(self.fd)
        Leaving(self.engine, self.sock)
        self.owner.tunnel_lost(self, "drained")

    def close(self, reason: str, alert: bytes = b"", final_words: bool = False) -> None:
        """Ends the tunnel now; open streams are lost, their owners told. Idempotent.

        `final_words`: send what HTTP/2 still has to say (a GOAWAY that explains).
        """
        if self.closed:
            return
        self.closed = True
        if not self.blocked and (final_words or not alert):
            self._seal_pending()
        if not self.blocked:
            self._send_alert(alert or self.session.close_notify())
        for stream in list(self.http.streams.values()):
            if stream.owner is not None:
                try:
                    stream.owner.lost(reason)
                except Exception:  # the others must still be told
                    log.exception("a stream could not be ended")
        self.waiting = []
        self.engine.close_later(self.sock)
        self.owner.tunnel_lost(self, reason)

    def _send_alert(self, alert: bytes) -> None:
        """The last that is said, as `Session.alert` gives it."""
        try:
            self.send(alert)
        except OSError:
            pass  # the peer is gone already, and has taken what it wanted

    def failed(self, error: BaseException) -> None:
        """A handler of ours raised."""
        log.error("a tunnel failed", exc_info=error)
        self.http.terminate(ErrorCode.INTERNAL_ERROR, "internal error")
        self.close(f"internal error: {error!r}", final_words=True)
