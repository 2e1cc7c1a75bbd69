"""Certificates of the authority itself, and issuing with them."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey

BACKDATE = datetime.timedelta(minutes=2)
ROOT_LIFETIME = datetime.timedelta(days=3650)
INTERMEDIATE_LIFETIME = datetime.timedelta(days=730)


class AuthorityError(Exception):
    """Certificates or keys that do not make an authority."""


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: PrivateKey) -> bytes:
    """PKCS#8, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def key_from_pem(data: bytes, place: str) -> PrivateKey:
    """Raises AuthorityError, naming ``place``."""
    try:
        key = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError) as error:
        raise AuthorityError(f"{place}: not a private key in PEM: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise AuthorityError(f"{place}: must be an EC or RSA key")
    return key


def certificates_from_pem(data: bytes, place: str) -> list[x509.Certificate]:
    """Raises AuthorityError, naming ``place``."""
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise AuthorityError(f"{place}: not certificates in PEM: {error}") from None


def to_pem(certificate: x509.Certificate) -> str:
    """Ends in a newline."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def new_root(
    common_name: str, now: datetime.datetime
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """A self-signed root."""
    key = new_key()
    name = _name(common_name)
    certificate = _authority_builder(name, key.public_key(), now, now + ROOT_LIFETIME, None)
    certificate = certificate.issuer_name(name)
    return key, certificate.sign(key, hashes.SHA256())


@dataclass(frozen=True, slots=True)
class Issuer:
    """A key that signs, and its chain up to (without) the root; ``chain[0]`` is its own."""

    # Keys have no equality of their own; the certificate names the key as well.
    key: PrivateKey = field(compare=False)
    chain: tuple[x509.Certificate, ...]
    certificate: x509.Certificate

    def new_intermediate(
        self, common_name: str, now: datetime.datetime
    ) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        """An authority below this one that signs end certificates only."""
        key = new_key()
        end = min(now + INTERMEDIATE_LIFETIME, self.certificate.not_valid_after_utc)
        builder = _authority_builder(_name(common_name), key.public_key(), now, end, 0)
        return key, self._sign(builder)

    def workload(
        self,
        public_key: PublicKey,
        identity_uri: str,
        lifetime: datetime.timedelta,
        now: datetime.datetime,
    ) -> x509.Certificate:
        """A certificate for one SPIFFE identity, for both ends of TLS."""
        builder = _builder(x509.Name([]), public_key, now, self._end(now, lifetime))
        # The subject is empty: the SAN alone has the name, and must be critical (RFC 5280 4.2.1.6).
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity_uri)])
        builder = builder.add_extension(names, critical=True)
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return self._sign(_end_entity(builder, usages))

    def server(
        self,
        public_key: PublicKey,
        names: Sequence[str],
        lifetime: datetime.timedelta,
        now: datetime.datetime,
    ) -> x509.Certificate:
        """A certificate for a server with these host names and IP addresses."""
        builder = _builder(_name(names[0]), public_key, now, self._end(now, lifetime))
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
        builder = builder.add_extension(alternatives, critical=False)
        return self._sign(_end_entity(builder, [ExtendedKeyUsageOID.SERVER_AUTH]))

    def _end(self, now: datetime.datetime, lifetime: datetime.timedelta) -> datetime.datetime:
        ends = [certificate.not_valid_after_utc for certificate in self.chain]
        return min([now + lifetime, self.certificate.not_valid_after_utc, *ends])

    def _sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        identifier = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier.value)
        builder = builder.issuer_name(self.certificate.subject)
        builder = builder.add_extension(authority, critical=False)
        return builder.sign(self.key, hashes.SHA256())


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "ambientd"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64]),
        ]
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _builder(
    subject: x509.Name,
    public_key: PublicKey,
    now: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(end)
    )


def _authority_builder(
    subject: x509.Name,
    public_key: PublicKey,
    now: datetime.datetime,
    end: datetime.datetime,
    path_length: int | None,
) -> x509.CertificateBuilder:
    usage = _key_usage(key_cert_sign=True, crl_sign=True)
    return (
        _builder(subject, public_key, now, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _end_entity(
    builder: x509.CertificateBuilder, usages: list[x509.ObjectIdentifier]
) -> x509.CertificateBuilder:
    usage = _key_usage(digital_signature=True, key_encipherment=True)
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    )


def _key_usage(
    *,
    digital_signature: bool = False,
    key_encipherment: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
