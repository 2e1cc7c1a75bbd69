"""TCP sockets of a namespace that are not ours: look at one, abort it, hear when they end.

By sock_diag (linux/sock_diag.h, linux/inet_diag.h). What the kernel tells of a socket that ends is
its last `tcp_info`, so that nothing has to be asked while it lives.
"""

import errno
import socket
import struct
from typing import Final, NamedTuple

from ztunnel.linux.netlink import NetlinkError, NetlinkSocket, each_attribute
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.sockets import SocketAddress, canonical

ESTABLISHED, SYN_SENT, TIME_WAIT = 1, 2, 6
"""States, as in `Tally.state`."""

_NETLINK_SOCK_DIAG: Final = 4
_BY_FAMILY, _DESTROY = 20, 21
_TCP_DESTROY: Final = 1  # SKNLGRP_INET_TCP_DESTROY
_TCP6_DESTROY: Final = 3  # SKNLGRP_INET6_TCP_DESTROY
_INFO: Final = 2  # INET_DIAG_INFO
_BUFFER: Final = 4 << 20
_SO_RCVBUFFORCE: Final = 33

_REQUEST = struct.Struct("=BBBxI")  # family, protocol, extensions, states
_IDENTITY = struct.Struct("!HH16s16s12s")  # ports, addresses, interface and cookie
_ANY = bytes(4) + b"\xff" * 8  # any interface, whichever cookie
_COOKIE = slice(4 + 36, 4 + 48)  # of struct inet_diag_msg: interface and cookie
_STATE_AND_IDENTITY = struct.Struct("!BBxxHH16s16s")
_FOUND_LENGTH: Final = 72  # struct inet_diag_msg
_HEADER: Final = 16
# bytes_acked, bytes_received; bytes_sent, bytes_retrans
_COUNTS = struct.Struct("=120xQQ64xQQ")


class Tally(NamedTuple):
    """What the kernel has counted for a socket: payload bytes, but that a FIN counts as one of
    those that came, and a SYN as one of those that were acknowledged to the side that sent it.

    Attributes:
        state: of TCP, as a number.
        acknowledged: 0 means that no connection came about for the one who called.
        cookie: tells this socket from every other one.
    """

    state: int
    received: int
    sent: int
    acknowledged: int
    cookie: bytes = b""


class TcpSockets:
    """Asks about single sockets of one namespace. Raises OSError where that is not possible."""

    __slots__ = ("_netlink",)

    def __init__(self, namespace: NetworkNamespace | None) -> None:
        self._netlink = NetlinkSocket(_NETLINK_SOCK_DIAG, namespace)

    def look(self, local: SocketAddress, remote: SocketAddress) -> Tally | None:
        """What has been counted; None when there is no such socket (any more)."""
        try:
            answer = self._netlink.ask(_BY_FAMILY, _request(local, remote, 1 << (_INFO - 1), _ANY))
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        # Where there is no such connection, the kernel finds the socket that would take it: the
        # application's listener, which is nobody's to abort.
        _, _, _, there, _, _ = _STATE_AND_IDENTITY.unpack_from(answer.body)
        return _tally(answer.body) if there == remote[1] else None

    def abort(self, local: SocketAddress, remote: SocketAddress) -> bool:
        """Reset a connection: its owner gets an error, the far end a RST. False when there is none,
        or only what is left of one (TIME_WAIT).

        Raises:
            NetlinkError: EOPNOTSUPP where the kernel was built without INET_DIAG_DESTROY.
        """
        found = self.look(local, remote)
        if found is None or found.state == TIME_WAIT:
            return False
        try:
            self._netlink.request(_DESTROY, 0, _request(local, remote, 0, found.cookie))
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def close(self) -> None:
        self._netlink.close()


class TcpEndings:
    """Hears of TCP sockets of a namespace that end; `fd` is readable when some have.

    Attributes:
        missed: the kernel had to leave some out; whoever counts on them must look.
    """

    __slots__ = ("_netlink", "fd", "missed")

    def __init__(self, namespace: NetworkNamespace | None) -> None:
        groups = (_TCP_DESTROY, _TCP6_DESTROY)
        self._netlink = NetlinkSocket(_NETLINK_SOCK_DIAG, namespace, groups)
        sock = self._netlink.sock
        self.fd = sock.fileno()
        self.missed = False
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        except PermissionError:  # in a user namespace: as much as everybody may have
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)

    def take(self, most: int = 256) -> list[tuple[SocketAddress, SocketAddress, Tally]]:
        """(local address, remote address, last counts) of those that have ended; never blocks."""
        found: list[tuple[SocketAddress, SocketAddress, Tally]] = []
        sock = self._netlink.sock
        while len(found) < most:
            try:
                data = sock.recv(4096, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.missed = True
                continue
            if len(data) >= _HEADER + _FOUND_LENGTH:
                body = data[_HEADER:]
                family, _, here, there, local, remote = _STATE_AND_IDENTITY.unpack_from(body)
                ends = (_address(family, local), here), (_address(family, remote), there)
                found.append((*ends, _tally(body)))
        return found

    def close(self) -> None:
        self._netlink.close()


def _request(local: SocketAddress, remote: SocketAddress, extensions: int, which: bytes) -> bytes:
    family = socket.AF_INET6 if ":" in local[0] else socket.AF_INET
    here = socket.inet_pton(family, local[0]).ljust(16, b"\0")
    there = socket.inet_pton(family, remote[0]).ljust(16, b"\0")
    head = _REQUEST.pack(family, socket.IPPROTO_TCP, extensions, 0xFFFFFFFF)
    return head + _IDENTITY.pack(local[1], remote[1], here, there, which)


def _address(family: int, packed: bytes) -> str:
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, packed[:4])
    return canonical(socket.inet_ntop(socket.AF_INET6, packed))


def _tally(body: bytes) -> Tally:
    """Raises ValueError when the answer is malformed."""
    acknowledged = received = sent = again = 0
    for kind, value in each_attribute(body[_FOUND_LENGTH:]):
        if kind == _INFO and len(value) >= _COUNTS.size:
            acknowledged, received, sent, again = _COUNTS.unpack_from(value)
    return Tally(body[1], received, sent - again, acknowledged, body[_COOKIE])
