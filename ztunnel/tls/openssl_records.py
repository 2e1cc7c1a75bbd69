"""Records by OpenSSL: the slower way, for a suite we do not know or by the operator's wish."""

import ssl
from collections.abc import Callable
from typing import Any

from ztunnel.tls.errors import Alert, TlsError, from_ssl
from ztunnel.tls.session import (
    MAX_PLAINTEXT,
    OPEN_SLACK,
    STRIDE,
    KtlsParameters,
    Session,
    sealed_size,
)

EXHAUSTED_AFTER = 1 << 23
"""Records in one direction after which the connection should be left: see `Session.exhausted`."""


class OpenSslRecords(Session):
    """See `Session`. Takes over the objects of a finished handshake.

    Python's `ssl` can neither start a KeyUpdate nor send a fatal alert of our choice (it answers
    the peer's KeyUpdates by itself). So `exhausted` asks for another connection in good time,
    and `alert` can only end the connection without a word.
    """

    def __init__(
        self, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
    ) -> None:
        cipher = tls.cipher()
        super().__init__(cipher[0] if cipher is not None else "unknown", "openssl")
        self._tls = tls
        # With a buffer, `read` returns a number; the type stubs know only the form without.
        self._read_into: Callable[[int, memoryview], Any] = tls.read
        self._incoming = incoming
        self._outgoing = outgoing
        self._write_closed = False
        self._sent = 0
        self._received = 0

    def seal(self, src: memoryview, start: int, n: int, out: memoryview, at: int) -> int:
        return self._seal(src, start, n, out, at, 0)

    def seal_scattered(self, src: memoryview, start: int, n: int, out: memoryview, at: int) -> int:
        return self._seal(src, start, n, out, at, 1)

    def _seal(self, src: memoryview, start: int, n: int, out: memoryview, at: int, gap: int) -> int:
        if self._write_closed:
            raise RuntimeError("nothing may be sent after close_notify or a fatal alert")
        if len(out) - at < sealed_size(n):
            raise ValueError(f"{n} bytes need {sealed_size(n)}, there are {len(out) - at}")
        while n > 0:
            k = min(n, MAX_PLAINTEXT)
            self._tls.write(src[start : start + k])
            n -= k
            start += k + gap
            self._sent += 1
        self.exhausted = max(self._sent, self._received) >= EXHAUSTED_AFTER
        wire = self._outgoing.read()
        out[at : at + len(wire)] = wire
        return len(wire)

    def open(
        self, wire: memoryview, start: int, end: int, plain: memoryview, at: int
    ) -> tuple[int, int]:
        if self.ended:
            return end - start, 0
        if len(plain) - at < end - start + OPEN_SLACK:
            raise ValueError(f"{end - start} wire bytes, but room for {len(plain) - at}")
        self._incoming.write(wire[start:end])
        produced = at
        try:
            while True:
                # `read` stops at the end of a record, so that this counts records.
                n = self._read_into(STRIDE, plain[produced:])
                if n == 0:
                    # SSLObject reports the peer's close_notify like an end of file.
                    self.closed = True
                    self.ended = True
                    break
                produced += n
                self._received += 1
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.closed = True
            self.ended = True
        except ssl.SSLError as error:
            self._write_closed = True
            self.error = from_ssl(error, self._outgoing.read())
            self.ended = True
        return end - start, produced - at

    def close_notify(self) -> bytes:
        if self._write_closed:
            return b""
        self._write_closed = True
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            pass  # The peer's own close_notify has not come yet, and need not.
        except ssl.SSLError as error:
            # Data that the peer had under way is no reason not to say goodbye.
            if error.reason != "APPLICATION_DATA_AFTER_CLOSE_NOTIFY":
                self.error = from_ssl(error)
                self.ended = True
        return self._outgoing.read()

    def alert(self, description: Alert) -> bytes:
        if description is Alert.CLOSE_NOTIFY:
            return self.close_notify()
        self._write_closed = True
        if self.error is None:
            self.error = TlsError(description, f"ended by us: {description.label}")
        self.ended = True
        return b""

    def ktls_parameters(self, *, sending: bool) -> KtlsParameters:
        raise RuntimeError("OpenSSL keeps the keys of this connection to itself")
