"""The sending half of a connection: what goes into ``out``, and the windows it is charged to."""

from collections.abc import Iterable
from typing import Final

from ztunnel.http2 import frames, limits
from ztunnel.http2.errors import ErrorCode, UsageError
from ztunnel.http2.events import ConnectionTerminated
from ztunnel.http2.flood import ResetAllowance, flood
from ztunnel.http2.header_encoder import HeaderEncoder
from ztunnel.http2.headers import Header
from ztunnel.http2.limits import DEFAULT_MAX_FRAME_SIZE, DEFAULT_WINDOW
from ztunnel.http2.settings import PeerSettings
from ztunnel.http2.stream import Stream

# How a stream was closed, as far as late frames make a difference.
ENDED: Final = 0
RESET_BY_US: Final = 1
RESET_BY_PEER: Final = 2

_pack = frames.FRAME_HEADER.pack
_pack_into = frames.FRAME_HEADER.pack_into


class SendingHalf:
    """What :class:`~ztunnel.http2.connection.Connection` can send.

    Attributes:
        out: Bytes to be written, in order. Take them with :meth:`take`.
        streams: The streams that are open in either direction, by id.
        send_window: Bytes the peer still takes on the connection as a whole.
        max_send_frame: Largest DATA payload the peer takes in one frame.
        peer: The peer's settings.
        data_frames_sent: DATA frames written so far.
        resets: How many resets the peer's flood guards still take.
        terminated: Why the connection is over, or None.
    """

    def __init__(self) -> None:
        self.out: bytearray = bytearray()
        self.streams: dict[int, Stream] = {}
        self.send_window: int = DEFAULT_WINDOW
        self.max_send_frame: int = DEFAULT_MAX_FRAME_SIZE
        self.peer: PeerSettings = PeerSettings()
        self.data_frames_sent: int = 0
        self.resets: ResetAllowance = ResetAllowance()
        self.terminated: ConnectionTerminated | None = None
        self._pings: list[bytes] = []
        self._encoder: HeaderEncoder = HeaderEncoder()
        self._blocked: dict[int, Stream] = {}
        self._closed: dict[int, int] = {}
        self._answers: int = 0

    def take(self) -> bytearray:
        """All pending bytes; ``out`` is empty afterwards.

        Take them only when what was taken before has left the process: the guard against peers
        that ask and do not read counts the answers waiting in ``out``.
        """
        out = self.out
        self.out = bytearray()
        self._answers = 0
        return out

    # --- DATA ----------------------------------------------------------------------------------

    def sendable(self, stream: Stream) -> int:
        """Bytes of DATA that may be sent on the stream now.

        When it is 0 the stream is remembered, and a ``StreamWritable`` event follows once it can
        send again. Also 0, without an event to follow, when our half of it is closed or its
        response headers have not been sent.
        """
        window = stream.send_window
        if window > self.send_window:
            window = self.send_window
        if not stream.can_send:
            return 0
        if window <= 0:
            self._blocked[stream.id] = stream
            return 0
        return window

    def queue(
        self, stream: Stream, data: bytes | bytearray | memoryview, end_stream: bool = False
    ) -> None:
        """Append one DATA frame with a copy of ``data`` to ``out``.

        Raises:
            UsageError: More than ``sendable`` or ``max_send_frame``, or our half is closed, or
                there is nothing to say (an empty frame without ``end_stream``).
        """
        length = len(data)
        self._charge(stream, length, end_stream)
        out = self.out
        out += _pack(length << 8, 1 if end_stream else 0, stream.id)
        out += data
        if end_stream:
            self._close_local(stream)

    def send(
        self, stream: Stream, data: bytes | bytearray | memoryview, end_stream: bool = False
    ) -> int:
        """Append as many DATA frames as the windows allow.

        Returns:
            How many bytes were taken. ``end_stream`` was said only if that is all of them. When it
            is not all, a ``StreamWritable`` event follows.

        Raises:
            UsageError: Our half of the stream is closed.
        """
        if not stream.can_send:
            raise UsageError(f"stream {stream.id} does not take DATA")
        view = memoryview(data)
        total = len(view)
        pos = 0
        while pos < total:
            room = min(self.sendable(stream), self.max_send_frame)
            if not room:
                return pos
            piece = view[pos : pos + room]
            pos += len(piece)
            self.queue(stream, piece, end_stream and pos == total)
        if end_stream and not total:
            self.queue(stream, b"", True)
        return total

    def write_data_header(
        self,
        buffer: bytearray | memoryview,
        offset: int,
        stream: Stream,
        length: int,
        end_stream: bool = False,
    ) -> None:
        """Write the nine bytes of a DATA frame whose payload the owner sends itself.

        For bulk: the payload lies behind the header in a buffer of the owner's, and never passes
        through ``out``. Whatever is in ``out`` must go before it.

        Args:
            buffer: Where to write; nine bytes from ``offset`` on.
            offset: Index of the first header byte.
            stream: The stream that is charged.
            length: Bytes of payload.
            end_stream: The frame ends our half of the stream.

        Raises:
            UsageError: As for :meth:`queue`; nothing was written.
        """
        self._charge(stream, length, end_stream)
        _pack_into(buffer, offset, length << 8, 1 if end_stream else 0, stream.id)
        if end_stream:
            self._close_local(stream)

    def end(self, stream: Stream) -> None:
        """End our half of the stream (END_STREAM on an empty DATA); nothing when it is closed."""
        if stream.can_send:
            self.queue(stream, b"", True)

    def _charge(self, stream: Stream, length: int, end_stream: bool) -> None:
        window = stream.send_window - length
        total = self.send_window - length
        # An empty frame is allowed in a window that is used up or negative (section 6.9.1).
        if (
            ((window < 0 or total < 0) and length)
            or length > self.max_send_frame
            or not stream.can_send
            or not (length or end_stream)
            or self.terminated is not None
        ):
            raise UsageError(
                f"DATA of {length} bytes on {stream!r}: the connection takes {self.send_window}, "
                f"frames of {self.max_send_frame}, can_send={stream.can_send}"
            )
        stream.send_window = window
        self.send_window = total
        self.data_frames_sent += 1

    # --- Headers -------------------------------------------------------------------------------

    def _write_headers(self, stream_id: int, headers: Iterable[Header], end_stream: bool) -> None:
        self._write_block(stream_id, self._encoder.encode(headers), end_stream)

    def _write_block(self, stream_id: int, block: bytes, end_stream: bool) -> None:
        flags = frames.END_STREAM if end_stream else 0
        most = self.max_send_frame
        out = self.out
        if len(block) <= most:
            out += frames.frame(frames.HEADERS, flags | frames.END_HEADERS, stream_id, block)
            return
        out += frames.frame(frames.HEADERS, flags, stream_id, block[:most])
        for start in range(most, len(block), most):
            last = frames.END_HEADERS if start + most >= len(block) else 0
            piece = block[start : start + most]
            out += frames.frame(frames.CONTINUATION, last, stream_id, piece)

    # --- Control frames ------------------------------------------------------------------------

    def reset(self, stream: Stream, code: ErrorCode, now: float) -> None:
        """End the stream at once with RST_STREAM; nothing when it is closed.

        Not for routine: peers count resets and close the whole connection (``resets``).

        Args:
            stream: The stream, forgotten afterwards.
            code: Why.
            now: The time in seconds.
        """
        if stream.closed:
            return
        if self.terminated is None:
            self._write_reset(stream.id, code)
            self.resets.count(not stream.responded, now)
        stream.reset_code = code
        self._close_both(stream, RESET_BY_US)

    def ping(self, payload: bytes) -> None:
        """Send a PING; a ``PingAcknowledged`` event with the payload follows.

        Args:
            payload: Eight bytes, different from those of other unanswered PINGs.

        Raises:
            UsageError: Not eight bytes, or too many PINGs have no answer yet.
        """
        if len(payload) != 8 or len(self._pings) >= limits.MAX_PINGS_OUTSTANDING:
            raise UsageError(f"PING of {len(payload)} bytes, {len(self._pings)} unanswered")
        if self.terminated is None:
            self._pings.append(payload)
            self.out += frames.frame(frames.PING, 0, 0, payload)

    @property
    def pings_outstanding(self) -> int:
        """PINGs of ours that the peer has not answered."""
        return len(self._pings)

    def _write_goaway(self, last_stream_id: int, code: ErrorCode, reason: str) -> None:
        payload = frames.TWO_UINT32.pack(last_stream_id, code) + reason.encode()[:256]
        self.out += frames.frame(frames.GOAWAY, 0, 0, payload)

    def _write_reset(self, stream_id: int, code: ErrorCode) -> None:
        self.out += frames.frame(frames.RST_STREAM, 0, stream_id, frames.UINT32.pack(code))

    def _write_window_update(self, stream_id: int, increment: int) -> None:
        if self.terminated is None:
            self.out += frames.frame(
                frames.WINDOW_UPDATE, 0, stream_id, frames.UINT32.pack(increment)
            )

    def _answer(self) -> None:
        """Count a frame that the peer made us write."""
        self._answers += 1
        if self._answers > limits.MAX_UNREAD_ANSWERS:
            raise flood("frames that ask for an answer which is not read")

    # --- The ends of streams -------------------------------------------------------------------

    def _close_local(self, stream: Stream) -> None:
        stream.local_closed = True
        stream.can_send = False
        if stream.remote_closed:
            self._close_both(stream, ENDED)

    def _close_both(self, stream: Stream, how: int) -> None:
        stream.local_closed = True
        stream.remote_closed = True
        stream.can_send = False
        stream.flowing = False
        stream_id = stream.id
        self.streams.pop(stream_id, None)
        self._blocked.pop(stream_id, None)
        self._remember(stream_id, how)

    def _remember(self, stream_id: int, how: int) -> None:
        closed = self._closed
        closed[stream_id] = how
        if len(closed) > limits.CLOSED_STREAMS_REMEMBERED:
            del closed[next(iter(closed))]
