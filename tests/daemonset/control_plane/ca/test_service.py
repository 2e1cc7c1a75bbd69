"""Signing requests, and every way in which one is refused."""

from __future__ import annotations

import datetime
import logging
import time
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from daemonset.control_plane.ca.admission import Admission
from daemonset.control_plane.ca.authority import AuthorityHolder
from daemonset.control_plane.ca.csr import CsrError, public_key_of
from daemonset.control_plane.ca.generations import open_state
from daemonset.control_plane.ca.issuer import new_key
from daemonset.control_plane.ca.service import CertificateService, RefusalError
from daemonset.control_plane.ca.tokens import TokenSigner, TokenSubject, TokenVerifier
from daemonset.control_plane.metrics import ControlPlaneMetrics
from tests.support.control_plane import directory_of
from ztunnel.proto.ca_pb2 import IstioCertificateRequest

POD = """
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop},
 spec: {nodeName: node-a, serviceAccountName: web}, status: {podIP: 10.0.0.1}}
"""
WEB = "spiffe://cluster.local/ns/shop/sa/web"
SIGNER = TokenSigner(new_key())
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | dsa.DSAPrivateKey


def csr(key: Key | None = None, san: str = "") -> str:
    key = key or new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "whoever")] if san else [])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    if san:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(san)])
        builder = builder.add_extension(names, critical=False)
        builder = builder.add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM).decode()


class Ca:
    """A service for one pod on one node."""

    def __init__(self, state: Path) -> None:
        now = datetime.datetime.now(datetime.UTC)
        self.authority = open_state(state, "cluster.local", now)
        self.metrics = ControlPlaneMetrics()
        directory = directory_of(POD)
        self.service = CertificateService(
            AuthorityHolder(self.authority),
            TokenVerifier(SIGNER.public_key),
            Admission("cluster.local", frozenset({"istio-system/ztunnel"})),
            lambda: directory,
            self.metrics,
        )

    def ask(
        self,
        impersonated: str | None = WEB,
        *,
        request_csr: str | None = None,
        seconds: int = 0,
        subject: TokenSubject | None = None,
        token: str | None = None,
    ) -> list[str]:
        subject = subject or TokenSubject("istio-system", "ztunnel", node="node-a")
        request = IstioCertificateRequest(
            csr=csr() if request_csr is None else request_csr, validity_duration=seconds
        )
        if impersonated is not None:
            request.metadata["ImpersonatedIdentity"] = impersonated
        token = SIGNER.mint(subject, time.time(), 60.0) if token is None else token
        metadata = [("authorization", f"Bearer {token}")]
        return list(self.service.create(request, metadata, "test").cert_chain)


@pytest.fixture
def ca(tmp_path: Path) -> Ca:
    return Ca(tmp_path / "ca")


def uris(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return names.value.get_values_for_type(x509.UniformResourceIdentifier)


def test_a_workload_certificate(ca: Ca) -> None:
    key = new_key()
    leaf_pem, intermediate_pem, roots_pem = ca.ask(request_csr=csr(key))
    leaf = x509.load_pem_x509_certificate(leaf_pem.encode())
    now = datetime.datetime.now(datetime.UTC)
    assert uris(leaf) == [WEB]
    assert leaf.public_key() == key.public_key()
    assert list(leaf.subject) == []
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.digital_signature, usage.key_encipherment, usage.key_cert_sign) == (
        True,
        True,
        False,
    )
    assert set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    life = leaf.not_valid_after_utc - now
    assert datetime.timedelta(hours=23, minutes=59) < life <= datetime.timedelta(hours=24)
    backdated = now - leaf.not_valid_before_utc
    assert datetime.timedelta(minutes=2) <= backdated < datetime.timedelta(minutes=3)
    assert intermediate_pem == ca.authority.chain_pem[0]
    assert roots_pem == ca.authority.roots_pem
    assert b"ambient_certificates_signed_total 1.0" in ca.metrics.render(0)


def test_names_in_the_request_are_ignored(ca: Ca) -> None:
    evil = "spiffe://cluster.local/ns/istio-system/sa/root"
    leaf = x509.load_pem_x509_certificate(ca.ask(request_csr=csr(san=evil))[0].encode())
    assert uris(leaf) == [WEB]
    assert list(leaf.subject) == []
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_without_impersonation_it_is_the_callers_own_identity(ca: Ca) -> None:
    leaf = x509.load_pem_x509_certificate(ca.ask(None)[0].encode())
    assert uris(leaf) == ["spiffe://cluster.local/ns/istio-system/sa/ztunnel"]


