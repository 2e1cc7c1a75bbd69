"""The TLS path: relays between an application's socket and a stream of a tunnel.

Half-close is exact both ways: the application's FIN is END_STREAM on an empty
DATA frame, the peer's END_STREAM is a FIN once everything before it was
written. What one side does not take holds up the other: an application that
does not read stops the stream's credit (its window is the most that is ever
kept here), a full window or a full tunnel stops the reading from the
application.
"""

import select
import socket
from typing import Final

from ztunnel.hbone.client import TunnelClient
from ztunnel.hbone.closing import (
    FlowEnd,
    TcpEnd,
    reset_code_for,
    tcp_end_for_lost_tunnel,
    tcp_end_for_reset,
)
from ztunnel.hbone.server import TunnelServer
from ztunnel.http2.events import StreamReset
from ztunnel.http2.stream import Stream
from ztunnel.relay.buffers import HEADER, RECORD, SMALL
from ztunnel.relay.flow import ClosedBy, Outcome, Owner
from ztunnel.relay.pair import reset_on_close
from ztunnel.relay.piped import MUST_BE_READ, Piped, Unpiped
from ztunnel.relay.stream_owner import NOBODY, StreamOwner
from ztunnel.relay.tunnel import Tunnel
from ztunnel.relay.windows import StreamWindow

_IN: Final = select.EPOLLIN | select.EPOLLRDHUP
_OUT: Final = select.EPOLLOUT
_PIECE: Final = RECORD - HEADER  # payload of a piece that has a header of its own


