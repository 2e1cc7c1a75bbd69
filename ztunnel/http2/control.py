"""The control frames of a connection, and how streams and the connection end by them."""

from ztunnel.http2 import frames
from ztunnel.http2.errors import ConnectionFault, ErrorCode, StreamFault, error_code
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
from ztunnel.http2.limits import MAX_STREAM_ID, MAX_WINDOW
from ztunnel.http2.sending import RESET_BY_PEER, SendingHalf
from ztunnel.http2.settings import LocalSettings, read_settings
from ztunnel.http2.stream import Stream


class ControlFrames(SendingHalf):
    """SETTINGS, PING, GOAWAY, WINDOW_UPDATE, RST_STREAM and PRIORITY (RFC 9113 section 6).

    Attributes: see :class:`~ztunnel.http2.connection.Connection`.
    """

    is_client: bool = False

    def __init__(self, local: LocalSettings) -> None:
        super().__init__()
        self.local: LocalSettings = local
        self.settings_received: bool = False
        self.settings_acknowledged: bool = False
        self.goaway_received: GoAwayReceived | None = None
        self.last_peer_stream: int = 0
        self._decoder: HeaderDecoder = HeaderDecoder(
            local.header_table_size, local.max_header_list_size
        )
        self._guard: FloodGuard = FloodGuard()
        self._now: float = 0.0
        self._credit_came: bool = False

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

    def _wake(self, events: list[ReceivedEvent]) -> None:
        if self.send_window <= 0 or not self._blocked:
            return
        ready = [stream for stream in self._blocked.values() if stream.send_window > 0]
        for stream in ready:
            del self._blocked[stream.id]
            events.append(StreamWritable(stream))

    # --- The ends of streams and of the connection ------------------------------------------

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


def _read_uint32(payload: bytes, what: str) -> int:
    if len(payload) != 4:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"{what} of {len(payload)} bytes")
    number: int = frames.UINT32.unpack(payload)[0]
    return number


def _need_connection(stream_id: int, what: str) -> None:
    if stream_id:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{what} on stream {stream_id}")
