"""Tracked connections of a namespace: find some, see how one ended
(linux/netfilter/nfnetlink_conntrack.h)."""

import errno
import socket
import struct
from typing import NamedTuple

from ztunnel.linux.netlink import NetlinkError, NetlinkSocket, attribute, attributes
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.nftables import NETLINK_NETFILTER
from ztunnel.linux.sockets import SocketAddress

_GET = 1 << 8 | 1
_ORIGINAL, _PROTOCOL_STATE, _MARK, _MARK_MASK = 1, 4, 8, 21
_CLOSED_FIRST = 4  # IP_CT_TCP_FLAG_CLOSE_INIT
_OPEN = range(1, 6)  # TCP_CONNTRACK_SYN_SENT to TCP_CONNTRACK_CLOSE_WAIT
_RESET = 8  # TCP_CONNTRACK_CLOSE


class Ending(NamedTuple):
    """How a connection has come to its end, as far as it has.

    Attributes:
        by_client, by_server: which side sent its FIN first; neither so far, or by a RST.
        reset: a RST ended it.
    """

    by_client: bool
    by_server: bool
    reset: bool


class Conntrack:
    """Asks about tracked TCP connections of one namespace. Raises OSError where it cannot."""

    __slots__ = ("_netlink",)

    def __init__(self, namespace: NetworkNamespace | None = None) -> None:
        self._netlink = NetlinkSocket(NETLINK_NETFILTER, namespace)

    def ending(self, source: SocketAddress, destination: SocketAddress) -> Ending | None:
        """Of the connection that `source` opened to `destination`; None when it is unknown."""
        body = _family(source) + attribute(_ORIGINAL, _tuple(source, destination))
        try:
            answer = self._netlink.ask(_GET, body)
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        state = attributes(attributes(answer.body[4:]).get(_PROTOCOL_STATE, b""))
        tcp = attributes(state.get(1, b""))
        first = [bool(tcp.get(kind, b"\0")[0] & _CLOSED_FIRST) for kind in (4, 5)]
        return Ending(first[0], first[1], tcp.get(1, b"\0")[0] == _RESET)

    def marked(self, mark: int, mask: int) -> list[tuple[SocketAddress, SocketAddress, int]]:
        """(source, destination, mark) of each TCP connection with that mark under that mask."""
        found = []
        for family in (socket.AF_INET, socket.AF_INET6):
            for message in self._netlink.dump(_GET, _with_mark(family, mark, mask)):
                entry = attributes(message.body[4:])
                ends = _ends(family, entry[_ORIGINAL])
                (seen,) = struct.unpack("!I", entry.get(_MARK, bytes(4)))
                if ends is not None and seen & mask == mark:
                    found.append((*ends, seen))
        return found

    def count_open(self, mark: int, mask: int) -> int:
        """How many TCP connections with that mark under that mask have not come to their end."""
        count = 0
        for family in (socket.AF_INET, socket.AF_INET6):
            for message in self._netlink.dump(_GET, _with_mark(family, mark, mask)):
                entry = attributes(message.body[4:])
                (seen,) = struct.unpack("!I", entry.get(_MARK, bytes(4)))
                tcp = attributes(attributes(entry.get(_PROTOCOL_STATE, b"")).get(1, b""))
                count += seen & mask == mark and tcp.get(1, b"\0")[0] in _OPEN
        return count

    def close(self) -> None:
        self._netlink.close()

    def __enter__(self) -> "Conntrack":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _with_mark(family: int, mark: int, mask: int) -> bytes:
    body = struct.pack("!BBH", family, 0, 0) + attribute(_MARK, struct.pack("!I", mark))
    return body + attribute(_MARK_MASK, struct.pack("!I", mask))


def _family(address: SocketAddress) -> bytes:
    return struct.pack("!BBH", socket.AF_INET6 if ":" in address[0] else socket.AF_INET, 0, 0)


def _tuple(source: SocketAddress, destination: SocketAddress) -> bytes:
    kind, first = (socket.AF_INET6, 3) if ":" in source[0] else (socket.AF_INET, 1)
    addresses = attribute(first, socket.inet_pton(kind, source[0]))
    addresses += attribute(first + 1, socket.inet_pton(kind, destination[0]))
    ports = attribute(1, bytes((socket.IPPROTO_TCP,)))
    ports += attribute(2, struct.pack("!H", source[1]))
    ports += attribute(3, struct.pack("!H", destination[1]))
    return attribute(1, addresses) + attribute(2, ports)


def _ends(family: int, packed: bytes) -> tuple[SocketAddress, SocketAddress] | None:
    parts = attributes(packed)
    addresses, ports = attributes(parts.get(1, b"")), attributes(parts.get(2, b""))
    if ports.get(1) != bytes((socket.IPPROTO_TCP,)):
        return None
    first = 3 if family == socket.AF_INET6 else 1
    here, there = (socket.inet_ntop(family, addresses[first + n]) for n in (0, 1))
    return (
        (here, int.from_bytes(ports[2], "big")),
        (there, int.from_bytes(ports[3], "big")),
    )
