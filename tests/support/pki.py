"""Certificate authorities and workload certificates for tests: good ones and each kind of bad."""

import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ztunnel.mesh.identity import Identity
from ztunnel.tls.workload_certificate import WorkloadCertificate, from_ca_answer, make_key_and_csr

DAY = 86400.0


def when(seconds: float) -> datetime.datetime:
    """Seconds since the epoch as certificates want it."""
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)


def pem(certificate: x509.Certificate) -> str:
    """One certificate as text."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


@dataclass(frozen=True)
class Authority:
    """A CA: its certificate and key, and the authorities above it (nearest first)."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    parents: tuple["Authority", ...] = ()

    @property
    def root(self) -> x509.Certificate:
        return self.parents[-1].certificate if self.parents else self.certificate

    def intermediate(self, name: str = "intermediate") -> "Authority":
        """A CA below this one."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _ca_certificate(name, key.public_key(), self.certificate.subject, self.key)
        return Authority(certificate, key, (self, *self.parents))

    def chain_above_leaf(self) -> list[x509.Certificate]:
        """Intermediates from this one up, without the root."""
        everyone = (self, *self.parents)
        return [authority.certificate for authority in everyone[:-1]]

    def sign_csr(
        self,
        csr: x509.CertificateSigningRequest,
        uris: Sequence[str],
        *,
        not_before: float | None = None,
        lifetime: float = DAY,
    ) -> x509.Certificate:
        """A leaf for the request's key with these URI names."""
        start = time.time() - 120 if not_before is None else not_before
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .public_key(csr.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(when(start))
            .not_valid_after(when(start + lifetime))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
                ),
                critical=False,
            )
        )
        if uris:
            names = [x509.UniformResourceIdentifier(uri) for uri in uris]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        return builder.sign(self.key, hashes.SHA256())

    def answer(
        self,
        csr_pem: bytes,
        uris: Sequence[str],
        *,
        lifetime: float = DAY,
        start: float | None = None,
    ) -> list[str]:
        """What an Istio CA would return: leaf, intermediates, roots."""
        csr = x509.load_pem_x509_csr(csr_pem)
        leaf = self.sign_csr(csr, uris, not_before=start, lifetime=lifetime)
        return [pem(leaf), *(pem(item) for item in self.chain_above_leaf()), pem(self.root)]

    def workload(
        self, identity: Identity, *, lifetime: float = DAY, not_before: float | None = None
    ) -> WorkloadCertificate:
        """A certificate for an identity; expired with, say, `not_before=0`."""
        key, csr = make_key_and_csr(identity)
        answer = self.answer(csr, [identity.uri], lifetime=lifetime, start=not_before)
        return from_ca_answer(identity, key, answer)

    def leaf_with_uris(
        self, uris: Sequence[str], *, lifetime: float = DAY, not_before: float | None = None
    ) -> WorkloadCertificate:
        """A certificate with any URI names at all, unchecked."""
        key, csr = make_key_and_csr(Identity("cluster.local", "any", "any"))
        answer = self.answer(csr, uris, lifetime=lifetime, start=not_before)
        leaf = x509.load_pem_x509_certificate(answer[0].encode("ascii"))
        return WorkloadCertificate(
            identity=Identity("cluster.local", "any", "any"),
            private_key_pem=key,
            chain_pem="".join(answer[:-1]).encode("ascii"),
            roots_pem=answer[-1].encode("ascii"),
            not_before=leaf.not_valid_before_utc.timestamp(),
            not_after=leaf.not_valid_after_utc.timestamp(),
            serial=leaf.serial_number,
        )

    def server(self, *hosts: str) -> tuple[bytes, bytes]:
        """Key and chain, PEM, of an ordinary TLS server with these DNS names."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = time.time()
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(when(now - 120))
            .not_valid_after(when(now + DAY))
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=True
            )
            .sign(self.key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        chain = pem(leaf) + "".join(pem(item) for item in self.chain_above_leaf())
        return private, chain.encode("ascii")

    def crl(
        self, serials: Sequence[int], *, lifetime: float = DAY, last_update: float | None = None
    ) -> bytes:
        """A revocation list, PEM. Expired with, say, `last_update=0`."""
        start = time.time() - 120 if last_update is None else last_update
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(when(start))
            .next_update(when(start + lifetime))
        )
        for serial in serials:
            entry = (
                x509.RevokedCertificateBuilder()
                .serial_number(serial)
                .revocation_date(when(start))
                .add_extension(x509.CRLReason(x509.ReasonFlags.key_compromise), critical=False)
                .build()
            )
            builder = builder.add_revoked_certificate(entry)
        signed = builder.sign(self.key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)


def make_root(name: str = "root") -> Authority:
    """A self-signed CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    return Authority(_ca_certificate(name, key.public_key(), _subject(name), key), key)


def _subject(name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "cluster.local"),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _ca_certificate(
    name: str,
    public_key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    now = time.time()
    return (
        x509.CertificateBuilder()
        .subject_name(_subject(name))
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(when(0))
        .not_valid_after(when(now + 3650 * DAY))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=True,
                crl_sign=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .sign(issuer_key, hashes.SHA256())
    )
