"""One stream of a connection: its windows and which halves are still open."""

from typing import Any

from ztunnel.http2.errors import ErrorCode


class Stream:
    """One request and its response, or one tunnel (RFC 9113 section 5).

    The connection makes these and changes them; the owner reads them, and may use :attr:`owner`
    as it likes, so that a DATA event leads to the flow without a look-up.

    Attributes:
        id: The stream's number on the wire.
        owner: Whatever the owner of the connection ties to the stream. Never touched here.
        send_window: Bytes the peer still takes on this stream; negative after it shrank its
            initial window. The connection's window counts too: ask ``Connection.sendable``.
        recv_window: Bytes the peer may still send on this stream.
        window: Bytes of receive window that the stream is given in all.
        owed: Bytes consumed that have not been given back to the peer yet; negative after the
            window shrank, by what will not be.
        can_send: DATA may be sent: our headers went out, and neither end has closed our half.
        local_closed: We sent END_STREAM or RST_STREAM.
        remote_closed: The peer sent END_STREAM or RST_STREAM, or we reset the stream.
        responded: The final response headers were sent (server) or received (client).
        flowing: DATA may take the short way through ``receive``: no state to look at.
        content_left: Bytes still to come by ``content-length``, or -1 when none was given.
        is_connect: The request is a CONNECT: nothing but DATA may follow (section 8.5).
        is_head: The request is a HEAD: its response has no content.
        reset_code: The code of the RST_STREAM that ended it, sent or received; None without one.
    """

    __slots__ = (
        "can_send",
        "content_left",
        "flowing",
        "id",
        "is_connect",
        "is_head",
        "local_closed",
        "owed",
        "owner",
        "recv_window",
        "remote_closed",
        "reset_code",
        "responded",
        "send_window",
        "window",
    )

    def __init__(self, stream_id: int, send_window: int, recv_window: int) -> None:
        self.id: int = stream_id
        self.owner: Any = None
        self.send_window: int = send_window
        self.recv_window: int = recv_window
        self.window: int = recv_window
        self.owed: int = 0
        self.can_send: bool = False
        self.local_closed: bool = False
        self.remote_closed: bool = False
        self.responded: bool = False
        self.flowing: bool = False
        self.content_left: int = -1
        self.is_connect: bool = False
        self.is_head: bool = False
        self.reset_code: ErrorCode | None = None

    @property
    def closed(self) -> bool:
        """Both halves are closed: the connection has forgotten the stream."""
        return self.local_closed and self.remote_closed

    def __repr__(self) -> str:
        halves = f"local_closed={self.local_closed} remote_closed={self.remote_closed}"
        return f"<Stream {self.id} {halves} send={self.send_window} recv={self.recv_window}>"
