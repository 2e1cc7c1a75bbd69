"""Relays between two plain TCP sockets.

Half-close is exact in both directions; a reset of one side becomes a reset of
the other, so that an application never takes a truncated stream for a whole
one. What one side does not take holds up the reading of the other: at most one
buffer, or one pipe, is kept per direction.

Every flow begins on the copy path, through user space, which works everywhere.
A read of bulk goes through a pipe instead (splice), where that is on and a
pipe is free; a flow that has shown that its messages are small goes to the
kernel altogether (sockmap, see joint.py).
"""

import errno
import logging
import os
import select
import socket
import struct
from typing import Final

from ztunnel.kernel.pipes import Pipe
from ztunnel.linux.sockets import limit_receive_buffer, limit_send_buffer
from ztunnel.relay.engine import Engine
from ztunnel.relay.flow import ClosedBy, Outcome, Owner
from ztunnel.relay.joint import Joint

log = logging.getLogger("ztunnel.relay")

# Not Final: a compiled module would hold the values, and tests could not change them.
BULK: int = 1 << 16  # a read of so many bytes has the next one spliced
MESSAGE: Final = 1 << 14  # a read of fewer bytes is a small message
JOIN_AFTER: Final = 24  # small messages, both directions together
CROWD: int = 4  # flows in one round; with more of them a message does not count for that

NEAR_BUFFER: Final = 1 << 20  # bytes that the kernel may hold for an application of this node
FAR_BUFFER: Final = 4 << 20  # the same, for one that may be far away

_NEVER: Final = -(1 << 62)
_ABORT: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST
_NO_SPLICE: Final = (errno.EINVAL, errno.ENOSYS, errno.EPERM)

_IN: Final = select.EPOLLIN | select.EPOLLRDHUP
_OUT: Final = select.EPOLLOUT


