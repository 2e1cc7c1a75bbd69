"""TLS 1.3 records over an AEAD, from one buffer of ours into another (RFC 8446 section 5).

`ssl.SSLObject` moves every byte through two memory BIOs; this does not, and bulk runs twice as
fast for it. The handshake stays with `ssl`: what starts here is the connection after both
Finished messages, with the first application traffic secrets.

Why this may be trusted:

- Everything that decides *whom* we talk to, and under which secrets, is OpenSSL's: versions,
  suites, key exchange, signatures, chains, Finished. Nothing is negotiated afterwards: there is
  no renegotiation in TLS 1.3, and tickets and early data are neither given nor taken.
- So are the ciphers, behind `cryptography`: no arithmetic on keys or bytes of a message is done
  here. What is ours is a header, a counter and the order of records.
- A nonce is the counter under a key's own IV, and comes only out of this class: the counter never
  goes back, and the key changes (KeyUpdate, section 4.6.3) long before what AES-GCM is good for.
- Content is handed out only after its record has authenticated, with the header as additional
  data. The first record that does not, that is out of order or place, or too large ends the
  session with the alert that the RFC names, and nothing behind it is read.
- Keys follow from secrets as in the RFC's own trace (RFC 8448), and both roles are tested
  against OpenSSL, fuzzed, and run against Envoy: tests/ztunnel/tls, tests/interop.

What it does not do: wipe keys from memory (Python's objects cannot be, and `ssl` keeps its own as
long). `ZTUNNEL_TLS_RECORDS=openssl` leaves records to OpenSSL as well, and so does any cipher suite
that is not known here.
"""

from cryptography.exceptions import InvalidTag

from ztunnel.tls.errors import Alert, TlsError, peer_alert
from ztunnel.tls.key_schedule import Suite, next_secret, write_iv, write_key
from ztunnel.tls.session import MAX_PLAINTEXT, KtlsParameters, Session, sealed_size

_ALERT = 21
_HANDSHAKE = 22
_APPLICATION_DATA = 23

_NEW_SESSION_TICKET = 4
_KEY_UPDATE = 24
_NOT_REQUESTED = 0
_REQUESTED = 1

_TAG = 16
# The header's length counts content, type byte, padding and tag; content, type and padding
# together are limited to 2^14 + 1 (section 5.4), which is stricter than the 2^14 + 256 of 5.2.
_MAX_SEALED = MAX_PLAINTEXT + 1 + _TAG
_FULL_HEADER = b"\x17\x03\x03" + _MAX_SEALED.to_bytes(2, "big")

REKEY_AFTER = 1 << 23
"""Records under one key before a KeyUpdate. AES-GCM is good for 2^24.5 (section 5.5)."""

QUIET_LIMIT = 32
"""Records without application data that a peer may send in a row: they cost us, not it."""

# The largest handshake message taken after the handshake. Tickets are all that comes, and
# nobody's ticket is near this; the protocol would allow 16 MiB.
_MAX_MESSAGE = 1 << 16


class Direction:
    """Key, nonce and sequence number of one direction."""

    def __init__(self, suite: Suite, secret: bytes) -> None:
        self.suite = suite
        self.start(secret)

    def start(self, secret: bytes) -> None:
        """Begin again at sequence number 0 under the key of `secret`."""
        self.secret = secret
        self.aead = self.suite.aead(write_key(self.suite, secret))
        self.iv = int.from_bytes(write_iv(self.suite, secret), "big")
        self.sequence = 0

    def update(self) -> None:
        """Go on with the next secret (section 7.2)."""
        self.start(next_secret(self.suite, self.secret))

    def seal(self, kind: int, content: bytes) -> bytes:
        """One record, for what is too rare to be worth a buffer."""
        size = len(content) + 1 + _TAG
        header = b"\x17\x03\x03" + size.to_bytes(2, "big")
        nonce = (self.iv ^ self.sequence).to_bytes(12, "big")
        self.sequence += 1
        return header + self.aead.encrypt(nonce, content + bytes((kind,)), header)

    def seal_alert(self, description: Alert) -> bytes:
        """One alert record."""
        return self.seal(_ALERT, alert_content(description))


