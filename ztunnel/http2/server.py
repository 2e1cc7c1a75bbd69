"""The server end of a connection."""

from collections.abc import Iterable

from ztunnel.http2.connection import Connection
from ztunnel.http2.errors import ErrorCode, StreamFault, UsageError
from ztunnel.http2.events import ReceivedEvent, RequestReceived, TrailersReceived
from ztunnel.http2.flood import flood
from ztunnel.http2.frames import PREFACE
from ztunnel.http2.headers import Header, Headers, check_request, check_trailers, malformed
from ztunnel.http2.limits import MAX_STREAM_ID
from ztunnel.http2.sending import RESET_BY_US
from ztunnel.http2.settings import LocalSettings
from ztunnel.http2.stream import Stream


class ServerConnection(Connection):
    """Takes streams, as many as it announced. Its SETTINGS are in ``out`` from the start."""

    def __init__(self, local: LocalSettings | None = None) -> None:
        super().__init__(local or LocalSettings())
        self._preface = PREFACE
        self._last_accepted: int = MAX_STREAM_ID
        self._shutdowns: int = 0
        self._start()

    def send_headers(
        self, stream: Stream, headers: Iterable[Header], end_stream: bool = False
    ) -> None:
        """Send a response, an informational one before it (status 1xx), or trailers after it.

        Args:
            stream: The stream.
            headers: Lower-case names; ``:status`` first, except in trailers.
            end_stream: Ends our half; trailers always do.

        Raises:
            UsageError: Our half is closed, or it is not what can follow now.
        """
        fields: Headers = list(headers)
        if stream.local_closed or self.terminated is not None:
            raise UsageError(f"stream {stream.id} does not take headers")
        status = b""
        if fields and fields[0][0] == b":status":
            status = fields[0][1]
        if bool(status) == stream.responded:
            raise UsageError(f"stream {stream.id}: a response once, then trailers")
        informational = status[:1] == b"1"
        if stream.responded and not end_stream:
            raise UsageError(f"stream {stream.id}: trailers end the stream")
        if informational and end_stream:
            raise UsageError(f"stream {stream.id}: status {status!r} ends nothing")
        self._write_headers(stream.id, fields, end_stream)
        if not informational:
            stream.responded = True
            stream.can_send = True
        if end_stream:
            self._close_local(stream)

    def shutdown(self, final: bool) -> None:
        """Announce an orderly end (section 6.8); streams that are open go on.

        Call it twice: first with ``final`` false, which asks the client for no more streams but
        still takes those on their way, and a round trip or more later with true, which names the
        last stream that was taken and ignores all others.

        Args:
            final: This is the second step.
        """
        step = 2 if final else 1
        if self.terminated is not None or self._shutdowns >= step:
            return
        self._shutdowns = step
        if final:
            self._last_accepted = self.last_peer_stream
        self._write_goaway(self._last_accepted, ErrorCode.NO_ERROR, "")

    def _new_stream(
        self,
        stream_id: int,
        headers: Headers,
        ends: bool,
        fault: StreamFault | None,
        events: list[ReceivedEvent],
    ) -> None:
        if stream_id <= self.last_peer_stream or not stream_id & 1:
            super()._new_stream(stream_id, headers, ends, fault, events)
            return
        self.last_peer_stream = stream_id
        if stream_id > self._last_accepted:
            if not self._guard.refused.take(self._now):
                raise flood("streams after GOAWAY")
            return
        if len(self.streams) >= self.local.max_concurrent_streams:
            self._refuse(stream_id)
            return
        stream = Stream(stream_id, self.peer.initial_window, self.local.initial_window)
        self.streams[stream_id] = stream
        try:
            if fault is not None:
                raise fault
            pseudo = check_request(headers, self.local.enable_connect_protocol)
            stream.is_connect = pseudo[b":method"] == b"CONNECT"
            self._expect_content(stream, headers, ends)
        except StreamFault as error:
            self._stream_fault(stream, error, events)
            return
        # The request's own flag only; a HEAD request may not carry what its response may announce.
        stream.is_head = pseudo[b":method"] == b"HEAD"
        stream.remote_closed = ends
        self._request(stream, pseudo, headers, ends, events)

    def _request(
        self,
        stream: Stream,
        pseudo: dict[bytes, bytes],
        headers: Headers,
        ends: bool,
        events: list[ReceivedEvent],
    ) -> None:
        """Tell the owner of the request; subclasses may say it in their own words."""
        events.append(RequestReceived(stream, headers, ends))

    def _refuse(self, stream_id: int) -> None:
        if not self._guard.refused.take(self._now):
            raise flood("streams beyond what was announced")
        self.streams_refused += 1
        self._answer()
        self._write_reset(stream_id, ErrorCode.REFUSED_STREAM)
        self._remember(stream_id, RESET_BY_US)

    def _more_headers(
        self, stream: Stream, headers: Headers, ends: bool, events: list[ReceivedEvent]
    ) -> None:
        if stream.is_connect:
            raise malformed("HEADERS in a tunnel")
        check_trailers(headers)
        if not ends:
            raise malformed("trailers that do not end the stream")
        if stream.content_left > 0:
            raise malformed("not the announced content-length")
        events.append(TrailersReceived(stream, headers))
        self._close_remote(stream)

    def _is_idle(self, stream_id: int) -> bool:
        return stream_id & 1 == 0 or stream_id > self.last_peer_stream

    def _streams_ever(self) -> int:
        return (self.last_peer_stream + 1) >> 1
