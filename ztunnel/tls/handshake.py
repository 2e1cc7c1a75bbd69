"""A TLS handshake without a socket: bytes in, bytes out, and at its end a `Session`."""

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from ztunnel.tls.contexts import TlsContext
from ztunnel.tls.errors import Alert, PeerRefused, TlsError, from_ssl
from ztunnel.tls.key_schedule import SUITES
from ztunnel.tls.keylog import client_random
from ztunnel.tls.openssl_records import OpenSslRecords
from ztunnel.tls.records import Direction, OwnRecords
from ztunnel.tls.session import Session
from ztunnel.tls.spiffe import PeerCertificate, peer_certificate
from ztunnel.tls.verified_chain import verified_chain

log = logging.getLogger("ztunnel.tls")

_LARGEST = 256 * 1024
"""Bytes that a peer may send before its handshake is done; OpenSSL allows chains of 100 KiB."""

_REFUSALS = {False: "CLIENT_HANDSHAKE_TRAFFIC_SECRET", True: "SERVER_TRAFFIC_SECRET_0"}


@dataclass(frozen=True, slots=True)
class HandshakeResult:
    """What a completed handshake yields.

    Attributes:
        session: record protection from here on.
        peer: the certificate that the peer proved to own, already accepted.
        alpn: the protocol agreed on, `h2`, or None if the peer does not do ALPN.
        cipher: name of the cipher suite.
        leftover: bytes that the peer sent after its handshake, the start of the wire buffer.
    """

    session: Session
    peer: PeerCertificate
    alpn: str | None
    cipher: str
    leftover: bytes


class Handshake:
    """Drives one handshake. There is no clock in here: put a deadline around it.

    Call `start`, then send `outgoing()`; after each `feed` send `outgoing()` again, and stop when
    `done`. When a method raises `TlsError`, send `error.reply` and close.

    Args:
        context: role and certificate.
        verify: raises `PeerRefused` for a peer that is not acceptable (spiffe.py).
    """

    def __init__(self, context: TlsContext, verify: Callable[[PeerCertificate], None]) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._server_side = context.server_side
        self._key_log = context.key_log
        self._verify = verify
        self._tls = context.context.wrap_bio(
            self._incoming, self._outgoing, server_side=context.server_side
        )
        self._first = b""
        self._unsent = b""
        self._random: str | None = None
        self._secrets: dict[str, bytes] = {}
        self._received = 0
        self._result: HandshakeResult | None = None

    @property
    def done(self) -> bool:
        """Whether `result` is there. Send `outgoing()` before using it."""
        return self._result is not None

    @property
    def result(self) -> HandshakeResult:
        """What came of it.

        Raises:
            RuntimeError: the handshake is not done.
        """
        if self._result is None:
            raise RuntimeError("the handshake is not done")
        return self._result

    def start(self) -> None:
        """A client's first message is ready in `outgoing` after this; a server only waits."""
        if not self._server_side:
            self._step()
            self._first = self._outgoing.read()
            self._random = client_random(self._first)
            self._unsent = self._first

    def outgoing(self) -> bytes:
        """Bytes to be sent to the peer, possibly none."""
        data = self._unsent + self._outgoing.read()
        self._unsent = b""
        return data

    def feed(self, data: bytes | memoryview) -> None:
        """Go on with bytes from the peer.

        Raises:
            TlsError: the handshake failed.
            RuntimeError: it is done already; the bytes belong to the session.
        """
        if self._result is not None:
            raise RuntimeError("the handshake is done")
        self._received += len(data)
        if self._received > _LARGEST:
            raise TlsError(
                Alert.DECODE_ERROR, f"the peer sent more than {_LARGEST} bytes of TLS handshake"
            )
        if self._server_side and self._random is None:
            self._first += data
            self._random = client_random(self._first)
        self._incoming.write(data)
        self._step()

    def feed_eof(self) -> None:
        """The peer closed the connection.

        Raises:
            TlsError: always, unless the handshake is done.
        """
        if self._result is None:
            raise TlsError(
                Alert.CLOSE_NOTIFY, "the peer closed the connection in the TLS handshake"
            )

    def _step(self) -> None:
        try:
            if self._key_log is None:
                self._tls.do_handshake()
            else:
                with self._key_log.lock:
                    try:
                        self._tls.do_handshake()
                    finally:
                        self._key_log.take(self._random or "", self._secrets)
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            raise from_ssl(error, self._outgoing.read()) from error
        self._complete()

    def _complete(self) -> None:
        cipher = self._tls.cipher()
        name = cipher[0] if cipher is not None else "unknown"
        try:
            peer = peer_certificate(verified_chain(self._tls))
            self._verify(peer)
        except PeerRefused as error:
            error.reply = self._refusal(name, error.alert)
            raise
        session = self._session(name)
        leftover = self._incoming.read()
        alpn = self._tls.selected_alpn_protocol()
        self._result = HandshakeResult(session, peer, alpn, name, leftover)
        self._secrets.clear()

    def _session(self, cipher: str) -> Session:
        suite = SUITES.get(cipher)
        client = self._secrets.get("CLIENT_TRAFFIC_SECRET_0")
        server = self._secrets.get("SERVER_TRAFFIC_SECRET_0")
        if suite is None or client is None or server is None:
            if self._key_log is not None:
                missing = f"{cipher} is unknown" if suite is None else "OpenSSL gave no secrets"
                log.warning("records are left to OpenSSL, which is slower: %s", missing)
            return OpenSslRecords(self._tls, self._incoming, self._outgoing)
        ours, theirs = (server, client) if self._server_side else (client, server)
        return OwnRecords(
            Direction(suite, ours), Direction(suite, theirs), server_side=self._server_side
        )

    def _refusal(self, cipher: str, alert: Alert) -> bytes:
        """The alert for a peer whose chain is valid, but who is not whom we accept.

        OpenSSL would not send it for us. A client has its own certificate and Finished still
        unsent at this point: they are thrown away, and the alert goes under the handshake keys in
        their place, so that the server never takes the connection for an established one.
        """
        unsent = self.outgoing()
        suite = SUITES.get(cipher)
        secret = self._secrets.get(_REFUSALS[self._server_side])
        if suite is None or secret is None:
            return b""
        reply = Direction(suite, secret).seal_alert(alert)
        return unsent + reply if self._server_side else reply
