"""A control plane for the client to talk to, with and without TLS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.support.ads_server import AdsServer


class Authority:
    """A certificate authority for servers."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._sign("authority", self._key.public_key(), None)
        self.roots = self._certificate.public_bytes(Encoding.PEM)

    def server(self, name: str) -> grpc.ServerCredentials:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign("server", key.public_key(), name)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return grpc.ssl_server_credentials([(private, certificate.public_bytes(Encoding.PEM))])

    def _sign(
        self, subject: str, key: ec.EllipticCurvePublicKey, name: str | None
    ) -> x509.Certificate:
        def names(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(
            names("authority"),
            names(subject),
            key,
            x509.random_serial_number(),
            now - timedelta(hours=1),
            now + timedelta(hours=1),
        ).add_extension(x509.BasicConstraints(name is None, None), True)
        if name is not None:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DNSName(name)]), False
            )
        return builder.sign(self._key, SHA256())


MakeServer = Callable[..., AdsServer]


@pytest.fixture
def make_server() -> Iterator[MakeServer]:
    servers: list[AdsServer] = []

    def make(credentials: grpc.ServerCredentials | None = None, port: int = 0) -> AdsServer:
        servers.append(AdsServer(credentials, port))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def other_authority() -> Authority:
    return Authority()
