"""SETTINGS: what we announce, and what the peer announced (RFC 9113 section 6.5)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ztunnel.http2 import frames
from ztunnel.http2.errors import ConnectionFault, ErrorCode
from ztunnel.http2.limits import (
    DEFAULT_MAX_FRAME_SIZE,
    DEFAULT_WINDOW,
    LARGEST_MAX_FRAME_SIZE,
    MAX_SETTINGS_PER_FRAME,
    MAX_WINDOW,
)

HEADER_TABLE_SIZE: Final = 0x1
ENABLE_PUSH: Final = 0x2
MAX_CONCURRENT_STREAMS: Final = 0x3
INITIAL_WINDOW_SIZE: Final = 0x4
MAX_FRAME_SIZE: Final = 0x5
MAX_HEADER_LIST_SIZE: Final = 0x6
ENABLE_CONNECT_PROTOCOL: Final = 0x8

UNLIMITED: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """What this end announces when the connection starts, and keeps to.

    Attributes:
        initial_window: Bytes a new stream may send us before we consume any. Not below the
            protocol's default: until SETTINGS are acknowledged the peer uses that.
        connection_window: Bytes all streams together may have on their way to us.
        max_frame_size: Largest frame payload we take, 16 KiB to 16 MiB.
        max_concurrent_streams: Streams the peer may have open. Envoy's client opens up to 1,024
            before it has read this; a smaller number costs those connections.
        header_table_size: Bytes of HPACK dynamic table we keep for the peer's headers.
        max_header_list_size: Largest header list we take, counted as in section 6.5.2.
        enable_connect_protocol: A server that takes extended CONNECT (RFC 8441).

    Raises:
        ValueError: A number is out of the range that the protocol gives it.
    """

    initial_window: int = 256 * 1024
    connection_window: int = 16 * 1024 * 1024
    max_frame_size: int = DEFAULT_MAX_FRAME_SIZE
    max_concurrent_streams: int = 1024
    header_table_size: int = 4096
    max_header_list_size: int = 64 * 1024
    enable_connect_protocol: bool = False

    def __post_init__(self) -> None:
        if not DEFAULT_WINDOW <= self.initial_window <= MAX_WINDOW:
            raise ValueError(f"initial_window {self.initial_window} is out of range")
        if not DEFAULT_WINDOW <= self.connection_window <= MAX_WINDOW:
            raise ValueError(f"connection_window {self.connection_window} is out of range")
        if not DEFAULT_MAX_FRAME_SIZE <= self.max_frame_size <= LARGEST_MAX_FRAME_SIZE:
            raise ValueError(f"max_frame_size {self.max_frame_size} is out of range")
        if not 0 <= self.max_concurrent_streams <= UNLIMITED:
            raise ValueError(f"max_concurrent_streams {self.max_concurrent_streams}")
        if not 0 <= self.header_table_size <= 64 * 1024:
            raise ValueError(f"header_table_size {self.header_table_size} is out of range")
        if not 0 < self.max_header_list_size <= 1024 * 1024:
            raise ValueError(f"max_header_list_size {self.max_header_list_size} is out of range")

    def frame(self, client: bool) -> bytes:
        """The SETTINGS frame that announces these values; push is always off."""
        values = [
            (HEADER_TABLE_SIZE, self.header_table_size),
            (INITIAL_WINDOW_SIZE, self.initial_window),
            (MAX_FRAME_SIZE, self.max_frame_size),
            (MAX_HEADER_LIST_SIZE, self.max_header_list_size),
        ]
        if client:
            values.append((ENABLE_PUSH, 0))
        else:
            values.append((MAX_CONCURRENT_STREAMS, self.max_concurrent_streams))
            if self.enable_connect_protocol:
                values.append((ENABLE_CONNECT_PROTOCOL, 1))
        payload = b"".join(frames.SETTING.pack(key, value) for key, value in values)
        return frames.frame(frames.SETTINGS, 0, 0, payload)


class PeerSettings:
    """What the peer announced; the protocol's defaults until then (section 6.5.2)."""

    __slots__ = (
        "enable_connect_protocol",
        "enable_push",
        "header_table_size",
        "initial_window",
        "max_concurrent_streams",
        "max_frame_size",
        "max_header_list_size",
    )

    def __init__(self) -> None:
        self.header_table_size: int = 4096
        self.enable_push: bool = True
        self.max_concurrent_streams: int = UNLIMITED
        self.initial_window: int = DEFAULT_WINDOW
        self.max_frame_size: int = DEFAULT_MAX_FRAME_SIZE
        self.max_header_list_size: int = UNLIMITED
        self.enable_connect_protocol: bool = False

    def apply(self, key: int, value: int, from_server: bool) -> None:
        """Take one setting over; an unknown one is ignored.

        Raises:
            ConnectionFault: The value is out of its range.
        """
        if key == HEADER_TABLE_SIZE:
            self.header_table_size = value
        elif key == ENABLE_PUSH:
            if value > 1 or (from_server and value):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"SETTINGS: ENABLE_PUSH {value}")
            self.enable_push = value == 1
        elif key == MAX_CONCURRENT_STREAMS:
            self.max_concurrent_streams = value
        elif key == INITIAL_WINDOW_SIZE:
            if value > MAX_WINDOW:
                raise ConnectionFault(
                    ErrorCode.FLOW_CONTROL_ERROR, f"SETTINGS: INITIAL_WINDOW_SIZE {value}"
                )
            self.initial_window = value
        elif key == MAX_FRAME_SIZE:
            if not DEFAULT_MAX_FRAME_SIZE <= value <= LARGEST_MAX_FRAME_SIZE:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"SETTINGS: MAX_FRAME_SIZE {value}")
            self.max_frame_size = value
        elif key == MAX_HEADER_LIST_SIZE:
            self.max_header_list_size = value
        elif key == ENABLE_CONNECT_PROTOCOL:
            if value > 1 or (self.enable_connect_protocol and not value):
                raise ConnectionFault(
                    ErrorCode.PROTOCOL_ERROR, f"SETTINGS: ENABLE_CONNECT_PROTOCOL {value}"
                )
            self.enable_connect_protocol = value == 1


def read_settings(payload: bytes) -> Iterator[tuple[int, int]]:
    """The (key, value) pairs of a SETTINGS payload, in order.

    Raises:
        ConnectionFault: The payload is not a list of pairs, or has very many.
    """
    if len(payload) % frames.SETTING.size:
        raise ConnectionFault(
            ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes is not a list of pairs"
        )
    if len(payload) > MAX_SETTINGS_PER_FRAME * frames.SETTING.size:
        raise ConnectionFault(
            ErrorCode.ENHANCE_YOUR_CALM,
            f"SETTINGS with more than {MAX_SETTINGS_PER_FRAME} values",
        )
    pairs: Iterator[tuple[int, int]] = frames.SETTING.iter_unpack(payload)
    return pairs
