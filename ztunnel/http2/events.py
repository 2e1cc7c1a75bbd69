"""What ``Connection.receive`` tells its owner.

DATA is a plain tuple ``(stream, view, end_stream)``, everything else one of the classes here, so
that the owner tells them apart by ``type(event) is tuple``. (Measured: a tuple in a list costs the
same as calling a method of the owner for each frame, and leaves no reentrancy to think about.)
The view is a slice of the buffer given to ``receive`` and lives as long as that buffer's content.
"""

from dataclasses import dataclass
from typing import TypeAlias

from ztunnel.http2.errors import ErrorCode
from ztunnel.http2.headers import Headers
from ztunnel.http2.stream import Stream

DataReceived: TypeAlias = tuple[Stream, memoryview, bool]
"""(stream, bytes, end_stream). The bytes may be empty only with end_stream."""


class Event:
    """Base of all events but DATA."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class RequestReceived(Event):
    """A server got a request's headers."""

    stream: Stream
    headers: Headers
    end_stream: bool


@dataclass(frozen=True, slots=True)
class ResponseReceived(Event):
    """A client got the final response headers."""

    stream: Stream
    status: int
    headers: Headers
    end_stream: bool


@dataclass(frozen=True, slots=True)
class InformationalReceived(Event):
    """A client got a 1xx response; the final one follows."""

    stream: Stream
    status: int
    headers: Headers


@dataclass(frozen=True, slots=True)
class TrailersReceived(Event):
    """Trailers, which always end the peer's half of the stream."""

    stream: Stream
    headers: Headers


@dataclass(frozen=True, slots=True)
class StreamReset(Event):
    """A stream ended by RST_STREAM, which is forgotten now.

    Attributes:
        by_peer: The peer sent it. Otherwise we did, because the peer broke the stream.
        clean: The peer had already sent END_STREAM and now only says NO_ERROR: it has finished and
            wants no more from us (RFC 9113 section 8.1). Envoy ends every tunnel so whose
            upstream finished first; it is no error.
        reason: In words, for logs.
    """

    stream: Stream
    code: ErrorCode
    by_peer: bool
    clean: bool
    reason: str


@dataclass(frozen=True, slots=True)
class StreamWritable(Event):
    """A stream for which ``sendable`` said 0 can send again."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class SettingsReceived(Event):
    """The peer announced its settings (``Connection.peer``); they are already acknowledged."""

    first: bool


@dataclass(frozen=True, slots=True)
class SettingsAcknowledged(Event):
    """The peer acknowledged ours."""


@dataclass(frozen=True, slots=True)
class PingAcknowledged(Event):
    """The peer answered our PING."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class GoAwayReceived(Event):
    """The peer takes no new streams (RFC 9113 section 6.8). Those it took go on.

    Attributes:
        unprocessed: Streams of ours it will never look at, forgotten now: safe to try elsewhere.
    """

    last_stream_id: int
    code: ErrorCode
    debug: bytes
    unprocessed: tuple[Stream, ...]


@dataclass(frozen=True, slots=True)
class ConnectionTerminated(Event):
    """The connection is over because the peer broke the protocol: GOAWAY is in ``out``.

    Always the last event. The streams of the connection are still in ``Connection.streams``.
    """

    code: ErrorCode
    reason: str


ReceivedEvent: TypeAlias = Event | DataReceived
