"""Counting and ending the TCP connections of a namespace (linux/sock_diag.h, inet_diag.h)."""

import errno
import ipaddress
import socket
import struct
from collections.abc import Collection, Iterator

from ztunnel.linux.netlink import NetlinkError, NetlinkSocket, attributes
from ztunnel.linux.netns import NetworkNamespace

_NETLINK_SOCK_DIAG = 4
_BY_FAMILY, _DESTROY = 20, 21

# Neither those that listen nor those that only wait for the last packets to die out.
_LIVING = sum(1 << state for state in (1, 2, 3, 4, 5, 8, 9, 11))

_REQUEST = struct.Struct("=BBBxI")  # family, protocol, extensions, states
_FOUND = struct.Struct("=BBBB")  # family, state, timer, retransmissions
_ID_LENGTH = 48  # ports, addresses, interface, cookie
_PORTS = struct.Struct("!HH")
_MESSAGE_LENGTH = 72  # of struct inet_diag_msg; attributes follow
_MARK_ATTRIBUTE = 15  # INET_DIAG_MARK
_MARK = struct.Struct("=I")


def end_connections(
    namespace: NetworkNamespace | None = None, spared_ports: Collection[int] = ()
) -> int:
    """Abort every TCP connection of the namespace with somebody outside of it: both sides get a
    reset, and nobody waits for an answer that cannot come.

    Args:
        spared_ports: local ports whose connections are left alone.

    Returns:
        How many were ended.

    Raises:
        NetlinkError: EOPNOTSUPP where the kernel was built without this (INET_DIAG_DESTROY).
    """
    ended = 0
    with NetlinkSocket(_NETLINK_SOCK_DIAG, namespace) as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            everything = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _LIVING) + bytes(_ID_LENGTH)
            for identity in list(_each(netlink, everything)):
                port, _ = _PORTS.unpack_from(identity)
                if port in spared_ports or _is_internal(family, identity):
                    continue
                one = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _LIVING) + identity
                try:
                    netlink.request(_DESTROY, 0, one)
                    ended += 1
                except NetlinkError as error:
                    if error.errno != errno.ENOENT:  # it has ended by itself
                        raise
    return ended


def count_marked(
    namespace: NetworkNamespace | None, mark: int, mask: int, spared_ports: Collection[int] = ()
) -> int:
    """How many TCP connections of the namespace belong to sockets whose mark is `mark` under
    `mask`. Needs CAP_NET_ADMIN there: marks are not shown to others.

    Args:
        spared_ports: ports whose connections do not count, on either side.

    Raises:
        NetlinkError: the kernel cannot be asked.
    """
    count = 0
    with NetlinkSocket(_NETLINK_SOCK_DIAG, namespace) as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            everything = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _LIVING) + bytes(_ID_LENGTH)
            for message in netlink.dump(_BY_FAMILY, everything):
                found = attributes(message.body[_MESSAGE_LENGTH:]).get(_MARK_ATTRIBUTE)
                ports = _PORTS.unpack_from(message.body, _FOUND.size)
                if found is not None and not set(ports) & set(spared_ports):
                    (value,) = _MARK.unpack(found)
                    count += value & mask == mark & mask
    return count


def _each(netlink: NetlinkSocket, request: bytes) -> Iterator[bytes]:
    for message in netlink.dump(_BY_FAMILY, request):
        yield message.body[_FOUND.size : _FOUND.size + _ID_LENGTH]


def _is_internal(family: int, identity: bytes) -> bool:
    length = 4 if family == socket.AF_INET else 16
    source = ipaddress.ip_address(identity[4 : 4 + length])
    destination = ipaddress.ip_address(identity[20 : 20 + length])
    mapped = getattr(source, "ipv4_mapped", None)
    return source == destination or (mapped or source).is_loopback
