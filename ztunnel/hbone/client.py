"""The client end of HBONE: CONNECT over a shared HTTP/2 connection.

DATA goes straight through :class:`~ztunnel.http2.connection.Connection`; only what happens once per
stream passes here.
"""

from typing import Final

from ztunnel.hbone.events import TunnelAccepted, TunnelRefused
from ztunnel.http2.client import ClientConnection
from ztunnel.http2.errors import ErrorCode
from ztunnel.http2.events import ReceivedEvent, StreamReset
from ztunnel.http2.header_encoder import literal
from ztunnel.http2.headers import Header, Headers, list_size
from ztunnel.http2.settings import LocalSettings
from ztunnel.http2.stream import Stream

REFUSAL_TEXT: Final = 512
"""Bytes of a refusal's body that are kept for the reason."""

_MOST_HEADS: Final = 256
_FIELD: Final = 32  # what a field counts beyond its name and value, RFC 9113 section 6.5.2


class TunnelClient(ClientConnection):
    """Opens tunnels.

    A refusal's body says why, so the event waits for its end, or its first 512 bytes. The owner
    should limit how long it waits for an answer in any case; :meth:`abandon` is for that.
    """

    def __init__(self, local: LocalSettings | None = None) -> None:
        super().__init__(local)
        self._refusals: dict[int, tuple[int, bytearray]] = {}
        self._heads: dict[tuple[str, str, tuple[Header, ...]], tuple[tuple[Header, ...], int]] = {}

    def connect(
        self,
        authority: str,
        *,
        baggage: str = "",
        forwarded: str = "",
        traceparent: str = "",
        extra: tuple[Header, ...] = (),
    ) -> Stream:
        """Ask for a tunnel. ``TunnelAccepted`` or ``TunnelRefused`` follows.

        Bytes may be sent before the answer, but some peers throw them away.

        Args:
            authority: ``host:port`` as :func:`~ztunnel.hbone.authority.format_authority` gives it.
            baggage: Who the source is.
            forwarded: Where the connection came from.
            traceparent: Its trace.
            extra: More fields, such as ``x-forwarded-network``.

        Raises:
            UsageError: No stream can be opened now: see ``can_open``.
        """
        head, size = self._head(authority, baggage, extra)
        block = b""
        if forwarded:
            value = forwarded.encode()
            size += _FIELD + 9 + len(value)
            block = literal(b"forwarded", value)
        if traceparent:
            value = traceparent.encode()
            size += _FIELD + 11 + len(value)
            block += literal(b"traceparent", value)
        # Before anything is encoded: what was encoded must be sent, for the peer's table's sake.
        self._check_open(size)
        stream = self._open(self._encoder.encode_again(head) + block, False)
        stream.is_connect = True
        return stream

    def _head(
        self, authority: str, baggage: str, extra: tuple[Header, ...]
    ) -> tuple[tuple[Header, ...], int]:
        """The fields that connections have in common, and their size as the peer counts it."""
        key = (authority, baggage, extra)
        known = self._heads.get(key)
        if known is None:
            head: Headers = [(b":method", b"CONNECT"), (b":authority", authority.encode())]
            if baggage:
                head.append((b"baggage", baggage.encode()))
            head.extend(extra)
            if len(self._heads) >= _MOST_HEADS:
                self._heads.clear()
            known = self._heads[key] = (tuple(head), list_size(head))
        return known

    def abandon(self, stream: Stream, now: float) -> None:
        """Give a stream up that has had no answer in time; no event for it follows."""
        self._refusals.pop(stream.id, None)
        self.reset(stream, ErrorCode.CANCEL, now)

    def _response(
        self,
        stream: Stream,
        status: int,
        headers: Headers,
        ends: bool,
        events: list[ReceivedEvent],
    ) -> None:
        if status == 200:
            baggage = b""
            for name, value in headers:
                if name == b"baggage":
                    baggage = value
            events.append(TunnelAccepted(stream, baggage.decode("latin-1")))
            if ends:
                events.append((stream, memoryview(b""), True))
            return
        # Ending our half lets the peer forget the stream without a reset, which it would count.
        self.end(stream)
        if ends:
            self._refused(stream, status, b"", events)
            return
        stream.flowing = False
        self._refusals[stream.id] = (status, bytearray())

    def _informational(
        self, stream: Stream, status: int, headers: Headers, events: list[ReceivedEvent]
    ) -> None:
        """An answer is still to come: nothing the owner could do."""

    def _data_received(
        self, stream: Stream, view: memoryview, ends: bool, events: list[ReceivedEvent]
    ) -> None:
        refusal = self._refusals.get(stream.id)
        if refusal is None:
            if not stream.flowing:
                # The rest of a refusal that was told already.
                self.consumed(stream, len(view))
                return
            events.append((stream, view, ends))
            return
        status, text = refusal
        text += view[: REFUSAL_TEXT - len(text)]
        self.consumed(stream, len(view))
        if ends or len(text) >= REFUSAL_TEXT:
            del self._refusals[stream.id]
            self._refused(stream, status, bytes(text), events)

    def _stream_reset(self, event: StreamReset, events: list[ReceivedEvent]) -> None:
        stream = event.stream
        refusal = self._refusals.pop(stream.id, None)
        if refusal is not None:
            self._refused(stream, refusal[0], bytes(refusal[1]), events)
        elif not stream.responded:
            retryable = event.code == ErrorCode.REFUSED_STREAM
            events.append(TunnelRefused(stream, 0, event.reason, retryable))
        else:
            events.append(event)

    def _refused(
        self, stream: Stream, status: int, text: bytes, events: list[ReceivedEvent]
    ) -> None:
        reason = f"the peer answered CONNECT with status {status}"
        words = " ".join(text.decode("utf-8", "replace").split())
        printable = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)
        if printable:
            reason += f": {printable}"
        events.append(TunnelRefused(stream, status, reason, False))
