"""Two ends of a TLS connection in one process, ours and plain `ssl` ones."""

import os
import ssl

from ztunnel.tls.contexts import ContextCache, Records
from ztunnel.tls.handshake import Handshake, HandshakeResult
from ztunnel.tls.session import OPEN_SLACK, Session, sealed_size
from ztunnel.tls.spiffe import PeerCertificate
from ztunnel.tls.workload_certificate import WorkloadCertificate


def accept_anybody(peer: PeerCertificate) -> None:
    """A verification for tests of something else."""


def client(certificate: WorkloadCertificate, records: Records = "own") -> Handshake:
    """Our client, started."""
    handshake = Handshake(ContextCache(records).client(certificate), accept_anybody)
    handshake.start()
    return handshake


def server(certificate: WorkloadCertificate, records: Records = "own") -> Handshake:
    """Our server."""
    handshake = Handshake(ContextCache(records).server(certificate), accept_anybody)
    handshake.start()
    return handshake


def shake(one: Handshake, other: Handshake) -> tuple[HandshakeResult, HandshakeResult]:
    """Let two handshakes of ours talk until both are done."""
    for _ in range(10):
        other.feed(one.outgoing())
        if one.done and other.done:
            break
        one.feed(other.outgoing())
        if one.done and other.done:
            break
    return one.result, other.result


def plain_context(
    certificate: WorkloadCertificate | None,
    *,
    server_side: bool,
    roots: bytes | None = None,
) -> ssl.SSLContext:
    """An ordinary context, made without any code of ours, that wants a valid peer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    if certificate is not None:
        with open(os.memfd_create("key"), "wb") as file:
            file.write(certificate.private_key_pem + certificate.chain_pem)
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    bundle = roots if roots is not None or certificate is None else certificate.roots_pem
    if bundle is not None:
        context.load_verify_locations(cadata=bundle.decode("ascii"))
    context.set_alpn_protocols(["h2"])
    return context


class PlainPeer:
    """The other end by `ssl.SSLObject`, as any program would do it."""

    def __init__(self, context: ssl.SSLContext, *, server_side: bool) -> None:
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=server_side)
        self.done = False

    def step(self, data: bytes) -> bytes:
        """Take bytes in the handshake, return those to send."""
        self.incoming.write(data)
        try:
            self.tls.do_handshake()
            self.done = True
        except ssl.SSLWantReadError:
            pass
        return self.outgoing.read()

    def read(self, data: bytes = b"") -> bytes:
        """Take bytes after the handshake, return all the plain ones."""
        self.incoming.write(data)
        plain = b""
        try:
            while chunk := self.tls.read(65536):
                plain += chunk
        except ssl.SSLWantReadError:
            pass
        return plain

    def write(self, data: bytes) -> bytes:
        """Seal bytes."""
        if data:
            self.tls.write(data)
        return self.outgoing.read()


def shake_with_plain(ours: Handshake, plain: PlainPeer) -> HandshakeResult:
    """Let one handshake of ours and an ordinary one talk until both are done."""
    data = ours.outgoing() or plain.step(b"")
    if plain.tls.server_side:
        data = plain.step(data)
    while not (ours.done and plain.done):
        ours.feed(data)
        data = plain.step(ours.outgoing())
    # A server may have sent tickets with its last bytes.
    ours.result.session.open(
        memoryview(data), 0, len(data), memoryview(bytearray(len(data) + OPEN_SLACK)), 0
    )
    return ours.result


def seal(session: Session, data: bytes) -> bytes:
    """Seal with buffers of the right size."""
    out = bytearray(sealed_size(len(data)))
    n = session.seal(memoryview(bytearray(data + b"?")), 0, len(data), memoryview(out), 0)
    return bytes(out[:n])


def open_all(session: Session, wire: bytes) -> tuple[int, bytes]:
    """Open with a buffer of the right size: (consumed, plain bytes)."""
    plain = bytearray(len(wire) + OPEN_SLACK)
    consumed, produced = session.open(memoryview(wire), 0, len(wire), memoryview(plain), 0)
    return consumed, bytes(plain[:produced])