def alert_content(description: Alert) -> bytes:
    """What an alert record holds. Everything but a closure is fatal (section 6)."""
    graceful = description in (Alert.CLOSE_NOTIFY, Alert.USER_CANCELED)
    return bytes((1 if graceful else 2, description))


class OwnRecords(Session):
    """See `Session`.

    Args:
        sending: our direction, from our traffic secret number 0.
        receiving: the peer's.
        server_side: which end of the connection we are.
        rekey_after: records under one key before we change ours, or ask the peer to.
    """

    def __init__(
        self,
        sending: Direction,
        receiving: Direction,
        *,
        server_side: bool,
        rekey_after: int = REKEY_AFTER,
    ) -> None:
        super().__init__(sending.suite.name, "own")
        self._tx = sending
        self._rx = receiving
        self._server_side = server_side
        self._write_closed = False
        # A KeyUpdate goes in front of the next data: what it will ask of the peer, or -1.
        self._update_due = -1
        self._rekey_after = rekey_after
        self._ask_at = rekey_after
        self._quiet = 0
        self._fragment = b""
        self._kernel_seals = False

    def seal(self, src: memoryview, start: int, n: int, out: memoryview, at: int) -> int:
        return self._seal(src, start, n, out, at, 0)

    def seal_scattered(self, src: memoryview, start: int, n: int, out: memoryview, at: int) -> int:
        return self._seal(src, start, n, out, at, 1)

    def _seal(self, src: memoryview, start: int, n: int, out: memoryview, at: int, gap: int) -> int:
        if self._write_closed:
            raise RuntimeError("nothing may be sent after close_notify or a fatal alert")
        last = start + n
        if n > MAX_PLAINTEXT:
            last += gap * ((n - 1) // MAX_PLAINTEXT)
        if last >= len(src) or len(out) - at < sealed_size(n):
            raise ValueError(
                f"{n} bytes need a spare byte at {last} of {len(src)}, "
                f"and {sealed_size(n)} bytes of room where there are {len(out) - at}"
            )
        begin = at
        if self._update_due >= 0:
            at += self._write_key_update(out, at)
        tx = self._tx
        while n > 0:
            if n >= MAX_PLAINTEXT:
                k = MAX_PLAINTEXT
                header = _FULL_HEADER
            else:
                k = n
                header = b"\x17\x03\x03" + (k + 17).to_bytes(2, "big")
            stop = start + k
            # The inner content type sits right behind the content: borrow that byte.
            borrowed = src[stop]
            src[stop] = _APPLICATION_DATA
            body = at + 5
            out[at:body] = header
            at = body + k + 17
            tx.aead.encrypt_into(
                (tx.iv ^ tx.sequence).to_bytes(12, "big"),
                src[start : stop + 1],
                header,
                out[body:at],
            )
            src[stop] = borrowed
            tx.sequence += 1
            n -= k
            start = stop + gap
        if tx.sequence >= self._rekey_after and self._update_due < 0:
            self._update_due = _NOT_REQUESTED
        return at - begin

    def _write_key_update(self, out: memoryview, at: int) -> int:
        message = bytes((_KEY_UPDATE, 0, 0, 1, self._update_due))
        self._update_due = -1
        record = self._tx.seal(_HANDSHAKE, message)
        self._tx.update()
        out[at : at + len(record)] = record
        return len(record)

    def open(
        self, wire: memoryview, start: int, end: int, plain: memoryview, at: int
    ) -> tuple[int, int]:
        if self.ended:
            return end - start, 0
        # No record opens to more than its own length, so that this is enough for all of them.
        if len(plain) - at < end - start:
            raise ValueError(f"{end - start} wire bytes, but room for {len(plain) - at}")
        position = start
        produced = at
        rx = self._rx
        while end - position >= 5:
            size = (wire[position + 3] << 8) | wire[position + 4]
            if wire[position] != _APPLICATION_DATA or not _TAG < size <= _MAX_SEALED:
                self._refuse_header(wire[position], size)
                return end - start, produced - at
            body = position + 5
            stop = body + size
            if stop > end:
                break
            last = produced + size - _TAG
            try:
                rx.aead.decrypt_into(
                    (rx.iv ^ rx.sequence).to_bytes(12, "big"),
                    wire[body:stop],
                    wire[position:body],
                    plain[produced:last],
                )
            except InvalidTag:
                self._fail(Alert.BAD_RECORD_MAC, "a record that does not authenticate")
                return end - start, produced - at
            rx.sequence += 1
            position = stop
            last -= 1
            kind = plain[last]
            if kind == 0:
                last = produced + len(bytes(plain[produced:last]).rstrip(b"\0")) - 1
                if last < produced:
                    self._fail(Alert.UNEXPECTED_MESSAGE, "a record of nothing but padding")
                    return end - start, produced - at
                kind = plain[last]
            if kind == _APPLICATION_DATA and last > produced and not self._quiet:
                produced = last
            else:
                content = bytes(plain[produced:last])
                if self._unusual(kind, content):
                    return end - start, produced - at
                if kind == _APPLICATION_DATA:
                    produced = last
        if rx.sequence >= self._ask_at:
            self._ask_at = rx.sequence + self._rekey_after
            self._update_due = _REQUESTED
        return position - start, produced - at

    def _refuse_header(self, kind: int, size: int) -> None:
        if kind != _APPLICATION_DATA:
            self._fail(Alert.UNEXPECTED_MESSAGE, f"an unprotected record of type {kind}")
        elif size > _MAX_SEALED:
            self._fail(Alert.RECORD_OVERFLOW, f"a record of {size} bytes")
        else:
            self._fail(Alert.DECODE_ERROR, f"a record of only {size} bytes")

    def _fail(self, alert: Alert, words: str) -> None:
        self.error = TlsError(alert, f"the peer sent {words}", reply=self.alert(alert))
        self.ended = True

    def _unusual(self, kind: int, content: bytes) -> bool:
        """Handle what is not plain data after plain data. Returns whether the session ended."""
        if self._fragment and kind != _HANDSHAKE:
            self._fail(Alert.UNEXPECTED_MESSAGE, "a handshake message broken off in the middle")
        elif kind == _APPLICATION_DATA and content:
            self._quiet = 0
        elif kind == _ALERT:
            self._alert_received(content)
        elif kind == _HANDSHAKE:
            self._handshake_received(content)
        elif kind != _APPLICATION_DATA:
            self._fail(Alert.UNEXPECTED_MESSAGE, f"a record of the unknown type {kind}")
        if not self.ended and not (kind == _APPLICATION_DATA and content):
            self._quiet += 1
            if self._quiet > QUIET_LIMIT:
                words = f"{self._quiet} records in a row without any data"
                self._fail(Alert.UNEXPECTED_MESSAGE, words)
        return self.ended

    def _alert_received(self, content: bytes) -> None:
        if len(content) != 2:
            self._fail(Alert.DECODE_ERROR, f"an alert of {len(content)} bytes")
        elif content[1] == Alert.CLOSE_NOTIFY:
            self.closed = True
            self.ended = True
        elif content[1] != Alert.USER_CANCELED:
            # The level is without meaning in TLS 1.3: all but these two end the connection.
            self.error = peer_alert(content[1])
            self.ended = True

    def _handshake_received(self, content: bytes) -> None:
        if not content:
            self._fail(Alert.UNEXPECTED_MESSAGE, "an empty handshake record")
            return
        data = self._fragment + content
        while len(data) >= 4:
            kind = data[0]
            length = int.from_bytes(data[1:4], "big")
            if not self._acceptable(kind, length):
                return
            if len(data) < 4 + length:
                break
            body = data[4 : 4 + length]
            data = data[4 + length :]
            # A ticket is for resumption, which we never do: every connection proves anew who
            # is at its ends.
            if kind == _KEY_UPDATE and not self._key_update_received(body[0], bool(data)):
                return
        self._fragment = data

    def _acceptable(self, kind: int, length: int) -> bool:
        if kind == _KEY_UPDATE:
            if length != 1:
                self._fail(Alert.DECODE_ERROR, f"a KeyUpdate of {length} bytes")
        elif kind != _NEW_SESSION_TICKET or self._server_side:
            words = f"handshake message {kind} after the handshake"
            self._fail(Alert.UNEXPECTED_MESSAGE, words)
        elif length > _MAX_MESSAGE:
            self._fail(Alert.DECODE_ERROR, f"a session ticket of {length} bytes")
        return not self.ended

    def _key_update_received(self, request: int, followed: bool) -> bool:
        if request not in (_NOT_REQUESTED, _REQUESTED):
            self._fail(Alert.ILLEGAL_PARAMETER, f"a KeyUpdate that asks for {request}")
            return False
        if followed:
            # The rest of this record would belong under the next key (section 5.1).
            self._fail(Alert.UNEXPECTED_MESSAGE, "a handshake message across a change of keys")
            return False
        self._rx.update()
        self._ask_at = self._rekey_after
        if request == _REQUESTED and self._update_due < 0:
            self._update_due = _NOT_REQUESTED
        return True

    def close_notify(self) -> bytes:
        return self.alert(Alert.CLOSE_NOTIFY)

    def alert(self, description: Alert) -> bytes:
        if self._write_closed:
            return b""
        self._write_closed = True
        if self._kernel_seals:
            return alert_content(description)
        return self._tx.seal_alert(description)

    def ktls_parameters(self, *, sending: bool) -> KtlsParameters:
        direction = self._tx if sending else self._rx
        suite = direction.suite
        return KtlsParameters(
            suite.name,
            write_key(suite, direction.secret),
            write_iv(suite, direction.secret),
            direction.sequence,
        )

    # ---- records by the kernel (kTLS)

    def hand_over_sealing(self) -> None:
        """The kernel seals from here on, with the keys that `ktls_parameters` gives now.

        Afterwards `close_notify`, `alert` and the `reply` of an error are the content of an alert
        record, for the kernel to seal; a KeyUpdate is for the caller to send (`take_key_update`).
        """
        self._kernel_seals = True

    @property
    def update_due(self) -> bool:
        """Whether a KeyUpdate must go in front of the next data."""
        return self._update_due >= 0 and not self._write_closed

    def take_key_update(self) -> bytes:
        """The KeyUpdate that is due, as content of a handshake record.

        `ktls_parameters` gives the keys for what comes after it.
        """
        message = bytes((_KEY_UPDATE, 0, 0, 1, max(self._update_due, _NOT_REQUESTED)))
        self._update_due = -1
        self._tx.update()
        return message

    def renew_keys(self) -> None:
        """Has our next record change our keys, and asks the peer to change its own."""
        self._update_due = _REQUESTED

    def used(self, sent: int, received: int) -> None:
        """What the kernel counts: records under the present keys. Changes keys in good time."""
        if sent >= self._rekey_after and self._update_due < 0:
            self._update_due = _NOT_REQUESTED
        if received >= self._ask_at:
            self._ask_at = received + self._rekey_after
            self._update_due = _REQUESTED

    def control(self, kind: int, content: bytes, after_data: bool) -> bool:
        """Takes a record that is not data, as the kernel opened it.

        Args:
            kind: its type.
            content: what is in it.
            after_data: data has come since the record before this one.

        Returns:
            Whether the peer's keys have changed: the kernel needs the new ones to go on.
        """
        if after_data:
            self._quiet = 0
        before = self._rx.secret
        if not self.ended:
            self._unusual(kind, content)
        return self._rx.secret != before