def test_a_lifetime_that_was_asked_for(ca: Ca) -> None:
    leaf = x509.load_pem_x509_certificate(ca.ask(seconds=600)[0].encode())
    life = leaf.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(seconds=590) < life <= datetime.timedelta(seconds=600)


def test_serial_numbers_differ(ca: Ca) -> None:
    serials = {x509.load_pem_x509_certificate(ca.ask()[0].encode()).serial_number for _ in "123"}
    assert len(serials) == 3


def forged() -> str:
    """A request with the key of somebody else in it."""

    def point(key: ec.EllipticCurvePrivateKey) -> bytes:
        public = key.public_key()
        return public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

    own, other = new_key(), new_key()
    der = x509.load_pem_x509_csr(csr(own).encode()).public_bytes(Encoding.DER)
    assert point(own) in der
    changed = x509.load_der_x509_csr(der.replace(point(own), point(other)))
    return changed.public_bytes(Encoding.PEM).decode()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ({"token": "x.y.z"}, grpc.StatusCode.UNAUTHENTICATED, "the token is not valid"),
        ({"token": ""}, grpc.StatusCode.UNAUTHENTICATED, "the token is not valid"),
        (
            {"impersonated": "spiffe://cluster.local/ns/shop/sa/db"},
            grpc.StatusCode.PERMISSION_DENIED,
            "no pod of shop/db lives on node-a",
        ),
        (
            {
                "subject": TokenSubject("shop", "web", node="node-a"),
                "impersonated": "spiffe://cluster.local/ns/shop/sa/db",
            },
            grpc.StatusCode.PERMISSION_DENIED,
            "shop/web is not a node proxy",
        ),
        ({"impersonated": ""}, grpc.StatusCode.INVALID_ARGUMENT, "ImpersonatedIdentity is empty"),
        ({"request_csr": ""}, grpc.StatusCode.INVALID_ARGUMENT, "not a CSR in PEM"),
        ({"request_csr": "é" * 70_000}, grpc.StatusCode.INVALID_ARGUMENT, "too long"),
        ({"request_csr": forged()}, grpc.StatusCode.INVALID_ARGUMENT, "signature does not"),
        (
            {"request_csr": csr(rsa.generate_private_key(65537, 1024))},
            grpc.StatusCode.INVALID_ARGUMENT,
            "an RSA key of 1024 bits",
        ),
        (
            {"request_csr": csr(ec.generate_private_key(ec.SECP256K1()))},
            grpc.StatusCode.INVALID_ARGUMENT,
            "a key on the curve secp256k1",
        ),
        (
            {"request_csr": csr(dsa.generate_private_key(2048))},
            grpc.StatusCode.INVALID_ARGUMENT,
            "a key of a kind that is not supported",
        ),
        ({"seconds": -1}, grpc.StatusCode.INVALID_ARGUMENT, "a lifetime of -1 s"),
        (
            {"seconds": 90 * 86400 + 1},
            grpc.StatusCode.INVALID_ARGUMENT,
            r"a lifetime of 7776001 s \(longest: 7776000 s\)",
        ),
    ],
)
def test_refusals_have_a_status_a_reason_and_a_line_in_the_log(
    ca: Ca,
    caplog: pytest.LogCaptureFixture,
    arguments: dict[str, str],
    status: grpc.StatusCode,
    message: str,
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(RefusalError, match=message) as caught:
        ca.ask(**arguments)  # type: ignore[arg-type]
    assert caught.value.status is status
    (record,) = [item for item in caplog.records if "certificate refused" in item.getMessage()]
    assert record.levelno == logging.WARNING
    assert b"ambient_certificates_refused_total{" in ca.metrics.render(0)


def test_the_log_says_what_is_wrong_with_a_token_and_the_client_does_not_hear_it(
    ca: Ca, caplog: pytest.LogCaptureFixture
) -> None:
    expired = SIGNER.mint(TokenSubject("a", "b"), time.time() - 3600, 60.0)
    with pytest.raises(RefusalError) as caught:
        ca.ask(token=expired)
    assert "expired" not in str(caught.value)
    assert "expired" in caplog.text


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
)
def test_keys_of_other_kinds(ca: Ca, key: Key) -> None:
    leaf = x509.load_pem_x509_certificate(ca.ask(request_csr=csr(key))[0].encode())
    assert leaf.public_key() == key.public_key()


def test_a_certificate_is_no_request() -> None:
    with pytest.raises(CsrError, match="not a CSR in PEM"):
        public_key_of(
            "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"
        )
