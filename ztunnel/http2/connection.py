"""The receiving half, and the whole: one HTTP/2 connection without its socket (RFC 9113).

A round of the owner looks like this::

    for event in connection.receive(plain, now):      # one call for all that was decrypted
        if type(event) is tuple:                      # DATA, the hot path
            stream, view, end_stream = event
            ...                                       # hand the view on, then:
            connection.consumed(stream, len(view))
        else:
            ...
    connection.queue(stream, view)                    # small DATA, copied into `out`
    data = connection.take()                          # what to encrypt and send

DATA is handed out as it arrives, as slices of the buffer given to ``receive``, also when its frame
is not whole yet. All other frames are put together in a small bounded buffer. What the peer does
wrong never raises: it becomes a ``StreamReset`` or the final ``ConnectionTerminated`` event. What
the owner does wrong raises ``UsageError``.

When the owner looks at an event, those after it in the list have already happened to the streams:
a request may have been reset since (``stream.closed``), the whole connection terminated.

Credit for the connection goes back on receipt, credit for a stream when the owner has consumed
its bytes, so that a stream nobody reads never holds up the others; both in steps of half a window.
"""

from typing import Final

from ztunnel.http2 import frames
from ztunnel.http2.errors import (
    ConnectionFault,
    ErrorCode,
    StreamFault,
    UsageError,
    error_code,
)
from ztunnel.http2.events import (
    ConnectionTerminated,
    GoAwayReceived,
    PingAcknowledged,
    ReceivedEvent,
    SettingsAcknowledged,
    SettingsReceived,
    StreamReset,
    StreamWritable,
)
from ztunnel.http2.flood import FloodGuard, flood
from ztunnel.http2.header_decoder import HeaderDecoder
from ztunnel.http2.headers import Headers, content_length, malformed
from ztunnel.http2.limits import (
    DEFAULT_WINDOW,
    HEADER_BLOCK_MARGIN,
    MAX_BUFFERED_FRAME,
    MAX_CONTINUATIONS,
    MAX_STREAM_ID,
    MAX_WINDOW,
)
from ztunnel.http2.sending import ENDED, RESET_BY_PEER, RESET_BY_US, SendingHalf
from ztunnel.http2.settings import LocalSettings, read_settings
from ztunnel.http2.stream import Stream

_unpack = frames.FRAME_HEADER.unpack_from
_NO_STREAMS: Final[dict[int, Stream]] = {}
_EMPTY: Final = memoryview(b"")


