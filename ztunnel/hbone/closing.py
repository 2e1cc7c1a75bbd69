"""How the ends of a stream and of a TCP connection stand for one another, as tables.

RFC 9113 section 8.5: END_STREAM is FIN, RST_STREAM is RST. Peers differ; this is what we do.

What came on the stream, and what the application's TCP connection gets:

- END_STREAM: FIN. It may go on sending (half-close).
- END_STREAM, later RST_STREAM NO_ERROR or CANCEL: it has its FIN, and what it still sends is not
  wanted. Close without RST: Envoy ends every tunnel so whose upstream finished first.
- END_STREAM, later RST_STREAM with another code: RST, because what it sent was lost.
- RST_STREAM with any code and no END_STREAM before: RST, because the stream was cut. (ztunnel takes
  NO_ERROR and CANCEL for a clean end, Envoy CONNECT_ERROR and lost tunnels: their application
  mistakes a part for the whole.)
- The tunnel broke: RST, for the same reason, unless END_STREAM had passed both ways.

What came from the application, and what the stream gets:

- FIN: END_STREAM; the other direction goes on.
- RST, or an error of its socket: RST_STREAM CONNECT_ERROR, after what it had sent before.
- Connection refused or timed out (server): response 503 with END_STREAM, and no RST_STREAM.
- Closed by us (policy, drain, certificate): RST_STREAM CANCEL.

Resets are counted by peers (Envoy closes a connection after 1,000 in a burst), so nothing that
ended well is ever reset.
"""

from enum import Enum

from ztunnel.http2.errors import ErrorCode


class TcpEnd(Enum):
    """What the application's side of a flow gets."""

    FIN = "fin"
    """Shut our writing side; keep reading."""
    CLOSE = "close"
    """Close in order: both sides were told that it is over."""
    RESET = "reset"
    """Close with RST (SO_LINGER 0): bytes were lost, and the application must know."""


class FlowEnd(Enum):
    """Why the application's side of a flow ended, or why we ended it."""

    FIN = "fin"
    ERROR = "error"
    CLOSED_BY_US = "closed by us"


_QUIET = frozenset((ErrorCode.NO_ERROR, ErrorCode.CANCEL))


def tcp_end_for_reset(code: ErrorCode, end_stream_seen: bool) -> TcpEnd:
    """What a RST_STREAM means for the application.

    Args:
        code: The reset's code.
        end_stream_seen: The peer had sent END_STREAM before.
    """
    return TcpEnd.CLOSE if end_stream_seen and code in _QUIET else TcpEnd.RESET


def tcp_end_for_lost_tunnel(end_stream_seen: bool, end_stream_sent: bool) -> TcpEnd:
    """What the loss of the whole tunnel means for the application of a stream."""
    return TcpEnd.CLOSE if end_stream_seen and end_stream_sent else TcpEnd.RESET


def reset_code_for(end: FlowEnd) -> ErrorCode | None:
    """The RST_STREAM code for a flow that ended; None: END_STREAM and no reset."""
    if end is FlowEnd.FIN:
        return None
    return ErrorCode.CONNECT_ERROR if end is FlowEnd.ERROR else ErrorCode.CANCEL