def reset_on_close(sock: socket.socket) -> None:
    """Makes `close` send a RST instead of a FIN."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
    except OSError:
        pass  # already reset by its peer


class Leg:
    """One of the two sockets: what it received, and what waits to be sent on it.

    Attributes:
        received: bytes that user space, or a pipe, took from it.
        pending: whether something waits to be sent: `rest`, or `in_pipe` bytes of a pipe.
        ended: it sent its FIN.
        shut: we sent ours.
    """

    __slots__ = (
        "bounded", "bulk", "by", "ended", "fd", "flow", "in_pipe", "mask", "other", "pending",
        "pipe", "received", "recv_into", "rest", "send", "shut", "sock",
    )  # fmt: skip

    def __init__(self, flow: "PairFlow", sock: socket.socket, by: ClosedBy) -> None:
        self.flow = flow
        self.sock = sock
        self.fd = sock.fileno()
        self.by = by
        self.recv_into = sock.recv_into
        self.send = sock.send
        self.other = self
        self.rest = b""
        self.pipe: Pipe | None = None
        self.in_pipe = 0
        self.pending = False
        self.received = 0
        self.bulk = False
        self.bounded = False
        self.mask: int = _IN
        self.ended = False
        self.shut = False

    def ready(self, events: int) -> None:
        """Serves the socket."""
        joint = self.flow.joint
        if joint is not None:
            joint.ready(self, events)
            return
        if events & _OUT and self.pending:
            self.drain()
        if events & ~_OUT and self.mask & _IN:
            count = self._splice() if self.bulk else self.read()
            if not count and not self.flow.closed:
                self.end()
            elif 0 < count < MESSAGE:
                self.flow.small_message()

    def failed(self, error: BaseException) -> None:
        """A handler of ours raised."""
        self.flow.abort(f"internal error: {error!r}")

    def read(self) -> int:
        """Receives once and sends it on. The count; 0 at the end of the stream, -1 for nothing.

        Where the socket breaks, the flow is closed afterwards.
        """
        flow = self.flow
        buffer = flow.buffer
        try:
            count = self.recv_into(buffer)
        except BlockingIOError:
            return -1
        except OSError as error:
            flow.broken(self, error)
            return -1
        if not count:
            return 0
        self.received += count
        self.bulk = count >= BULK
        if self.bulk and not self.bounded:
            self._bound()
        other = self.other
        try:
            sent = other.send(buffer[:count])
        except BlockingIOError:
            sent = 0
        except OSError as error:
            flow.broken(other, error)
            return -1
        if sent < count:
            other.hold_up(bytes(buffer[sent:count]))
        return count

    def _splice(self) -> int:
        """The same through a pipe, or through user space where none is to be had."""
        flow, other = self.flow, self.other
        pipe = flow.pipes.take() if flow.pipes is not None else None
        if pipe is None:
            return self.read()
        try:
            count = os.splice(self.fd, pipe.into, pipe.size, flags=os.SPLICE_F_NONBLOCK)
        except OSError as error:
            pipe.give_back()
            if isinstance(error, BlockingIOError):
                return -1
            if error.errno in _NO_SPLICE:
                flow.no_splice(error)
                return self.read()
            flow.broken(self, error)
            return -1
        if not count:
            pipe.give_back()
            return 0
        self.received += count
        self.bulk = count >= BULK
        flow.path = "splice"
        other.pipe = pipe
        other.in_pipe = count
        other.empty_pipe()
        if other.in_pipe and not flow.closed:
            other.hold_up(b"")
        return count

    def _bound(self) -> None:
        """This direction carries bulk: bounds what it may hold when its reader stops.

        The kernel lets a buffer grow with what flows, up to tens of megabytes, which a link with a
        long round trip needs and an application of this node does not.
        """
        self.bounded = True
        if self.flow.remote is not self.by:
            limit_receive_buffer(self.sock, NEAR_BUFFER)
        else:
            limit_receive_buffer(self.sock, FAR_BUFFER)
        if self.flow.remote is not self.other.by:
            limit_send_buffer(self.other.sock, NEAR_BUFFER)

    def empty_pipe(self) -> None:
        """Sends what is in the pipe, as far as the socket takes it."""
        pipe = self.pipe
        assert pipe is not None
        try:
            self.in_pipe -= os.splice(pipe.out, self.fd, self.in_pipe, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in _NO_SPLICE:
                self.flow.broken(self, error)
                return
            self.flow.no_splice(error)
            self.rest = os.read(pipe.out, self.in_pipe)
            self.in_pipe = 0
            self.hold_up(self.rest)
        if not self.in_pipe:
            self.pipe = None
            pipe.give_back()

    def hold_up(self, rest: bytes) -> None:
        """`rest`, and what is in the pipe, must be sent before the other side is read again."""
        self.rest = rest
        self.pending = True
        self.arm(self.mask | _OUT)
        self.other.arm(self.other.mask & ~_IN)

    def end(self) -> None:
        """The other side gets this side's FIN once everything before it was sent."""
        self.ended = True
        self.arm(self.mask & ~_IN)
        if self.flow.first is None:
            self.flow.first = self.by
        if not self.other.pending:
            self.other.shutdown()

    def drain(self) -> None:
        """Sends what is pending."""
        if self.rest:
            try:
                sent = self.send(self.rest)
            except BlockingIOError:
                return
            except OSError as error:
                self.flow.broken(self, error)
                return
            self.rest = self.rest[sent:]
        elif self.in_pipe:
            self.empty_pipe()
        if self.rest or self.in_pipe or self.flow.closed:
            return
        self.pending = False
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
    """Relays between a client's and a server's socket until both have ended.

    Args:
        remote: the side that is not on this node, if one is not.

    Attributes:
        path: sockmap once the sockets are joined, splice once bulk has gone through a pipe; copy.
        pipes: through which bulk may go.
    """

    __slots__ = (
        "_messages", "_paths", "buffer", "client", "closed", "engine", "first", "joint", "owner",
        "path", "pipes", "remote", "server",
    )  # fmt: skip

    def __init__(
        self,
        engine: Engine,
        client: socket.socket,
        server: socket.socket,
        owner: Owner,
        remote: ClosedBy | None = None,
    ) -> None:
        self.engine = engine
        self.owner = owner
        self.remote = remote
        self.buffer = engine.buffers.copy
        self.closed = False
        self.first: ClosedBy | None = None
        self.joint: Joint | None = None
        self.path = "copy"
        self._paths = engine.paths
        self.pipes = self._paths.pipes
        self._messages = 0
        self.client = Leg(self, client, ClosedBy.CLIENT)
        self.server = Leg(self, server, ClosedBy.SERVER)
        self.client.other = self.server
        self.server.other = self.client
        engine.register(self.client.fd, self.client, _IN)
        engine.register(self.server.fd, self.server, _IN)

    @property
    def from_client(self) -> int:
        """Payload bytes received from the client."""
        return self._received(self.client)

    @property
    def from_server(self) -> int:
        """Payload bytes received from the server."""
        return self._received(self.server)

    def _received(self, leg: Leg) -> int:
        return leg.received + (self.joint.redirected(leg) if self.joint is not None else 0)

    # ---- paths

    def small_message(self) -> None:
        """Counts small messages, and joins the sockets when there were enough of them.

        In a crowd one round serves many flows at once, and that is as cheap as the kernel's
        worker: measured, 64 busy flows cost a sixth more when they are joined, one flow half.
        """
        if self.engine.crowd > CROWD:
            return
        self._messages += 1
        if self._messages == JOIN_AFTER:
            self._messages = 0
            self._join()

    def _join(self) -> None:
        client, server = self.client, self.server
        sockmap = self._paths.sockmap
        if sockmap is None or sockmap.full or self.closed or client.ended or server.ended:
            return
        if client.pending or server.pending:
            return
        try:
            self.joint = Joint.make(self, sockmap)
        except OSError as error:
            # A socket of a kind that cannot be joined, or one that broke just now.
            log.debug("a flow stays on the copy path: %s", error)
            self._messages = _NEVER
            return
        if self.joint is not None:
            self.path = "sockmap"
            self.joint.start()

    def no_splice(self, error: OSError) -> None:
        """The kernel refuses what its probe could do (a filter on system calls, mostly)."""
        self.client.bulk = self.server.bulk = False
        self._paths.splice_failed(error)

    # ---- end

    def broken(self, leg: Leg, error: OSError) -> None:
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
        joint, self.joint = self.joint, None
        if joint is not None:
            for leg in (self.client, self.server):
                leg.received += joint.redirected(leg)
            joint.release()
        for leg in (self.client, self.server):
            self.engine.close_later(leg.sock)
            if leg.pipe is not None:
                leg.pipe.discard()
                leg.pipe = None
        self.owner.flow_ended(
            Outcome(self.first or ClosedBy.PROXY, error, self.from_client, self.from_server)
        )
