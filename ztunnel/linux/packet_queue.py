"""Packets that wait for a verdict of ours (NFQUEUE; linux/netfilter/nfnetlink_queue.h).

A packet that a rule queues stays in the kernel until it is told what to do with it. While nobody is
bound to the queue, and when the one who was ends, packets are dropped: nothing passes unseen.
"""

import errno
import socket
import struct
from collections.abc import Sequence
from typing import Final

from ztunnel.linux.netlink import NetlinkSocket, attribute
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.nftables import NETLINK_NETFILTER
from ztunnel.linux.sockets import SocketAddress

PREROUTING, OUTPUT = 0, 3
"""Hooks, as in `Syn.hook`."""

_PACKET, _VERDICT, _CONFIG = 3 << 8, 3 << 8 | 1, 3 << 8 | 2
_BIND, _UNBIND = 1, 2
_COPY_PACKET = 2
_ENOUGH: Final = 128  # bytes of a packet: both headers, with room for IPv4 options
_MOST: Final = 16384  # packets that may wait
_BUFFER: Final = 4 << 20
_SO_RCVBUFFORCE: Final = 33
_DROP, _ACCEPT = 0, 1

_ANSWER = struct.Struct("=IHHII")  # struct nlmsghdr
_SAID = struct.Struct("!BBH4sII4sI")  # struct nfgenmsg, verdict and number, mark
_FAMILY = struct.Struct("!BBH")  # struct nfgenmsg; its last field is the queue
_ATTRIBUTE = struct.Struct("=HH")
_PACKET_HEADER = struct.Struct("!IHB")  # id, protocol, hook
_VERDICT_HEAD = struct.pack("=HH", 12, 2)  # NFQA_VERDICT_HDR
_MARK_HEAD = struct.pack("=HH", 8, 3)  # NFQA_MARK
_PORTS_AND_SEQUENCE = struct.Struct("!HHI")


class Syn:
    """The first packet of a TCP connection, waiting.

    Attributes:
        number: by which the kernel knows it.
        hook: where it was queued.
        source, destination: as they are at that hook; canonical.
        sequence: its sequence number, which nobody elsewhere can know.
    """

    __slots__ = ("destination", "hook", "number", "queue", "sequence", "source")

    def __init__(
        self,
        queue: int,
        number: int,
        hook: int,
        source: SocketAddress,
        destination: SocketAddress,
        sequence: int,
    ) -> None:
        self.queue = queue
        self.number = number
        self.hook = hook
        self.source = source
        self.destination = destination
        self.sequence = sequence


class PacketQueue:
    """Some queues of a namespace, all of them bound to one socket, `fd`.

    Raises:
        OSError: EPERM when somebody else is bound to one of them, or without CAP_NET_ADMIN.
    """

    __slots__ = ("_netlink", "_sock", "fd")

    def __init__(self, namespace: NetworkNamespace | None, queues: Sequence[int]) -> None:
        self._netlink = NetlinkSocket(NETLINK_NETFILTER, namespace)
        self._sock = self._netlink.sock
        self.fd = self._sock.fileno()
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        except PermissionError:  # in a user namespace: as much as everybody may have
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        try:
            for queue in queues:
                self.bind(queue)
        except BaseException:
            self._netlink.close()
            raise

    def bind(self, queue: int) -> None:
        """Take what waits in one more queue. Raises OSError (EPERM: somebody else does)."""
        command = attribute(1, struct.pack("!BBH", _BIND, 0, 0))
        parameters = attribute(2, struct.pack("!IB", _ENOUGH, _COPY_PACKET))
        most = attribute(3, struct.pack("!I", _MOST))
        body = _FAMILY.pack(socket.AF_UNSPEC, 0, queue) + command + parameters + most
        self._netlink.request(_CONFIG, 0, body)

    def unbind(self, queue: int) -> None:
        """Let go of a queue: what still waits there is dropped. Raises OSError."""
        body = _FAMILY.pack(socket.AF_UNSPEC, 0, queue)
        self._netlink.request(_CONFIG, 0, body + attribute(1, struct.pack("!BBH", _UNBIND, 0, 0)))

    def take(self, most: int = 64) -> list[Syn]:
        """What waits, without blocking. Anything that is no SYN of TCP is dropped.

        When more came than the kernel could tell, that was dropped as well: clients send again.
        """
        found: list[Syn] = []
        while len(found) < most:
            try:
                data = self._sock.recv(4096, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue
            if _ATTRIBUTE.unpack_from(data, 4)[0] != _PACKET:
                continue
            syn = self._read(data)
            if syn is not None:
                found.append(syn)
        return found

    def _read(self, data: bytes) -> Syn | None:
        queue = _FAMILY.unpack_from(data, 16)[2]
        offset, number, hook, payload = 20, -1, -1, b""
        while offset + 4 <= len(data):
            length, kind = _ATTRIBUTE.unpack_from(data, offset)
            if length < 4:
                break
            if kind == 1:
                number, _, hook = _PACKET_HEADER.unpack_from(data, offset + 4)
            elif kind == 10:
                payload = data[offset + 4 : offset + length]
            offset += length + -length % 4
        if number < 0:
            return None
        found = parse_syn(payload)
        if found is None:
            self.drop(Syn(queue, number, hook, ("", 0), ("", 0), 0))
            return None
        return Syn(queue, number, hook, *found)

    def accept(self, syn: Syn, mark: int = 0) -> None:
        """Let a packet go on, with that mark. Raises OSError when the kernel cannot be told."""
        self._answer(syn, _ACCEPT, mark)

    def drop(self, syn: Syn) -> None:
        """Throw a packet away. Raises OSError as `accept` does."""
        self._answer(syn, _DROP, 0)

    def _answer(self, syn: Syn, verdict: int, mark: int) -> None:
        head = _ANSWER.pack(_ANSWER.size + _SAID.size, _VERDICT, 1, 0, 0)
        said = (0, 0, syn.queue, _VERDICT_HEAD, verdict, syn.number, _MARK_HEAD, mark)
        self._sock.send(head + _SAID.pack(*said))

    def close(self) -> None:
        """Let go of all queues; what waits in them is dropped."""
        self._netlink.close()


def parse_syn(packet: bytes) -> tuple[SocketAddress, SocketAddress, int] | None:
    """(source, destination, sequence number) of a TCP packet, given its beginning; None for
    anything else (RFC 791, RFC 8200 without extension headers, RFC 9293)."""
    if len(packet) < 20:
        return None
    version = packet[0] >> 4
    if version == 4:
        behind = (packet[0] & 15) * 4
        if behind < 20 or packet[9] != socket.IPPROTO_TCP:
            return None
        family, source, destination = socket.AF_INET, packet[12:16], packet[16:20]
    elif version == 6:
        behind = 40
        if len(packet) < behind or packet[6] != socket.IPPROTO_TCP:
            return None
        family, source, destination = socket.AF_INET6, packet[8:24], packet[24:40]
    else:
        return None
    if len(packet) < behind + _PORTS_AND_SEQUENCE.size:
        return None
    sent_from, sent_to, sequence = _PORTS_AND_SEQUENCE.unpack_from(packet, behind)
    return (
        (socket.inet_ntop(family, source), sent_from),
        (socket.inet_ntop(family, destination), sent_to),
        sequence,
    )


def is_bound(namespace: NetworkNamespace | None, queue: int) -> bool:
    """Whether somebody is bound to a queue of the namespace. Raises OSError."""
    try:
        PacketQueue(namespace, (queue,)).close()
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EBUSY):
            return True
        raise
    return False
