"""An established TLS connection as the relay engine sees it: plain bytes to wire bytes and back.

There is no socket in here. `OwnRecords` (records.py) seals and opens TLS 1.3 records itself,
from one buffer of the engine into another; `OpenSslRecords` (openssl_records.py) lets
`ssl.SSLObject` do it, slower, for whoever wants that or for a suite that we do not know.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from ztunnel.tls.errors import Alert, TlsError

MAX_PLAINTEXT = 16384
"""Content bytes of one record (RFC 8446 section 5.1)."""

OVERHEAD = 22
"""Bytes that a record adds to its content: header 5, content type 1, tag 16."""

STRIDE = MAX_PLAINTEXT + 1
"""Distance between two chunks of a scattered buffer: a full record and its type byte."""

OPEN_SLACK = MAX_PLAINTEXT + 256
"""Room `Session.open` wants in the plain buffer beyond the number of wire bytes it is given."""

# A KeyUpdate may have to go in front of the data: 5 content bytes and the overhead of a record.
_PRELUDE = 64


def sealed_size(n: int) -> int:
    """Room in bytes that `Session.seal` wants in its output buffer for `n` plain bytes."""
    return n + OVERHEAD * ((n + MAX_PLAINTEXT - 1) // MAX_PLAINTEXT) + _PRELUDE


@dataclass(frozen=True, slots=True)
class KtlsParameters:
    """What `setsockopt(SOL_TLS, TLS_TX or TLS_RX)` needs (linux/tls.h).

    Attributes:
        suite: name of the cipher suite.
        key: 16 or 32 bytes.
        iv: 12 bytes; the kernel's AES-GCM structures take the first 4 as salt.
        sequence: number of records already used under this key.
    """

    suite: str
    key: bytes
    iv: bytes
    sequence: int

    def __repr__(self) -> str:
        return f"KtlsParameters(suite={self.suite!r}, sequence={self.sequence})"


class Session(ABC):
    """Protects the records of one connection after its handshake.

    Nothing that a peer sends makes a method raise: look at `ended` after each `open`.

    Attributes:
        suite: name of the negotiated cipher suite.
        implementation: `own` or `openssl`, for logs.
        ended: no more data will come out of `open`: `closed` or `error` says why.
        closed: the peer sent close_notify. A TCP end of stream without it is a truncation.
        error: the peer's fatal alert, or what was wrong with its records. In the latter case
            `error.reply` must be sent before the socket is closed.
        exhausted: too many records under one key and no way to change it: move the flows to
            another connection. Only ever set by `OpenSslRecords`; `OwnRecords` updates its keys.
    """

    def __init__(self, suite: str, implementation: str) -> None:
        self.suite = suite
        self.implementation = implementation
        self.ended = False
        self.closed = False
        self.error: TlsError | None = None
        self.exhausted = False

    @abstractmethod
    def seal(self, src: memoryview, start: int, n: int, out: memoryview, at: int) -> int:
        """Seal the `n` bytes at `src[start]`, in as many records as they need.

        Args:
            src: writable bytes, one of them spare behind the content. (The byte after each record
                is borrowed for its type and put back.)
            start: index of the first content byte.
            n: number of content bytes; 0 writes only what the protocol itself owes the peer.
            out: where the records go; it needs `sealed_size(n)` bytes from `at` on.
            at: index of the first byte to write.

        Returns:
            The number of bytes written to `out`.

        Raises:
            ValueError: `out` is too small or `src` has no spare byte.
            RuntimeError: after `close_notify` or `alert`.
        """

    @abstractmethod
    def seal_scattered(self, src: memoryview, start: int, n: int, out: memoryview, at: int) -> int:
        """Like `seal`, for content that lies in chunks with a spare byte after each.

        Chunk i holds up to 16,384 content bytes from `src[start + i * STRIDE]` on, so that each
        record is sealed straight from where `recvmsg_into` put it.
        """

    @abstractmethod
    def open(
        self, wire: memoryview, start: int, end: int, plain: memoryview, at: int
    ) -> tuple[int, int]:
        """Open every complete record of `wire[start:end]` into contiguous plain bytes.

        Args:
            wire: received bytes; must not overlap `plain`.
            start: index of the first byte of a record.
            end: index after the last received byte.
            plain: where the content goes; it needs `end - start + OPEN_SLACK` bytes from `at`
                on, and bytes beyond what is produced are overwritten.
            at: index of the first byte to write.

        Returns:
            How many bytes of `wire` were consumed (give the rest again, with what follows) and
            how many plain bytes were produced. Once `ended`, everything is consumed unread.

        Raises:
            ValueError: `plain` is too small.
        """

    @abstractmethod
    def close_notify(self) -> bytes:
        """End our direction (RFC 8446 section 6.1). Returns bytes to send; nothing may follow."""

    @abstractmethod
    def alert(self, description: Alert) -> bytes:
        """Abort with a fatal alert (section 6.2). Returns bytes to send; nothing may follow."""

    @abstractmethod
    def ktls_parameters(self, *, sending: bool) -> KtlsParameters:
        """Keys of one direction for the kernel.

        Raises:
            RuntimeError: this implementation does not know them.
        """
