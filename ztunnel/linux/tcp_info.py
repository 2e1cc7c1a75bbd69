"""What the kernel knows about a TCP connection (`TCP_INFO`, linux/tcp.h `struct tcp_info`)."""

import socket
import struct
from dataclasses import dataclass

_STATES = (
    "",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
)
_SIZE = 192
_HEAD = struct.Struct("=8B24I")  # tcpi_state … tcpi_total_retrans
_BYTES = struct.Struct("=4Q2I")  # pacing rates, bytes_acked, bytes_received, segments out and in


_STATE_AND_BYTES = struct.Struct("=B119xQQ8xI52xQQ")
_FIN_CAME = frozenset((6, 7, 8, 9, 11))  # TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK, CLOSING


def progress(sock: socket.socket) -> tuple[int, int, int]:
    """(bytes that came, bytes that were written, of these not acknowledged yet) of a connection.

    What came includes what nobody has read; what was written, what is not sent yet. Without
    FINs and retransmissions. Raises OSError as `tcp_info` does, or where the kernel is older than
    4.19 and does not tell.
    """
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _STATE_AND_BYTES.size)
    if len(raw) < _STATE_AND_BYTES.size:
        raise OSError(95, "this kernel's TCP_INFO does not tell how much was sent")
    state, acked, received, notsent, sent, again = _STATE_AND_BYTES.unpack(raw)
    written = sent - again + notsent
    # The FIN takes up a number of its own, in the order of bytes.
    return received - (state in _FIN_CAME), written, max(written - acked, 0)


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """A snapshot. Times in seconds, windows in segments; counts are since the connection began."""

    state: str
    rtt: float
    rtt_variation: float
    send_mss: int
    unacked_segments: int
    congestion_window: int
    total_retransmits: int
    bytes_acked: int
    bytes_received: int
    segments_out: int
    segments_in: int


def tcp_info(sock: socket.socket) -> TcpInfo:
    """Ask the kernel about `sock`. Raises OSError when it is no TCP socket, or closed."""
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE)
    raw = raw.ljust(_SIZE, b"\0")
    head = _HEAD.unpack_from(raw)
    counts = _BYTES.unpack_from(raw, _HEAD.size)
    words = head[8:]
    state = head[0]
    return TcpInfo(
        state=_STATES[state] if 0 < state < len(_STATES) else f"state {state}",
        rtt=words[15] / 1e6,
        rtt_variation=words[16] / 1e6,
        send_mss=words[2],
        unacked_segments=words[4],
        congestion_window=words[18],
        total_retransmits=words[23],
        bytes_acked=counts[2],
        bytes_received=counts[3],
        segments_out=counts[4],
        segments_in=counts[5],
    )
