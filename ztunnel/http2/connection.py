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
from ztunnel.http2.errors import ConnectionFault, ErrorCode, StreamFault, UsageError
from ztunnel.http2.events import ConnectionTerminated, ReceivedEvent
from ztunnel.http2.flood import flood
from ztunnel.http2.header_blocks import HeaderBlocks
from ztunnel.http2.headers import malformed
from ztunnel.http2.limits import DEFAULT_WINDOW, MAX_BUFFERED_FRAME, MAX_STREAM_ID, MAX_WINDOW
from ztunnel.http2.settings import LocalSettings
from ztunnel.http2.stream import Stream

_unpack = frames.FRAME_HEADER.unpack_from
_NO_STREAMS: Final[dict[int, Stream]] = {}
_EMPTY: Final = memoryview(b"")


class Connection(HeaderBlocks):
    """What client and server have in common; use one of those two.

    Attributes:
        local: What we announced.
        settings_received: The peer's first SETTINGS have come.
        settings_acknowledged: The peer knows ours.
        goaway_received: The peer's last GOAWAY, or None.
        last_peer_stream: The highest stream id that the peer has opened.
        streams_refused: Streams that the peer opened beyond what we announced.
    """

    def __init__(self, local: LocalSettings) -> None:
        super().__init__(local)
        self.streams_refused: int = 0
        self._recv_window: int = local.connection_window
        self._max_word: int = local.max_frame_size << 8 | 0xFF
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
            # An empty DATA with END_STREAM ends each half of a tunnel.
            if not word and flags == frames.END_STREAM:
                stream = streams.get(stream_id)
                if stream is not None and stream.flowing:
                    events.append((stream, _EMPTY, True))
                    self._close_remote(stream)
                    pos += 9
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

    # --- Payload that does not pass through here -----------------------------------------------

    @property
    def payload_left(self) -> int:
        """Bytes of a DATA frame's payload that come next and may take another way.

        0 when something else comes next, or when they must be looked at here.
        """
        stream = self._data_stream
        if (
            stream is None
            or stream.remote_closed
            or stream.content_left >= 0
            or self._frame_left
            or self.terminated is not None
        ):
            return 0
        return self._data_left

    @property
    def payload_stream(self) -> Stream | None:
        """Whose payload it is."""
        return self._data_stream

    @property
    def boundary(self) -> int:
        """The fewest bytes to `receive` next: to the end of a frame's payload or of a header."""
        return (
            self._frame_left
            or self._data_left
            or self._skip_left
            or max(1, frames.FRAME_HEADER.size - len(self._stash))
        )

    def payload_moved(self, count: int) -> bool:
        """``count`` bytes of ``payload_left`` were moved by the owner.

        Returns:
            Whether they were the last ones of the stream: the peer has ended its half.
        """
        stream = self._data_stream
        if stream is None or count > self._data_left:
            raise UsageError(f"{count} bytes of payload, and {self._data_left} were due")
        self._data_left -= count
        if self._data_left:
            return False
        self._data_stream = None
        if not self._data_ends or stream.remote_closed:
            return False
        self._close_remote(stream)
        return True

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
        if increment <= 0:  # a shrunk window that has not been paid off yet
            stream.owed = increment
            return
        stream.owed = 0
        stream.recv_window += increment
        self._write_window_update(stream.id, increment)

    def shrink_window(self, stream: Stream, count: int) -> None:
        """Let the peer have ``count`` bytes less under way on the stream.

        Credit that was given cannot be taken back (RFC 9113 section 6.9.2 has that only for
        SETTINGS): that much is not given again when it has been consumed.

        Raises:
            UsageError: Nothing would be left.
        """
        if count >= stream.window:
            raise UsageError(f"a stream window of {stream.window - count} bytes")
        stream.window -= count
        stream.owed -= count


def _needs_pad_length(word: int, flags: int) -> bool:
    """DATA whose first payload byte is needed before it can be handled."""
    return word > 0xFF and not word & 0xFF and flags & frames.PADDED != 0
