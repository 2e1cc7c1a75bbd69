"""The sockmap path of a pair: its small messages go from socket to socket in the kernel.

A flow begins on the copy path and comes here when it has shown that its
messages are small. From then on each direction is in one of two states. It is
*redirected* while it has credit: user space sleeps and is woken by the FIN
alone. When the credit is spent, bytes pass *by hand*, as on the copy path;
once nothing is queued any more, and what was redirected has been taken by the
other socket, new credit is granted. By hand a reader that stops holds its
writer up; redirected, no more than the credit can be under way.

Nothing may be overtaken, so each change of state looks at what the kernel counts:

- Before the first byte by hand, the other socket must have been given all
  that was redirected (a worker of the kernel does it, a little later).
- Before credit is granted, user space must have read all that came. The
  program compares how much has passed by that time, so that what arrives in
  between cancels the credit instead of overtaking (see `kernel.verdict`).
- Before a FIN goes on, both hold.

Credit is granted only to a socket that has room for it: packets that the
kernel's worker cannot send would hold up what passes by hand in the other
direction, which waits in the same queue.
"""

import os
import select
import socket
from functools import partial
from typing import TYPE_CHECKING, Final

from ztunnel.kernel.sockmap import Leg as KernelLeg
from ztunnel.kernel.sockmap import Sockmap
from ztunnel.kernel.verdict import PACKET
from ztunnel.linux.tcp_info import progress

if TYPE_CHECKING:
    from ztunnel.relay.pair import Leg, PairFlow

CREDIT: Final = 1 << 19  # bytes, as `kernel.verdict` charges them
_SEND_BUFFER: Final = 1 << 19  # the kernel doubles it
_ROOM: Final = 1 << 16  # unacknowledged bytes that a socket may have when credit is granted
_LARGE: Final = 16384  # packets of that size on average are bulk, which is cheaper by hand
_SMALL_AGAIN: Final = 24  # reads
_READS: Final = 4  # in one round, so that others get their turn

_SO_SNDBUFFORCE: Final = 32
_SO_BUF_LOCK: Final = 72

_IN: Final = select.EPOLLIN | select.EPOLLRDHUP
_HANG_UP: Final = select.EPOLLRDHUP
_OUT: Final = select.EPOLLOUT


class _Half:
    """What is known of one direction.

    Attributes:
        leg: where its bytes come from.
        by_hand: user space moves them now.
        small: reads by hand since the last large one.
    """

    __slots__ = (
        "by_hand", "by_hand_before", "charged_before", "kernel", "leg", "moved_before", "small",
        "written_before",
    )  # fmt: skip

    def __init__(self, leg: "Leg", kernel: KernelLeg) -> None:
        self.leg = leg
        self.kernel = kernel
        self.by_hand = True
        self.small = _SMALL_AGAIN
        self.by_hand_before = leg.received
        self.written_before = progress(leg.other.sock)[1]
        self.moved_before = self.charged_before = 0

    def was_bulk(self) -> bool:
        """Whether the credit that is spent went to large packets."""
        moved = self.kernel.redirected - self.moved_before
        packets = (self.kernel.charged - self.charged_before - moved) // PACKET
        return moved >= packets * _LARGE


