"""The copy path: relays between two plain TCP sockets through user space.

Works everywhere. Half-close is exact in both directions; a reset of one side
becomes a reset of the other, so that an application never takes a truncated
stream for a whole one. What one side does not take holds up the reading of
the other: at most one buffer is kept per direction.
"""

import select
import socket
import struct
from typing import Final

from ztunnel.relay.engine import Engine
from ztunnel.relay.flow import ClosedBy, Outcome, Owner

_ABORT: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST

_IN: Final = select.EPOLLIN | select.EPOLLRDHUP
_OUT: Final = select.EPOLLOUT


def reset_on_close(sock: socket.socket) -> None:
    """Makes `close` send a RST instead of a FIN."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
    except OSError:
        pass  # already reset by its peer


class _Leg:
    """One of the two sockets: what it received, and what waits to be sent on it."""

    __slots__ = (
        "by", "end", "ended", "fd", "flow", "mask", "other", "pending", "received",
        "recv_into", "send", "shut", "sock",
    )  # fmt: skip

    def __init__(self, flow: "PairFlow", sock: socket.socket, by: ClosedBy) -> None:
        self.flow = flow
        self.sock = sock
        self.fd = sock.fileno()
        self.by = by
        self.recv_into = sock.recv_into
        self.send = sock.send
        self.other = self
        self.pending = b""
        self.received = 0
        self.mask = _IN
        self.ended = False  # it sent its FIN
        self.shut = False  # we sent ours

    def ready(self, events: int) -> None:
        if events & _OUT and self.pending:
            self._drain()
        if events & ~_OUT and self.mask & _IN:
            self._read()

    def failed(self, error: BaseException) -> None:
        self.flow.abort(f"internal error: {error!r}")

    def _read(self) -> None:
        flow = self.flow
        buffer = flow.buffer
        try:
            count = self.recv_into(buffer)
        except BlockingIOError:
            return
        except OSError as error:
            flow.broken(self, error)
            return
        if not count:
            self._ended()
            return
        self.received += count
        other = self.other
        try:
            sent = other.send(buffer[:count])
        except BlockingIOError:
            sent = 0
        except OSError as error:
            flow.broken(other, error)
            return
        if sent < count:
            other.pending = bytes(buffer[sent:count])
            other.arm(other.mask | _OUT)
            self.arm(self.mask & ~_IN)

    def _ended(self) -> None:
        self.ended = True
        self.arm(self.mask & ~_IN)
        if self.flow.first is None:
            self.flow.first = self.by
        if not self.other.pending:
            self.other.shutdown()

    def _drain(self) -> None:
        try:
            sent = self.send(self.pending)
        except BlockingIOError:
            return
        except OSError as error:
            self.flow.broken(self, error)
            return
        self.pending = self.pending[sent:]
        if not self.pending:
            self.arm(self.mask & ~_OUT)
            if self.other.ended:
                self.shutdown()
            else:
                self.other.arm(self.other.mask | _IN)

    def shutdown(self) -> None:
        """Passes the other side's FIN on."""
        self.shut = True
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.flow.broken(self, error)
            return
        if self.other.shut:
            self.flow.finish(None)

    def arm(self, mask: int) -> None:
        """Waits for `mask` from now on.

        With nothing to wait for the descriptor leaves the epoll: a hang-up is
        always reported there, again and again, and nobody could act on it.
        """
        if mask == self.mask or self.flow.closed:
            return
        engine = self.flow.engine
        if not mask:
            engine.unregister(self.fd)
        elif not self.mask:
            engine.register(self.fd, self, mask)
        else:
            engine.modify(self.fd, mask)
        self.mask = mask


class PairFlow:
    """Relays between a client's and a server's socket until both have ended."""

    __slots__ = ("buffer", "client", "closed", "engine", "first", "owner", "server")

    path: Final = "copy"

    def __init__(
        self,
        engine: Engine,
        client: socket.socket,
        server: socket.socket,
        owner: Owner,
    ) -> None:
        self.engine = engine
        self.owner = owner
        self.buffer = engine.buffers.copy
        self.closed = False
        self.first: ClosedBy | None = None
        self.client = _Leg(self, client, ClosedBy.CLIENT)
        self.server = _Leg(self, server, ClosedBy.SERVER)
        self.client.other = self.server
        self.server.other = self.client
        engine.register(self.client.fd, self.client, _IN)
        engine.register(self.server.fd, self.server, _IN)

    @property
    def from_client(self) -> int:
        """Payload bytes received from the client."""
        return self.client.received

    @property
    def from_server(self) -> int:
        """Payload bytes received from the server."""
        return self.server.received

    def send_to_server(self, data: bytes) -> None:
        """Sends bytes of our own ahead of the client's (a PROXY header)."""
        self.server.pending = data
        self.server.arm(self.server.mask | _OUT)
        self.client.arm(self.client.mask & ~_IN)

    def broken(self, leg: _Leg, error: OSError) -> None:
        """A socket failed: the other side must see an abort."""
        if self.first is None:
            self.first = leg.by
        reset_on_close(leg.other.sock)
        self.finish(f"{leg.by.value}: {error.strerror or error}")

    def abort(self, reason: str) -> None:
        """Ends both connections with a RST."""
        if not self.closed:
            self.first = ClosedBy.PROXY
            reset_on_close(self.client.sock)
            reset_on_close(self.server.sock)
            self.finish(reason)

    def finish(self, error: str | None) -> None:
        """Releases everything and tells the owner, once."""
        if self.closed:
            return
        self.closed = True
        self.engine.close_later(self.client.sock)
        self.engine.close_later(self.server.sock)
        self.owner.flow_ended(
            Outcome(self.first or ClosedBy.PROXY, error, self.client.received, self.server.received)
        )
