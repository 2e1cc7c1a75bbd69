"""The buffers that all flows of a worker share.

Nobody keeps anything in them beyond one call, so one set serves every flow.
Their layout saves copies. Bulk is received straight into `scatter`, whose
pieces leave room for a DATA frame's header in front and for one spare byte
after every 16,384 (a TLS record's inner content type), so that each record is
sealed from where the kernel put its content.
"""

from typing import Final

from ztunnel.relay.windows import Windows

READ: Final = 1 << 18  # bytes read from one socket in one round at most
RECORD: Final = 16384  # content of one TLS record, RFC 8446 section 5.1
HEADER: Final = 9  # of an HTTP/2 frame, RFC 9113 section 4.1
SMALL: Final = 8192  # up to here a read is worth copying once and batching with others
PIECES: Final = 16

_RECORD_OVERHEAD: Final = 22
_PLAIN_SLACK: Final = 16640


class Buffers:
    """One set of shared buffers."""

    def __init__(self) -> None:
        self.windows: Final = Windows()
        # Ciphertext as received; what is left of a record goes in front of the next read.
        self.wire: Final = memoryview(bytearray(READ + RECORD + 1024))
        self.plain: Final = memoryview(bytearray(len(self.wire) + _PLAIN_SLACK))
        self.sealed: Final = memoryview(
            bytearray((READ // RECORD + 4) * (RECORD + _RECORD_OVERHEAD) + 1024)
        )
        self.scatter: Final = memoryview(bytearray((RECORD + 1) * PIECES))
        # One frame over all pieces: only the first one leaves room for a header.
        self.one_frame: Final = [self.scatter[HEADER:RECORD]] + [
            self.scatter[i * (RECORD + 1) : i * (RECORD + 1) + RECORD] for i in range(1, PIECES)
        ]
        # A frame per piece, for peers that take no larger ones.
        self.frame_each: Final = [
            self.scatter[i * (RECORD + 1) + HEADER : i * (RECORD + 1) + RECORD]
            for i in range(PIECES)
        ]
        self.small: Final = self.scatter[HEADER : HEADER + SMALL]
        self.copy: Final = memoryview(bytearray(READ))
