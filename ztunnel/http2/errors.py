"""Error codes (RFC 9113 section 7) and the exceptions of this package."""

from enum import IntEnum


class ErrorCode(IntEnum):
    """Why a stream or a connection ended (RFC 9113 section 7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


def error_code(value: int) -> ErrorCode:
    """The code for a number from the wire; an unknown one counts as INTERNAL_ERROR (section 7)."""
    return _CODES.get(value, ErrorCode.INTERNAL_ERROR)


_CODES: dict[int, ErrorCode] = {int(code): code for code in ErrorCode}


class UsageError(Exception):
    """The caller asked for what the protocol or the connection's state does not allow.

    Nothing was written, and the connection goes on as if the call had not been made.
    """


class ConnectionFault(Exception):
    """The peer broke the connection: it ends with GOAWAY. Never leaves the package."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class StreamFault(Exception):
    """The peer broke one stream: it is reset, the others go on. Never leaves the package."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