class Joint:
    """Both directions of a joined flow.

    Args:
        flow: with nothing pending in either direction and both ends open.

    Raises:
        OSError: it cannot be joined; nothing has changed then.
    """

    __slots__ = ("_flow", "_halves", "_sockmap", "pair")

    def __init__(
        self, flow: "PairFlow", sockmap: Sockmap, pair: tuple[KernelLeg, KernelLeg]
    ) -> None:
        self._flow = flow
        self._sockmap = sockmap
        self.pair = pair
        client, server = _Half(flow.client, pair[0]), _Half(flow.server, pair[1])
        self._halves = {flow.client: client, flow.server: server}
        for half in (client, server):
            half.kernel.passes = partial(self._passes, half)

    @classmethod
    def make(cls, flow: "PairFlow", sockmap: Sockmap) -> "Joint | None":
        """Joins the flow; None when the map is full. Raises OSError."""
        for leg in (flow.client, flow.server):
            _widen(leg.sock)
        pair = sockmap.join(flow.client.sock, flow.server.sock)
        if pair is None:
            return None
        try:
            return cls(flow, sockmap, pair)
        except OSError:
            sockmap.part(pair)
            raise

    def redirected(self, leg: "Leg") -> int:
        """Bytes that came from `leg` and never saw user space."""
        return self._halves[leg].kernel.redirected

    def ready(self, leg: "Leg", events: int) -> None:
        """Serves a socket of the pair."""
        flow = self._flow
        if events & select.EPOLLERR:
            code = leg.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                flow.broken(leg, OSError(code, os.strerror(code)))
                return
        if events & _OUT:
            if leg.pending:
                leg.drain()
            if not leg.pending and not flow.closed:
                leg.arm(leg.mask & ~_OUT)
                self._pump(self._halves[leg.other])
        if events & ~_OUT and leg.mask & _IN and not flow.closed:
            half = self._halves[leg]
            half.by_hand = True  # where it was not: the stream has ended, or broken
            self._pump(half)

    def start(self) -> None:
        """Serves what came before the sockets were in the map."""
        for half in self._halves.values():
            if not self._flow.closed:
                self._pump(half)

    def release(self) -> None:
        """The flow is over."""
        self._sockmap.part(self.pair)

    def _passes(self, half: _Half) -> None:
        """Credit is spent: go on by hand."""
        if self._flow.closed or half.by_hand or half.kernel.redirecting:
            return
        half.by_hand = True
        if half.was_bulk():
            half.small = 0
        self._pump(half)

    def _pump(self, half: _Half) -> None:
        """Moves what has passed, then lets the kernel do it again."""
        leg, flow = half.leg, self._flow
        other = leg.other
        if not half.by_hand or leg.ended or other.pending:
            return
        if not self._caught_up(half):
            leg.arm(leg.mask & ~_IN)
            other.arm(other.mask | _OUT)
            return
        leg.arm(leg.mask | _IN)
        for _ in range(_READS):
            count = leg.read()
            if flow.closed or other.pending:
                return
            if count < 0:
                self._grant(half)
                return
            if not count:
                self._end(half)
                return
            if count >= _LARGE:
                half.small = 0

    def _caught_up(self, half: _Half) -> bool:
        """Whether the other socket has been given everything that came before."""
        by_hand = half.leg.received - half.by_hand_before
        due = half.written_before + by_hand + half.kernel.redirected
        return progress(half.leg.other.sock)[1] >= due

    def _grant(self, half: _Half) -> None:
        """Nothing is left to read: grants credit, unless this is bulk or something has come."""
        leg, kernel = half.leg, half.kernel
        half.small += 1
        if half.small < _SMALL_AGAIN:
            return
        passed = kernel.passed
        if progress(leg.sock)[0] != leg.received + kernel.redirected or kernel.passed != passed:
            return
        if progress(leg.other.sock)[2] > _ROOM:
            return
        half.moved_before = kernel.redirected
        half.charged_before = kernel.charged
        kernel.grant(passed, CREDIT)
        if kernel.passed == passed:
            half.by_hand = False
            leg.arm(leg.mask & ~_IN | _HANG_UP)

    def _end(self, half: _Half) -> None:
        """The stream has ended: passes the FIN on when everything before it is through.

        What is still on its way through the kernel's worker makes the socket readable again.
        """
        leg = half.leg
        if progress(leg.sock)[0] == leg.received + half.kernel.redirected:
            leg.end()


def _widen(sock: socket.socket) -> None:
    """Gives a socket room for a whole credit, and lets the kernel go on adapting it."""
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < 2 * _SEND_BUFFER:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, 0)
