"""Frame types, flags and the nine-byte frame header (RFC 9113 sections 4.1 and 6)."""

from struct import Struct
from typing import Final

FRAME_HEADER_SIZE: Final = 9

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY_FLAG: Final = 0x20

NAMES: Final = (
    "DATA",
    "HEADERS",
    "PRIORITY",
    "RST_STREAM",
    "SETTINGS",
    "PUSH_PROMISE",
    "PING",
    "GOAWAY",
    "WINDOW_UPDATE",
    "CONTINUATION",
)

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first (RFC 9113 section 3.4)."""

# Length and type are read as one number: one unpacked value less on every frame.
FRAME_HEADER: Final = Struct(">LBL")
"""(length << 8 | type, flags, stream id with its reserved bit): exactly nine bytes."""

UINT32: Final = Struct(">L")
SETTING: Final = Struct(">HL")
TWO_UINT32: Final = Struct(">LL")


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """One whole frame."""
    return FRAME_HEADER.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def name_of(kind: int) -> str:
    """The frame type in words, for error messages."""
    return NAMES[kind] if kind < len(NAMES) else f"unknown type {kind}"
