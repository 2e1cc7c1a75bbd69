"""Header blocks: put together from their frames, decoded, and given to their stream."""

from ztunnel.http2 import frames
from ztunnel.http2.control import ControlFrames
from ztunnel.http2.errors import ConnectionFault, ErrorCode, StreamFault
from ztunnel.http2.events import ReceivedEvent
from ztunnel.http2.flood import flood
from ztunnel.http2.headers import Headers, content_length, malformed
from ztunnel.http2.limits import HEADER_BLOCK_MARGIN, MAX_CONTINUATIONS
from ztunnel.http2.sending import ENDED, RESET_BY_US
from ztunnel.http2.settings import LocalSettings
from ztunnel.http2.stream import Stream


class HeaderBlocks(ControlFrames):
    """HEADERS and CONTINUATION (RFC 9113 sections 4.3, 6.2 and 6.10)."""

    def __init__(self, local: LocalSettings) -> None:
        super().__init__(local)
        self._max_block: int = local.max_header_list_size + HEADER_BLOCK_MARGIN
        # A header block that waits for CONTINUATION.
        self._block: bytearray = bytearray()
        self._block_stream: int = 0
        self._block_ends: bool = False
        self._block_frames: int = 0

    def _on_headers(
        self, flags: int, stream_id: int, payload: bytes, events: list[ReceivedEvent]
    ) -> None:
        if not stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        start = 0
        stop = len(payload)
        if flags & frames.PADDED:
            start = 1
            stop -= payload[0] if payload else 1
        if flags & frames.PRIORITY_FLAG:
            start += 5
        if start > stop:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS with more padding than block")
        ends = flags & frames.END_STREAM != 0
        block = payload[start:stop]
        if flags & frames.END_HEADERS:
            self._block_received(stream_id, ends, block, events)
            return
        self._block_stream = stream_id
        self._block_ends = ends
        self._block_frames = 0
        self._block = bytearray()
        self._add_to_block(block)

    def _on_continuation(
        self, flags: int, stream_id: int, payload: bytes, events: list[ReceivedEvent]
    ) -> None:
        if not self._block_stream:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._block_frames += 1
        if self._block_frames > MAX_CONTINUATIONS:
            raise flood("CONTINUATION frames")
        self._add_to_block(payload)
        if flags & frames.END_HEADERS:
            block = bytes(self._block)
            self._block = bytearray()
            self._block_stream = 0
            self._block_received(stream_id, self._block_ends, block, events)

    def _add_to_block(self, piece: bytes) -> None:
        if not piece and not self._guard.empty.take(self._now):
            raise flood("empty HEADERS or CONTINUATION frames")
        self._block += piece
        self._check_block(len(self._block))

    def _check_block(self, size: int) -> None:
        if size > self._max_block:
            raise ConnectionFault(
                ErrorCode.ENHANCE_YOUR_CALM, f"header block of more than {self._max_block} bytes"
            )

    def _block_received(
        self, stream_id: int, ends: bool, block: bytes, events: list[ReceivedEvent]
    ) -> None:
        self._check_block(len(block))
        # Every block is decoded, whatever becomes of its stream: the state is the connection's.
        fault: StreamFault | None = None
        headers: Headers = []
        try:
            headers = self._decoder.decode(block)
        except StreamFault as error:
            fault = error
        stream = self.streams.get(stream_id)
        if stream is None:
            self._new_stream(stream_id, headers, ends, fault, events)
            return
        try:
            if fault is not None:
                raise fault
            if stream.remote_closed:
                raise StreamFault(ErrorCode.STREAM_CLOSED, "HEADERS after END_STREAM")
            self._more_headers(stream, headers, ends, events)
        except StreamFault as error:
            self._stream_fault(stream, error, events)

    def _new_stream(
        self,
        stream_id: int,
        headers: Headers,
        ends: bool,
        fault: StreamFault | None,
        events: list[ReceivedEvent],
    ) -> None:
        """HEADERS for a stream that is not open."""
        self._late(stream_id, "HEADERS")
        if not self._guard.useless.take(self._now):
            raise flood("HEADERS frames for streams that are gone")

    def _more_headers(
        self, stream: Stream, headers: Headers, ends: bool, events: list[ReceivedEvent]
    ) -> None:
        """HEADERS for an open stream: a response or trailers."""
        raise NotImplementedError

    def _expect_content(self, stream: Stream, headers: Headers, ends: bool) -> None:
        """The peer's DATA may follow; count it when its length was announced (section 8.1.1)."""
        if not stream.is_connect:
            length = content_length(headers)
            if ends:
                if length > 0 and not stream.is_head:
                    raise malformed("not the announced content-length")
            elif not stream.is_head:
                stream.content_left = length
        stream.flowing = stream.content_left < 0 and not ends

    def _late(self, stream_id: int, what: str) -> None:
        """Judge DATA or HEADERS for a stream that is not open (section 5.1)."""
        if self._is_idle(stream_id):
            raise ConnectionFault(
                ErrorCode.PROTOCOL_ERROR, f"{what} on stream {stream_id}, which is not open"
            )
        how = self._closed.get(stream_id, RESET_BY_US)
        if how == ENDED:
            raise ConnectionFault(
                ErrorCode.STREAM_CLOSED, f"{what} on stream {stream_id} after END_STREAM"
            )
        # After our reset, or so long ago that nobody remembers, it was under way. After the peer's
        # own reset it is wrong, and harmless.

    def _close_remote(self, stream: Stream) -> None:
        stream.remote_closed = True
        stream.flowing = False
        if stream.local_closed:
            self._close_both(stream, ENDED)
