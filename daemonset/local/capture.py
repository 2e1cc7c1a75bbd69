"""What really goes over a wire: packets captured with AF_PACKET, TCP put together again, judged.

The judgement is about bytes, not about intentions: a stream is TLS if it can be read as TLS records
from one end to the other, and a text is visible if its bytes are in a packet.
"""

import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ztunnel.linux.netns import NetworkNamespace

HBONE_PORT = 15008

_ETH_P_ALL = 0x0003
_ETH_P_IP = 0x0800
_ETH_P_IPV6 = 0x86DD
_ETHERNET_HEADER = 14
_LARGEST_FRAME = 1 << 17  # segments come unsplit (TSO): up to 64 KiB and headers
_BUFFER = 16 << 20

# RFC 8446 section 5.1: content types 20 to 23, and the two values of legacy_record_version.
_TLS_TYPES = range(20, 24)
_TLS_VERSIONS = (b"\x03\x01", b"\x03\x03")
_TLS_LARGEST = (1 << 14) + 256


@dataclass(frozen=True, slots=True)
class Segment:
    """The TCP part of one packet."""

    source: tuple[str, int]
    destination: tuple[str, int]
    sequence: int
    payload: bytes


def read_frame(frame: bytes) -> Segment | None:
    """Pure: the TCP segment in an Ethernet frame; None when there is none, or not all of it.

    IPv6 extension headers are not followed: nothing in a mesh sends any.
    """
    if len(frame) < _ETHERNET_HEADER:
        return None
    (kind,) = struct.unpack_from("!H", frame, 12)
    packet = frame[_ETHERNET_HEADER:]
    if kind == _ETH_P_IP and len(packet) >= 20:
        header = (packet[0] & 0x0F) * 4
        (total,) = struct.unpack_from("!H", packet, 2)
        protocol, family, addresses = packet[9], socket.AF_INET, (packet[12:16], packet[16:20])
    elif kind == _ETH_P_IPV6 and len(packet) >= 40:
        header = 40
        total = header + struct.unpack_from("!H", packet, 4)[0]
        protocol, family, addresses = packet[6], socket.AF_INET6, (packet[8:24], packet[24:40])
    else:
        return None
    if protocol != socket.IPPROTO_TCP or len(packet) < header + 20:
        return None
    # A length of 0 is that of a packet above 64 KiB ("BIG TCP"); a short frame is padded.
    tcp = packet[header:total] if total > header else packet[header:]
    if len(tcp) < 20:
        return None
    source_port, destination_port, sequence = struct.unpack_from("!HHI", tcp)
    data = (tcp[12] >> 4) * 4
    return Segment(
        (socket.inet_ntop(family, addresses[0]), source_port),
        (socket.inet_ntop(family, addresses[1]), destination_port),
        sequence,
        tcp[data:] if data >= 20 else b"",
    )


Flow = tuple[tuple[str, int], tuple[str, int]]


@dataclass(slots=True)
class Capture:
    """What was seen, one direction of a connection after the other."""

    packets: int = 0
    """TCP packets with payload."""
    _segments: dict[Flow, dict[int, bytes]] = field(default_factory=dict)

    def add(self, segment: Segment) -> None:
        if not segment.payload:
            return
        self.packets += 1
        known = self._segments.setdefault((segment.source, segment.destination), {})
        # A segment sent again may be longer than the first time; what was seen stays seen.
        if len(segment.payload) > len(known.get(segment.sequence, b"")):
            known[segment.sequence] = segment.payload

    def flows(self) -> Iterator[Flow]:
        """(source, destination) of each direction that carried bytes."""
        yield from self._segments

    def stream(self, flow: Flow) -> bytes:
        """The bytes of one direction, in order; where something was missed, what follows the gap
        comes right after what was before it."""
        segments = self._segments[flow]
        if not segments:
            return b""
        # Sequence numbers wrap at 2**32: order them by distance from the first one seen.
        first = next(iter(segments))
        ordered = sorted(segments, key=lambda number: (number - first + 2**31) % 2**32)
        joined = bytearray()
        position = ordered[0]
        for number in ordered:
            overlap = (position - number) % 2**32
            if overlap >= 2**31:  # a gap
                overlap = 0
            payload = segments[number]
            if overlap < len(payload):
                joined += payload[overlap:]
                position = (number + len(payload)) % 2**32
        return bytes(joined)

    def packets_with_port(self, port: int) -> int:
        """How many segments went to or came from a port."""
        return sum(
            len(segments)
            for (source, destination), segments in self._segments.items()
            if port in (source[1], destination[1])
        )

    def ports(self) -> set[int]:
        """The lower port of each connection seen: the one that was listened on."""
        return {min(source[1], destination[1]) for source, destination in self._segments}

    def shows(self, marker: bytes) -> bool:
        """Whether *marker* can be read by whoever sits on the wire."""
        return any(marker in self.stream(flow) for flow in self._segments)

    def around(self, marker: bytes, before: int = 30, after: int = 30) -> bytes:
        """The bytes around *marker* as they went over the wire, or none."""
        for flow in self._segments:
            stream = self.stream(flow)
            at = stream.find(marker)
            if at >= 0:
                return stream[max(0, at - before) : at + len(marker) + after]
        return b""

    def tls_records(self, port: int) -> tuple[int, int]:
        """TLS records to and from a port, and bytes there that belong to none."""
        records = strangers = 0
        for flow in self._segments:
            if port in (flow[0][1], flow[1][1]):
                found, strange = count_tls_records(self.stream(flow))
                records += found
                strangers += strange
        return records, strangers


def count_tls_records(stream: bytes) -> tuple[int, int]:
    """Pure: how many TLS records a stream consists of, and how many bytes are in none.

    A capture may have begun within a record: the first place from which the rest can be read as
    records to the end counts as their beginning, and what is before it as the end of one.
    """
    if not stream:
        return 0, 0
    for start in range(min(len(stream), _TLS_LARGEST + 5)):
        records = _records_from(stream, start)
        if records:
            return records + (1 if start else 0), 0
    return 0, len(stream)


def _records_from(stream: bytes, position: int) -> int:
    """Number of records from *position* to the end (the last one may be cut off), or 0."""
    records = 0
    while position < len(stream):
        header = stream[position : position + 5]
        if header[0] not in _TLS_TYPES or not any(
            version.startswith(header[1:3]) for version in _TLS_VERSIONS
        ):
            return 0
        if len(header) == 5:
            (length,) = struct.unpack_from("!H", header, 3)
            if not 0 < length <= _TLS_LARGEST:
                return 0
            position += 5 + length
        else:
            position = len(stream)
        records += 1
    return records


class Wire:
    """Listens on one interface from the moment it is made. Needs CAP_NET_RAW in the namespace."""

    def __init__(self, namespace: NetworkNamespace, interface: str) -> None:
        """Raises OSError when there is no such interface, or it is forbidden."""
        self._socket = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            self._socket.bind((interface, _ETH_P_ALL))
            self._socket.setblocking(False)
            self._drain()  # what other interfaces got before the bind
        except OSError:
            self._socket.close()
            raise

    def _drain(self) -> Iterable[bytes]:
        frames: list[bytes] = []
        while True:
            try:
                frames.append(self._socket.recv(_LARGEST_FRAME))
            except BlockingIOError:
                return frames

    def read_into(self, capture: Capture) -> None:
        """Take over what has been seen so far."""
        for frame in self._drain():
            segment = read_frame(frame)
            if segment is not None:
                capture.add(segment)

    def close(self) -> None:
        """Stop listening. Harmless when called twice."""
        self._socket.close()
