"""What the kernel knows about a TCP connection (`TCP_INFO`, linux/tcp.h `struct tcp_info`)."""

import socket
import struct

_STATE_AND_BYTES = struct.Struct("=B119xQQ8xI52xQQ")
_FIN_CAME = frozenset((6, 7, 8, 9, 11))  # TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK, CLOSING


def progress(sock: socket.socket) -> tuple[int, int, int]:
    """(bytes that came, bytes that were written, of these not acknowledged yet) of a connection.

    What came includes what nobody has read; what was written, what is not sent yet. Without
    FINs and retransmissions. Raises OSError when it is no TCP socket, or closed, or where the
    kernel is older than 4.19 and does not tell.
    """
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _STATE_AND_BYTES.size)
    if len(raw) < _STATE_AND_BYTES.size:
        raise OSError(95, "this kernel's TCP_INFO does not tell how much was sent")
    state, acked, received, notsent, sent, again = _STATE_AND_BYTES.unpack(raw)
    written = sent - again + notsent
    # The FIN takes up a number of its own, in the order of bytes.
    return received - (state in _FIN_CAME), written, max(written - acked, 0)