class Connection(SendingHalf):
    """What client and server have in common; use one of those two.

    Attributes:
        local: What we announced.
        settings_received: The peer's first SETTINGS have come.
        settings_acknowledged: The peer knows ours.
        goaway_received: The peer's last GOAWAY, or None.
        last_peer_stream: The highest stream id that the peer has opened.
        streams_refused: Streams that the peer opened beyond what we announced.
    """

    is_client: bool = False

    def __init__(self, local: LocalSettings) -> None:
        super().__init__()
        self.local: LocalSettings = local
        self.settings_received: bool = False
        self.settings_acknowledged: bool = False
        self.goaway_received: GoAwayReceived | None = None
        self.last_peer_stream: int = 0
        self.streams_refused: int = 0
        self._recv_window: int = local.connection_window
        self._decoder: HeaderDecoder = HeaderDecoder(
            local.header_table_size, local.max_header_list_size
        )
        self._max_block: int = local.max_header_list_size + HEADER_BLOCK_MARGIN
        self._max_word: int = local.max_frame_size << 8 | 0xFF
        self._guard: FloodGuard = FloodGuard()
        self._now: float = 0.0
        self._credit_came: bool = False
        # What is unfinished between two calls: a frame header, a DATA frame, or another frame.
        self._preface: bytes = b""
        self._stash: bytes = b""
        self._data_stream: Stream | None = None
        self._data_left: int = 0
        self._data_ends: bool = False
        self._skip_left: int = 0
        self._frame: bytearray = bytearray()
        self._frame_left: int = 0
        self._frame_kind: int = 0
        self._frame_flags: int = 0
        self._frame_stream: int = 0
        # A header block that waits for CONTINUATION.
        self._block: bytearray = bytearray()
        self._block_stream: int = 0
        self._block_ends: bool = False
        self._block_frames: int = 0

    def _start(self) -> None:
        self.out += self.local.frame(self.is_client)
        more = self.local.connection_window - DEFAULT_WINDOW
        if more:
            self._write_window_update(0, more)

    # --- Receiving -----------------------------------------------------------------------------

    def receive(self, data: memoryview, now: float) -> list[ReceivedEvent]:
        """Take bytes from the peer, in pieces of any size.

        Args:
            data: Bytes in the order they came. The views in DATA events are slices of it.
            now: The time in seconds, from any clock that does not go back.

        Returns:
            What happened, in order. Nothing after ``ConnectionTerminated``.
        """
        events: list[ReceivedEvent] = []
        if self.terminated is not None or not data:
            return events
        self._now = now
        try:
            self._parse(data, events)
        except ConnectionFault as fault:
            self.terminate(fault.code, fault.reason)
            events.append(ConnectionTerminated(fault.code, fault.reason))
            return events
        window = self.local.connection_window
        if self._recv_window <= window >> 1:
            self._write_window_update(0, window - self._recv_window)
            self._recv_window = window
        if self._credit_came:
            self._credit_came = False
            self._wake(events)
        return events

    def _parse(self, data: memoryview, events: list[ReceivedEvent]) -> None:
        end = len(data)
        pos = 0
        if self._preface:
            pos = self._read_preface(data)
        if pos < end and (self._data_left or self._skip_left or self._frame_left):
            pos = self._resume(data, pos, end, events)
        if pos < end and self._stash:
            pos = self._finish_header(data, pos, end, events)
        streams = _NO_STREAMS if self._block_stream else self.streams
        max_word = self._max_word
        window = self._recv_window
        while end - pos >= 9:
            word, flags, stream_id = _unpack(data, pos)
            # DATA without flags on a stream in its plain state, whole in this buffer and within
            # its windows: nearly all that ever comes. Everything else takes the long way.
            if 0 < word <= max_word and not word & 0xFF and not flags:
                length = word >> 8
                stop = pos + 9 + length
                stream = streams.get(stream_id)
                if (
                    stop <= end
                    and stream is not None
                    and stream.flowing
                    and length <= stream.recv_window
                    and length <= window
                ):
                    window -= length
                    stream.recv_window -= length
                    events.append((stream, data[pos + 9 : stop], False))
                    pos = stop
                    continue
            if pos + 9 == end and _needs_pad_length(word, flags):
                break
            self._recv_window = window
            pos = self._slow(word, flags, stream_id, data, pos + 9, end, events)
            window = self._recv_window
            streams = _NO_STREAMS if self._block_stream else self.streams
        self._recv_window = window
        if pos < end:
            self._stash = bytes(data[pos:end])

    def _read_preface(self, data: memoryview) -> int:
        want = self._preface
        got = bytes(data[: len(want)])
        if not want.startswith(got):
            raise ConnectionFault(
                ErrorCode.PROTOCOL_ERROR, "the client does not speak HTTP/2: no preface"
            )
        self._preface = want[len(got) :]
        return len(got)

    def _finish_header(
        self, data: memoryview, pos: int, end: int, events: list[ReceivedEvent]
    ) -> int:
        """Handle the frame whose header began in an earlier call; where the next one starts."""
        missing = 9 - len(self._stash)
        head = self._stash + bytes(data[pos : pos + missing])
        pos += missing
        if pos > end:
            self._stash = head
            return end
        word, flags, stream_id = _unpack(head, 0)
        if pos == end and _needs_pad_length(word, flags):
            self._stash = head
            return end
        self._stash = b""
        return self._slow(word, flags, stream_id, data, pos, end, events)

    def _resume(self, data: memoryview, pos: int, end: int, events: list[ReceivedEvent]) -> int:
        """Go on with the frame that an earlier call began; where the next one starts."""
        if self._frame_left:
            taken = min(self._frame_left, end - pos)
            self._frame += data[pos : pos + taken]
            self._frame_left -= taken
            if not self._frame_left:
                payload = bytes(self._frame)
                self._frame = bytearray()
                self._frame_received(
                    self._frame_kind, self._frame_flags, self._frame_stream, payload, events
                )
            return pos + taken
        if self._data_left:
            taken = min(self._data_left, end - pos)
            self._data_left -= taken
            stream = self._data_stream
            # The owner may have reset the stream since.
            if stream is not None and not stream.remote_closed:
                ends = self._data_ends and not self._data_left
                self._deliver(stream, data[pos : pos + taken], ends, events)
            pos += taken
            if not self._data_left:
                self._data_stream = None
        taken = min(self._skip_left, end - pos)
        self._skip_left -= taken
        return pos + taken

    def _slow(
        self,
        word: int,
        flags: int,
        stream_id: int,
        data: memoryview,
        pos: int,
        end: int,
        events: list[ReceivedEvent],
    ) -> int:
        """Handle any frame, of which ``data[pos:end]`` is the start of the payload, and more."""
        kind = word & 0xFF
        length = word >> 8
        stream_id &= MAX_STREAM_ID
        if length > self.local.max_frame_size:
            raise ConnectionFault(
                ErrorCode.FRAME_SIZE_ERROR,
                f"{frames.name_of(kind)} frame of {length} bytes, more than "
                f"{self.local.max_frame_size}",
            )
        if self._block_stream and (kind != frames.CONTINUATION or stream_id != self._block_stream):
            raise ConnectionFault(
                ErrorCode.PROTOCOL_ERROR,
                f"{frames.name_of(kind)} frame inside the header block of stream "
                f"{self._block_stream}",
            )
        if not self.settings_received and (kind != frames.SETTINGS or flags & frames.ACK):
            raise ConnectionFault(
                ErrorCode.PROTOCOL_ERROR, f"{frames.name_of(kind)} frame before SETTINGS"
            )
        if kind == frames.DATA:
            return self._data_frame(flags, stream_id, length, data, pos, end, events)
        if kind > frames.CONTINUATION:
            if not self._guard.useless.take(self._now):
                raise flood("frames of unknown type")
            taken = min(length, end - pos)
            self._skip_left = length - taken
            return pos + taken
        largest = MAX_BUFFERED_FRAME
        if kind in (frames.HEADERS, frames.CONTINUATION):
            # Padding and priority come on top of the block.
            largest = max(largest, self._max_block + 261)
        if length > largest:
            raise ConnectionFault(
                ErrorCode.ENHANCE_YOUR_CALM,
                f"{frames.name_of(kind)} frame of {length} bytes, more than {largest}",
            )
        stop = pos + length
        if stop <= end:
            self._frame_received(kind, flags, stream_id, bytes(data[pos:stop]), events)
            return stop
        self._frame = bytearray(data[pos:end])
        self._frame_left = stop - end
        self._frame_kind = kind
        self._frame_flags = flags
        self._frame_stream = stream_id
        return end

    # --- DATA ----------------------------------------------------------------------------------

    def _data_frame(
        self,
        flags: int,
        stream_id: int,
        length: int,
        data: memoryview,
        pos: int,
        end: int,
        events: list[ReceivedEvent],
    ) -> int:
        if not stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "DATA on stream 0")
        overhead = 0
        if flags & frames.PADDED:
            overhead = 1 + data[pos] if length else 1
            if overhead > length:
                raise ConnectionFault(
                    ErrorCode.PROTOCOL_ERROR, "DATA with more padding than payload"
                )
        if length > self._recv_window:
            raise ConnectionFault(
                ErrorCode.FLOW_CONTROL_ERROR,
                f"DATA of {length} bytes in a connection window of {self._recv_window}",
            )
        # The whole frame counts, padding and all, whatever becomes of it (section 6.9.1).
        self._recv_window -= length
        payload = length - overhead
        ends = flags & frames.END_STREAM != 0
        if not payload and not ends and not self._guard.empty.take(self._now):
            raise flood("empty DATA frames")
        stream = self._data_target(stream_id, length, events)
        if stream is not None and overhead:
            stream.owed += overhead
        pos += 1 if overhead else 0
        padding = overhead - 1 if overhead else 0
        stop = pos + payload
        here = payload if stop <= end else end - pos
        if stream is not None and (here or ends):
            whole = here == payload
            if here or whole:
                view = data[pos : pos + here] if here else _EMPTY
                self._deliver(stream, view, ends and whole, events)
        self._data_left = payload - here
        self._data_stream = stream if self._data_left else None
        self._data_ends = ends
        pos += here
        skipped = min(padding, end - pos)
        self._skip_left = padding - skipped
        return pos + skipped

    def _data_target(
        self, stream_id: int, length: int, events: list[ReceivedEvent]
    ) -> Stream | None:
        """The stream that DATA belongs to, charged; None when it is to be thrown away."""
        stream = self.streams.get(stream_id)
        if stream is None:
            self._late(stream_id, "DATA")
            return None
        try:
            if stream.remote_closed:
                raise StreamFault(ErrorCode.STREAM_CLOSED, "DATA after END_STREAM")
            if self.is_client and not stream.responded:
                raise malformed("DATA before the response")
            if length > stream.recv_window:
                raise StreamFault(
                    ErrorCode.FLOW_CONTROL_ERROR,
                    f"DATA of {length} bytes in a stream window of {stream.recv_window}",
                )
        except StreamFault as fault:
            self._stream_fault(stream, fault, events)
            return None
        stream.recv_window -= length
        return stream

    def _deliver(
        self, stream: Stream, view: memoryview, ends: bool, events: list[ReceivedEvent]
    ) -> None:
        if stream.content_left >= 0:
            stream.content_left -= len(view)
            if stream.content_left < 0 or (ends and stream.content_left):
                self._stream_fault(stream, malformed("not the announced content-length"), events)
                return
        self._data_received(stream, view, ends, events)
        if ends:
            self._close_remote(stream)

    def _data_received(
        self, stream: Stream, view: memoryview, ends: bool, events: list[ReceivedEvent]
    ) -> None:
        """Tell the owner of DATA that did not come the short way; subclasses may keep it."""
        events.append((stream, view, ends))

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

    def consumed(self, stream: Stream, count: int) -> None:
        """Give credit back for payload bytes of a stream that the owner is done with.

        Args:
            stream: The stream; nothing happens when the peer has ended its half.
            count: Bytes of DATA events, each counted once.
        """
        owed = stream.owed + count
        stream.owed = owed
        if owed << 1 >= stream.window and not stream.remote_closed:
            stream.owed = 0
            stream.recv_window += owed
            self._write_window_update(stream.id, owed)

    def grow_window(self, stream: Stream, count: int) -> None:
        """Let the peer have ``count`` bytes more under way on the stream, from now on.

        Raises:
            UsageError: The window would be larger than the protocol allows.
        """
        if stream.remote_closed or count <= 0:
            return
        if stream.window + count > MAX_WINDOW:
            raise UsageError(f"a stream window of {stream.window + count} bytes")
        stream.window += count
        increment = count + stream.owed
        stream.owed = 0
        stream.recv_window += increment
        self._write_window_update(stream.id, increment)

    def _wake(self, events: list[ReceivedEvent]) -> None:
        if self.send_window <= 0 or not self._blocked:
            return
        ready = [stream for stream in self._blocked.values() if stream.send_window > 0]
        for stream in ready:
            del self._blocked[stream.id]
            events.append(StreamWritable(stream))

    # --- Other frames --------------------------------------------------------------------------

    def _frame_received(
        self, kind: int, flags: int, stream_id: int, payload: bytes, events: list[ReceivedEvent]
    ) -> None:
        if kind == frames.WINDOW_UPDATE:
            self._on_window_update(stream_id, payload, events)
        elif kind == frames.HEADERS:
            self._on_headers(flags, stream_id, payload, events)
        elif kind == frames.CONTINUATION:
            self._on_continuation(flags, stream_id, payload, events)
        elif kind == frames.RST_STREAM:
            self._on_reset(stream_id, payload, events)
        elif kind == frames.PING:
            self._on_ping(flags, stream_id, payload, events)
        elif kind == frames.SETTINGS:
            self._on_settings(flags, stream_id, payload, events)
        elif kind == frames.GOAWAY:
            self._on_goaway(stream_id, payload, events)
        elif kind == frames.PRIORITY:
            self._on_priority(stream_id, payload)
        else:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE, and push is off")

    def _on_window_update(
        self, stream_id: int, payload: bytes, events: list[ReceivedEvent]
    ) -> None:
        increment = _read_uint32(payload, "WINDOW_UPDATE") & MAX_WINDOW
        self._guard.window_update(self._streams_ever(), self.data_frames_sent)
        if not stream_id:
            if not increment:
                raise ConnectionFault(
                    ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0 for the connection"
                )
            self.send_window += increment
            if self.send_window > MAX_WINDOW:
                raise ConnectionFault(
                    ErrorCode.FLOW_CONTROL_ERROR, "WINDOW_UPDATE: the connection's is too large"
                )
            self._credit_came = True
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            self._gone(stream_id, "WINDOW_UPDATE")
            return
        if not increment:
            fault = StreamFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self._stream_fault(stream, fault, events)
            return
        stream.send_window += increment
        if stream.send_window > MAX_WINDOW:
            fault = StreamFault(ErrorCode.FLOW_CONTROL_ERROR, "WINDOW_UPDATE: window too large")
            self._stream_fault(stream, fault, events)
            return
        self._credit_came = True

    def _on_reset(self, stream_id: int, payload: bytes, events: list[ReceivedEvent]) -> None:
        code = error_code(_read_uint32(payload, "RST_STREAM"))
        stream = self.streams.get(stream_id)
        if stream is None:
            self._gone(stream_id, "RST_STREAM")
            return
        # A client's streams are its own: a server cannot make it open more of them.
        if not self.is_client and not self._guard.resets.take(self._now):
            raise flood("RST_STREAM frames")
        clean = stream.remote_closed and code == ErrorCode.NO_ERROR
        stream.reset_code = code
        self._close_both(stream, RESET_BY_PEER)
        reason = f"the peer reset the stream: {code.name}"
        self._stream_reset(StreamReset(stream, code, True, clean, reason), events)

    def _stream_reset(self, event: StreamReset, events: list[ReceivedEvent]) -> None:
        """Tell the owner of a reset; subclasses may say it in their own words."""
        events.append(event)

    def _gone(self, stream_id: int, what: str) -> None:
        """Judge a frame other than DATA or HEADERS for a stream that is not open."""
        if not stream_id or self._is_idle(stream_id):
            raise ConnectionFault(
                ErrorCode.PROTOCOL_ERROR, f"{what} on stream {stream_id}, which was never open"
            )
        if not self._guard.useless.take(self._now):
            raise flood(f"{what} frames for streams that are gone")

    def _on_ping(
        self, flags: int, stream_id: int, payload: bytes, events: list[ReceivedEvent]
    ) -> None:
        _need_connection(stream_id, "PING")
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"PING of {len(payload)} bytes")
        if not flags & frames.ACK:
            if not self._guard.pings.take(self._now):
                raise flood("PING frames")
            self._answer()
            self.out += frames.frame(frames.PING, frames.ACK, 0, payload)
        elif payload in self._pings:
            self._pings.remove(payload)
            events.append(PingAcknowledged(payload))

    def _on_settings(
        self, flags: int, stream_id: int, payload: bytes, events: list[ReceivedEvent]
    ) -> None:
        _need_connection(stream_id, "SETTINGS")
        if flags & frames.ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS ACK with a payload")
            if not self.settings_acknowledged:
                self.settings_acknowledged = True
                self._decoder.settings_acknowledged()
                events.append(SettingsAcknowledged())
            return
        if not self._guard.settings.take(self._now):
            raise flood("SETTINGS frames")
        peer = self.peer
        before = peer.initial_window
        for key, value in read_settings(payload):
            peer.apply(key, value, self.is_client)
        if peer.initial_window != before:
            self._shift_windows(peer.initial_window - before)
        self._encoder.set_table_size(peer.header_table_size)
        self.max_send_frame = peer.max_frame_size
        self._answer()
        self.out += frames.frame(frames.SETTINGS, frames.ACK, 0, b"")
        first = not self.settings_received
        self.settings_received = True
        events.append(SettingsReceived(first))

    def _shift_windows(self, change: int) -> None:
        """SETTINGS_INITIAL_WINDOW_SIZE counts for open streams too (section 6.9.2)."""
        for stream in self.streams.values():
            stream.send_window += change
            if stream.send_window > MAX_WINDOW:
                raise ConnectionFault(
                    ErrorCode.FLOW_CONTROL_ERROR,
                    f"SETTINGS: the window of stream {stream.id} is too large",
                )
        self._credit_came = True

    def _on_goaway(self, stream_id: int, payload: bytes, events: list[ReceivedEvent]) -> None:
        _need_connection(stream_id, "GOAWAY")
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"GOAWAY of {len(payload)} bytes")
        if not self._guard.settings.take(self._now):
            raise flood("GOAWAY frames")
        last, code = frames.TWO_UINT32.unpack_from(payload)
        last &= MAX_STREAM_ID
        unprocessed: tuple[Stream, ...] = ()
        if self.is_client:
            unprocessed = tuple(s for s in self.streams.values() if s.id > last)
        for stream in unprocessed:
            stream.reset_code = ErrorCode.REFUSED_STREAM
            self._close_both(stream, RESET_BY_PEER)
        self.goaway_received = GoAwayReceived(last, error_code(code), payload[8:], unprocessed)
        events.append(self.goaway_received)

    def _on_priority(self, stream_id: int, payload: bytes) -> None:
        if not stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        if len(payload) != 5:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"PRIORITY of {len(payload)} bytes")
        self._guard.priority(self._streams_ever())

    # --- Header blocks -------------------------------------------------------------------------

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

    # --- The ends of streams -------------------------------------------------------------------

    def _close_remote(self, stream: Stream) -> None:
        stream.remote_closed = True
        stream.flowing = False
        if stream.local_closed:
            self._close_both(stream, ENDED)

    def _stream_fault(
        self, stream: Stream, fault: StreamFault, events: list[ReceivedEvent]
    ) -> None:
        """Reset a stream that the peer broke."""
        if not self._guard.faults.take(self._now):
            raise flood(f"broken streams, the last one: {fault.reason}")
        self._answer()
        self.reset(stream, fault.code, self._now)
        self._stream_reset(StreamReset(stream, fault.code, False, False, fault.reason), events)

    def terminate(self, code: ErrorCode, reason: str) -> None:
        """End the connection at once: GOAWAY in ``out``, nothing may follow.

        The streams stay in ``streams`` for the owner to end. For an orderly end see ``shutdown``.

        Args:
            code: What the peer is told.
            reason: The same in words; the peer gets it as debug data.
        """
        if self.terminated is None:
            self._write_goaway(self.last_peer_stream, code, reason)
            self.terminated = ConnectionTerminated(code, reason)
            self.send_window = 0

    def _is_idle(self, stream_id: int) -> bool:
        """Neither end has opened the stream yet (section 5.1.1)."""
        raise NotImplementedError

    def _streams_ever(self) -> int:
        raise NotImplementedError


def _needs_pad_length(word: int, flags: int) -> bool:
    """DATA whose first payload byte is needed before it can be handled."""
    return word > 0xFF and not word & 0xFF and flags & frames.PADDED != 0


def _read_uint32(payload: bytes, what: str) -> int:
    if len(payload) != 4:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"{what} of {len(payload)} bytes")
    number: int = frames.UINT32.unpack(payload)[0]
    return number


def _need_connection(stream_id: int, what: str) -> None:
    if stream_id:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{what} on stream {stream_id}")
