"""The client end of a connection."""

from collections.abc import Iterable

from ztunnel.http2 import frames
from ztunnel.http2.connection import Connection
from ztunnel.http2.errors import ErrorCode, UsageError
from ztunnel.http2.events import (
    InformationalReceived,
    ReceivedEvent,
    ResponseReceived,
    TrailersReceived,
)
from ztunnel.http2.headers import (
    Header,
    Headers,
    check_response,
    check_trailers,
    list_size,
    malformed,
)
from ztunnel.http2.limits import MAX_STREAM_ID
from ztunnel.http2.settings import LocalSettings
from ztunnel.http2.stream import Stream


class ClientConnection(Connection):
    """Opens streams, within what the server announced.

    The preface and our SETTINGS are in ``out`` from the start.
    """

    is_client: bool = True

    def __init__(self, local: LocalSettings | None = None) -> None:
        super().__init__(local or LocalSettings())
        self._next_stream: int = 1
        self._shutting_down: bool = False
        self.out += frames.PREFACE
        self._start()

    def can_open(self) -> bool:
        """A stream may be opened now.

        Not before the server's SETTINGS: Envoy closes the whole connection when it gets more
        streams than it announced.
        """
        return (
            self.settings_received
            and len(self.streams) < self.peer.max_concurrent_streams
            and self.goaway_received is None
            and not self._shutting_down
            and self._next_stream <= MAX_STREAM_ID
            and self.terminated is None
        )

    def open(self, headers: Iterable[Header], end_stream: bool = False) -> Stream:
        """Send a request.

        Args:
            headers: Lower-case names, pseudo-header fields first.
            end_stream: The request has neither content nor trailers.

        Raises:
            UsageError: Not now (see :meth:`can_open`), or the peer takes no list as large.
        """
        fields: Headers = list(headers)
        self._check_open(list_size(fields))
        stream = self._open(self._encoder.encode(fields), end_stream)
        stream.is_connect = (b":method", b"CONNECT") in fields
        stream.is_head = (b":method", b"HEAD") in fields
        return stream

    def _check_open(self, size: int) -> None:
        """Raise UsageError unless a request with a header list of that size can be sent."""
        if not self.can_open():
            raise UsageError("the connection takes no new streams")
        if size > self.peer.max_header_list_size:
            raise UsageError(
                f"a header list of {size} bytes is more than the "
                f"{self.peer.max_header_list_size} the server takes"
            )

    def _open(self, block: bytes, end_stream: bool) -> Stream:
        """Send an encoded request, after `_check_open`."""
        stream_id = self._next_stream
        stream = Stream(stream_id, self.peer.initial_window, self.local.initial_window)
        self._write_block(stream_id, block, end_stream)
        self._next_stream = stream_id + 2
        stream.can_send = True
        self.streams[stream_id] = stream
        if end_stream:
            self._close_local(stream)
        return stream

    def send_trailers(self, stream: Stream, headers: Iterable[Header]) -> None:
        """End our half of the stream with trailers.

        Raises:
            UsageError: Our half is closed.
        """
        if not stream.can_send or self.terminated is not None:
            raise UsageError(f"stream {stream.id} does not take trailers")
        self._write_headers(stream.id, headers, True)
        self._close_local(stream)

    def shutdown(self) -> None:
        """Open no more streams, and tell the server; those that are open go on."""
        if not self._shutting_down and self.terminated is None:
            self._shutting_down = True
            self._write_goaway(0, ErrorCode.NO_ERROR, "")

    def _more_headers(
        self, stream: Stream, headers: Headers, ends: bool, events: list[ReceivedEvent]
    ) -> None:
        if stream.responded:
            if stream.is_connect:
                raise malformed("HEADERS in a tunnel")
            check_trailers(headers)
            if not ends:
                raise malformed("trailers that do not end the stream")
            if stream.content_left > 0:
                raise malformed("not the announced content-length")
            events.append(TrailersReceived(stream, headers))
            self._close_remote(stream)
            return
        status = check_response(headers)
        if status < 200:
            if ends:
                raise malformed("an informational response that ends the stream")
            self._informational(stream, status, headers, events)
            return
        # A refused CONNECT has an ordinary response (section 8.5).
        if status >= 300:
            stream.is_connect = False
        if status in (204, 304):
            stream.is_head = True
        self._expect_content(stream, headers, ends)
        stream.responded = True
        self._response(stream, status, headers, ends, events)
        if ends:
            self._close_remote(stream)

    def _informational(
        self, stream: Stream, status: int, headers: Headers, events: list[ReceivedEvent]
    ) -> None:
        if not self._guard.useless.take(self._now):
            raise malformed("too many informational responses")
        events.append(InformationalReceived(stream, status, headers))

    def _response(
        self,
        stream: Stream,
        status: int,
        headers: Headers,
        ends: bool,
        events: list[ReceivedEvent],
    ) -> None:
        """Tell the owner of the response; subclasses may say it in their own words."""
        events.append(ResponseReceived(stream, status, headers, ends))

    def _is_idle(self, stream_id: int) -> bool:
        return stream_id & 1 == 0 or stream_id >= self._next_stream

    def _streams_ever(self) -> int:
        return self._next_stream >> 1