class StreamFlow(StreamOwner):
    """A connection between the application behind `sock` and the peer behind `stream`.

    `app_is_client` says which of the two opened it: at the source's proxy the
    application did, at the destination's the peer.
    """

    __slots__ = (
        "_app", "_app_done", "_big", "_discarding", "_ended", "_fin_sent", "_first", "_fit_at",
        "_mask", "_other", "_ours", "_pending", "_piped", "_sent_before_end", "_window",
        "app_is_client", "closed", "discarded", "engine", "fd", "from_app", "from_peer", "http",
        "owner", "recv_into", "recvmsg_into", "send", "sock", "stream", "tunnel",
    )  # fmt: skip

    def __init__(
        self,
        tunnel: Tunnel,
        stream: Stream,
        sock: socket.socket,
        owner: Owner,
        app_is_client: bool,
    ) -> None:
        self.tunnel = tunnel
        self.engine = tunnel.engine
        self.http: TunnelClient | TunnelServer = tunnel.http
        self.stream = stream
        self.sock = sock
        self.fd = sock.fileno()
        self.recv_into = sock.recv_into
        self.recvmsg_into = sock.recvmsg_into
        self.send = sock.send
        self.owner = owner
        self.app_is_client = app_is_client
        self.closed = False
        self.from_app = 0
        self.from_peer = 0
        self.discarded = 0
        self._app = ClosedBy.CLIENT if app_is_client else ClosedBy.SERVER
        self._other = ClosedBy.SERVER if app_is_client else ClosedBy.CLIENT
        self._first: ClosedBy | None = None
        self._app_done = False  # it sent its FIN
        self._big = False
        self._pending = bytearray()
        self._piped: Piped | None = None  # goes to the application before `_pending`
        self._fit_at = stream.window  # bytes from the peer after which the window is looked at
        self._window = StreamWindow(tunnel.buffers.windows, self.http, stream)
        self._ours = 0  # bytes at the front of `_pending` that came from no peer
        self._mask = int(_IN)
        self._ended = False  # the peer sent END_STREAM
        self._sent_before_end = 0  # bytes of the application up to then
        self._fin_sent = False  # … and the application has got it as a FIN
        self._discarding = False  # the peer wants nothing more of what the application sends
        stream.owner = self
        self.engine.register(self.fd, self, _IN)

    # ---- counters

    @property
    def path(self) -> str:
        """How the bytes move: tls, or ktls."""
        return self.tunnel.path

    @property
    def from_client(self) -> int:
        """Payload bytes that came from the client."""
        return self.from_app if self.app_is_client else self.from_peer

    @property
    def from_server(self) -> int:
        """Payload bytes that came from the server."""
        return self.from_peer if self.app_is_client else self.from_app

    # ---- from the application

    def ready(self, events: int) -> None:
        """Serves the application's socket."""
        if events & _OUT and self._waits():
            self._drain()
        if events & ~_OUT and self._mask & _IN:
            self._read()

    def _read(self) -> None:
        if self._discarding:
            self._discard()
            return
        tunnel = self.tunnel
        if tunnel.blocked:
            self._arm(self._mask & ~_IN)
            tunnel.waiting.append(self)
            return
        room = self.http.sendable(self.stream)
        if room <= 0:
            self._arm(self._mask & ~_IN)  # a StreamWritable event follows
            return
        try:
            if self._big and room >= SMALL:
                self._read_bulk(room)
                return
            buffer = self.tunnel.buffers.small
            count = self.recv_into(buffer if room >= SMALL else buffer[:room])
        except BlockingIOError:
            return
        except OSError as error:
            self._app_broke(error)
            return
        if not count:
            self._app_ended()
            return
        self.from_app += count
        self._big = count == SMALL
        self.http.queue(self.stream, buffer[:count])
        if not tunnel.dirty:
            tunnel.mark_dirty()

    def _read_bulk(self, room: int) -> None:
        """Receives straight into the layout that records are sealed from. Raises OSError."""
        tunnel = self.tunnel
        http = self.http
        if http.out:
            tunnel.flush()  # what is pending goes first
            if tunnel.blocked or tunnel.closed:
                return
        if tunnel.splices:
            count = tunnel.send_spliced(self, room)
            if count > 0:
                self.from_app += count
                self._big = count >= SMALL
            elif not count:
                self._app_ended()
            if count != MUST_BE_READ or tunnel.blocked or tunnel.closed:
                return
        buffers = tunnel.buffers
        one_frame = http.max_send_frame >= RECORD * len(buffers.one_frame)
        pieces = buffers.one_frame if one_frame else buffers.frame_each
        if room < RECORD * len(pieces):
            whole = room // RECORD
            if not whole:
                whole = 1
                if room < _PIECE:
                    pieces = [buffers.small]
            pieces = pieces[:whole]
        count = self.recvmsg_into(pieces)[0]
        if not count:
            self._app_ended()
            return
        self.from_app += count
        self._big = count >= SMALL
        tunnel.send_scattered(self.stream, count, one_frame)

    def _app_ended(self) -> None:
        if self._first is None:
            self._first = self._app
        self._app_done = True
        if not self.stream.local_closed:
            self.http.end(self.stream)
            if not self.tunnel.dirty:
                self.tunnel.mark_dirty()
        if self._fin_sent:
            self._finish(None)
        else:
            self._arm(self._mask & ~_IN)

    def _app_broke(self, error: OSError) -> None:
        if self._first is None:
            self._first = self._app
        self._reset_stream(FlowEnd.ERROR)
        self._finish(f"{self._app.value}: {error.strerror or error}")

    def _discard(self) -> None:
        try:
            count = self.recv_into(self.tunnel.buffers.small)
        except BlockingIOError:
            return
        except OSError as error:
            self._app_broke(error)
            return
        self.discarded += count
        if not count:
            self._app_done = True
            self._arm(self._mask & ~_IN)
            self._finish_if_done()

    # ---- from the peer

    def deliver(self, view: memoryview, ended: bool) -> None:
        """Bytes for the application."""
        if self.closed:
            return
        count = len(view)
        self.from_peer += count
        if ended:
            self._peer_ended()
        if not count:
            if ended and not self._waits():
                self._send_fin()
            return
        if self._pending or self._piped is not None:
            self._pending += view
            return
        try:
            sent = self.send(view)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._app_broke(error)
            return
        if sent:
            self.http.consumed(self.stream, sent)
        if sent < count:
            self._pending += view[sent:]
            self._arm(self._mask | _OUT)
        elif ended:
            self._send_fin()
        elif self.from_peer >= self._fit_at:
            self._fit_at = self.from_peer + self._window.fit()

    def deliver_many(self, views: list[memoryview], ended: bool) -> None:
        """The same for several pieces, with one system call."""
        if self.closed:
            return
        if self._pending or self._piped is not None:
            for view in views:
                self._pending += view
                self.from_peer += len(view)
            if ended:
                self._peer_ended()
            return
        count = sum(map(len, views))
        self.from_peer += count
        if ended:
            self._peer_ended()
        try:
            sent = self.sock.sendmsg(views)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._app_broke(error)
            return
        if sent:
            self.http.consumed(self.stream, sent)
        if sent < count:
            for view in views:
                size = len(view)
                if sent >= size:
                    sent -= size
                else:
                    self._pending += view[sent:]
                    sent = 0
            self._arm(self._mask | _OUT)
        elif ended:
            self._send_fin()
        elif self.from_peer >= self._fit_at:
            self._fit_at = self.from_peer + self._window.fit()

    @property
    def takes_pipe(self) -> bool:
        """Whether bytes from the peer may come by `take_piped`: nothing waits, nothing is over."""
        return not (self._pending or self.closed or self._fin_sent) and self._piped is None

    def take_piped(self, piped: Piped, ended: bool) -> None:
        """`deliver` for bytes in a pipe."""
        self.from_peer += piped.count
        self._piped = piped
        if ended:
            self._peer_ended()
        self._drain()
        if self._waits():
            self._arm(self._mask | _OUT)
        elif not self.closed and not ended and self.from_peer >= self._fit_at:
            self._fit_at = self.from_peer + self._window.fit()

    def _waits(self) -> bool:
        """Whether something waits to be taken by the application."""
        return bool(self._pending) or self._piped is not None

    def _empty_pipe(self, piped: Piped) -> bool:
        """Gives the application what is in the pipe; whether that is done."""
        try:
            self._consumed(piped.empty(self.fd))
        except Unpiped as left:
            self._pending[:0] = left.rest
        except OSError as error:
            self._app_broke(error)
            return False
        if piped.count:
            return False
        self._piped = None
        return True

    def _consumed(self, count: int) -> None:
        if count:
            self.http.consumed(self.stream, count)
            if self.http.out and not self.tunnel.dirty:
                self.tunnel.mark_dirty()

    def start_with(self, ours: bytes, early: bytes, ended: bool) -> None:
        """What goes to the application first: bytes of ours (a PROXY header), and what the
        peer sent while the application was being connected to. Call before anything else."""
        self._ours = len(ours)
        self._pending += ours + early
        self.from_peer += len(early)
        if ended:
            self._peer_ended()
        if self._pending:
            self._arm(self._mask | _OUT)
        elif ended:
            self._send_fin()

    def _drain(self) -> None:
        if self._piped is not None and not self._empty_pipe(self._piped):
            return
        if self._pending:
            try:
                sent = self.send(self._pending)
            except BlockingIOError:
                return
            except OSError as error:
                self._app_broke(error)
                return
            del self._pending[:sent]
            if self._ours:
                ours = min(sent, self._ours)
                self._ours -= ours
                sent -= ours
            self._consumed(sent)
        if not self._pending:
            self._arm(self._mask & ~_OUT)
            if self._ended:
                self._send_fin()

    def _peer_ended(self) -> None:
        self._ended = True
        self._sent_before_end = self.from_app
        if self._first is None:
            self._first = self._other

    def _send_fin(self) -> None:
        self._fin_sent = True
        if self._app_done:
            self._finish(None)  # closing the socket sends the FIN, for nothing is unread
            return
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._app_broke(error)
            return
        self._finish_if_done()

    def writable(self) -> None:
        """Window or tunnel have room again: read on."""
        if not self.closed and not self.stream.local_closed:
            self._arm(self._mask | _IN)

    def reset(self, event: StreamReset) -> None:
        """RST_STREAM: a clean end if the peer had finished and only wants no more, else a cut."""
        if self.closed:
            return
        if tcp_end_for_reset(event.code, self._ended) is TcpEnd.CLOSE:
            self._discarding = True
            self.discarded = self.from_app - self._sent_before_end
            if not self._app_done:  # also where reading had paused: what is unread would reset it
                self._arm(self._mask | _IN)
            self._finish_if_done()
            return
        if self._first is None:
            self._first = self._other if event.by_peer else ClosedBy.PROXY
        reset_on_close(self.sock)
        self._finish(f"{self._other.value}: stream reset ({event.code.name})")

    def lost(self, reason: str) -> None:
        """The tunnel is gone: the application must not take what it has for the whole."""
        if self.closed:
            return
        if tcp_end_for_lost_tunnel(self._ended, self.stream.local_closed) is TcpEnd.CLOSE:
            return  # everything had passed; what is pending still goes to the application
        if self._first is None:
            self._first = self._other
        reset_on_close(self.sock)
        self._finish(reason)

    # ---- end

    def abort(self, reason: str) -> None:
        """Ends the connection now, visibly as an abort to both ends."""
        if self.closed:
            return
        self._first = ClosedBy.PROXY
        self._reset_stream(FlowEnd.CLOSED_BY_US)
        reset_on_close(self.sock)
        self._finish(reason)

    def failed(self, error: BaseException) -> None:
        """A handler of ours raised."""
        self.abort(f"internal error: {error!r}")

    def _reset_stream(self, end: FlowEnd) -> None:
        code = reset_code_for(end)
        if code is not None and not self.stream.closed:
            self.http.reset(self.stream, code, self.engine.now)
            if not self.tunnel.dirty:
                self.tunnel.mark_dirty()

    def _finish_if_done(self) -> None:
        if self._fin_sent and self._app_done:
            self._finish(None)

    def _finish(self, error: str | None) -> None:
        if self.closed:
            return
        self.closed = True
        self._pending = bytearray()
        if self._piped is not None:
            self._piped.discard()
            self._piped = None
        self.stream.owner = NOBODY  # also lets go of one another without the garbage collector
        self._window.release()
        self.engine.close_own(self.sock)
        self.tunnel.stream_ended()
        self.owner.flow_ended(
            Outcome(
                self._first or ClosedBy.PROXY,
                error,
                self.from_client,
                self.from_server,
                self.discarded,
            )
        )

    def _arm(self, mask: int) -> None:
        """Waits for `mask` from now on; with nothing to wait for, not at all (see pair.py)."""
        if mask == self._mask or self.closed:
            return
        if not mask:
            self.engine.unregister(self.fd)
        elif not self._mask:
            self.engine.register(self.fd, self, mask)
        else:
            self.engine.modify(self.fd, mask)
        self._mask = mask
