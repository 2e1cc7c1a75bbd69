"""The server end of HBONE: CONNECT over a shared HTTP/2 connection.

DATA goes straight through :class:`~ztunnel.http2.connection.Connection`; only what happens once per
stream passes here.
"""

from typing import Final

from ztunnel.hbone.authority import AuthorityError, parse_authority
from ztunnel.hbone.events import ConnectRequested, RequestRejected
from ztunnel.http2.errors import ErrorCode, UsageError
from ztunnel.http2.events import ReceivedEvent, StreamReset
from ztunnel.http2.headers import Header, Headers
from ztunnel.http2.server import ServerConnection
from ztunnel.http2.settings import LocalSettings
from ztunnel.http2.stream import Stream

MAX_REFUSED_OPEN: Final = 64
"""Refused streams whose client has not ended its half. Beyond that the oldest is reset, so that a
client that never ends them cannot fill the connection; honest ones end them at once."""


REFUSAL_TEXT: Final = 512
"""Bytes of reason that a refusal carries."""

_OK: Final[Header] = (b":status", b"200")
_ONLY_OK: Final = (_OK,)


class TunnelServer(ServerConnection):
    """Takes tunnels. The owner answers each ``ConnectRequested`` by ``accept`` or ``refuse``."""

    def __init__(self, local: LocalSettings | None = None) -> None:
        super().__init__(local)
        self._refused: dict[int, Stream] = {}

    def accept(self, stream: Stream, baggage: str = "") -> bool:
        """Answer 200: the connection to the application is up, DATA may flow.

        Args:
            stream: Of a ``ConnectRequested``.
            baggage: Who the destination is.

        Returns:
            False when the client has reset the stream, and nothing was sent.

        Raises:
            UsageError: The stream has been answered.
        """
        if stream.closed:
            return False
        if stream.responded or stream.local_closed or self.terminated is not None:
            raise UsageError(f"stream {stream.id} does not take a response")
        headers = (_OK, (b"baggage", baggage.encode())) if baggage else _ONLY_OK
        self._write_block(stream.id, self._encoder.encode_again(headers), False)
        stream.responded = True
        stream.can_send = True
        return True

    def refuse(self, stream: Stream, status: int, reason: str = "") -> None:
        """Answer with an error. The stream ends with the response, and not by a reset.

        Nothing happens when the client has reset the stream.

        Args:
            stream: Of a ``ConnectRequested``. What the client still sends on it is thrown away.
            status: 400 and above.
            reason: What the client's operator may know, as the response's text.

        Raises:
            UsageError: The stream has been answered.
        """
        if stream.closed:
            return
        headers: Headers = [(b":status", b"%d" % status)]
        room = min(REFUSAL_TEXT, stream.send_window, self.send_window)
        text = reason.encode()[: max(room, 0)]
        if text:
            headers.append((b"content-type", b"text/plain"))
        self.send_headers(stream, headers, end_stream=not text)
        if text:
            self.queue(stream, text, True)
        stream.flowing = False
        if not stream.remote_closed:
            self._refused[stream.id] = stream
            if len(self._refused) > MAX_REFUSED_OPEN:
                oldest = self._refused.pop(next(iter(self._refused)))
                self.reset(oldest, ErrorCode.NO_ERROR, self._now)

    def _request(
        self,
        stream: Stream,
        pseudo: dict[bytes, bytes],
        headers: Headers,
        ends: bool,
        events: list[ReceivedEvent],
    ) -> None:
        if not stream.is_connect:
            method = pseudo[b":method"].decode("ascii")
            self._reject(stream, f"{method}: only CONNECT is served here", events)
            return
        try:
            authority = parse_authority(pseudo[b":authority"].decode("latin-1"))
        except AuthorityError as error:
            self._reject(stream, str(error), events)
            return
        baggage = forwarded = traceparent = network = b""
        for name, value in headers:
            if name == b"baggage":
                # Several lines are one list (W3C Baggage section 3.2).
                baggage = baggage + b"," + value if baggage else value
            elif name == b"forwarded":
                forwarded = forwarded or value
            elif name == b"traceparent":
                traceparent = value
            elif name == b"x-forwarded-network":
                network = value
        events.append(
            ConnectRequested(
                stream,
                authority,
                baggage.decode("latin-1"),
                forwarded.decode("latin-1"),
                traceparent.decode("latin-1"),
                network.decode("latin-1"),
                ends,
            )
        )

    def _reject(self, stream: Stream, reason: str, events: list[ReceivedEvent]) -> None:
        self.refuse(stream, 400, reason)
        events.append(RequestRejected(stream, 400, reason))

    def _data_received(
        self, stream: Stream, view: memoryview, ends: bool, events: list[ReceivedEvent]
    ) -> None:
        if stream.local_closed and not stream.flowing and stream.id in self._refused:
            self.consumed(stream, len(view))
            if ends:
                del self._refused[stream.id]
            return
        events.append((stream, view, ends))

    def _stream_reset(self, event: StreamReset, events: list[ReceivedEvent]) -> None:
        if self._refused.pop(event.stream.id, None) is None:
            events.append(event)
