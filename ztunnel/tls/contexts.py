"""SSL contexts made from workload certificates, once per certificate and not per handshake."""

import os
import ssl
from typing import Literal

from ztunnel.mesh.identity import Identity
from ztunnel.tls.keylog import KeyLog, shared_key_log
from ztunnel.tls.workload_certificate import WorkloadCertificate

Records = Literal["own", "openssl"]
"""Who protects records after the handshake (`ZTUNNEL_TLS_RECORDS`)."""


class TlsContext:
    """Everything that handshakes of one role with one certificate have in common.

    Attributes:
        context: the configured `ssl.SSLContext`.
        server_side: which role.
        key_log: where the secrets of these handshakes arrive, None if OpenSSL does the records.
    """

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, records: Records) -> None:
        self.context = context
        self.server_side = server_side
        self.key_log: KeyLog | None = None
        if records == "own":
            self.key_log = shared_key_log()
            context.keylog_filename = self.key_log.path


def make_context(
    certificate: WorkloadCertificate, *, server_side: bool, records: Records = "own"
) -> TlsContext:
    """A context for mutual TLS 1.3 with ALPN h2, without resumption.

    Raises:
        ssl.SSLError: key, chain or roots are not usable.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    # Identities are URIs that spiffe.py compares; there is no host name, and no SNI either.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    # The bundle says what is trusted: an intermediate in it needs no root behind it.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=certificate.roots_pem.decode("ascii"))
    context.set_alpn_protocols(["h2"])
    if server_side:
        # Tickets would be records that nobody reads (and that kTLS trips over).
        context.num_tickets = 0
    _load_key(context, certificate)
    return TlsContext(context, server_side=server_side, records=records)


def _load_key(context: ssl.SSLContext, certificate: WorkloadCertificate) -> None:
    # `load_cert_chain` reads files only; a private key has no business on a disk.
    with open(os.memfd_create("tls-key", os.MFD_CLOEXEC), "wb") as file:
        file.write(certificate.private_key_pem + b"\n" + certificate.chain_pem)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")


class ContextCache:
    """The contexts in use: per identity one for each role, with its newest certificate.

    A context holds a descriptor and some hundred KiB; those of former certificates are let go.

    Args:
        records: see `Records`.
    """

    def __init__(self, records: Records = "own") -> None:
        self._records: Records = records
        self._made: dict[tuple[Identity, bool], tuple[WorkloadCertificate, TlsContext]] = {}

    def server(self, certificate: WorkloadCertificate) -> TlsContext:
        """The context for accepting. Raises: see `make_context`."""
        return self._of(certificate, True)

    def client(self, certificate: WorkloadCertificate) -> TlsContext:
        """The context for connecting. Raises: see `make_context`."""
        return self._of(certificate, False)

    def forget(self, identity: Identity) -> None:
        """Nobody here is that identity any more."""
        for server_side in (False, True):
            self._made.pop((identity, server_side), None)

    def _of(self, certificate: WorkloadCertificate, server_side: bool) -> TlsContext:
        key = (certificate.identity, server_side)
        made = self._made.get(key)
        if made is None or made[0] != certificate:
            context = make_context(certificate, server_side=server_side, records=self._records)
            made = self._made[key] = (certificate, context)
        return made[1]
