"""A workload's certificate with its key and the roots it came with."""

import dataclasses
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ztunnel.mesh.identity import Identity

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class CertificateError(ValueError):
    """What a CA answered is not a certificate for whom it was asked."""


@dataclass(frozen=True)
class WorkloadCertificate:
    """One identity's certificate.

    Attributes:
        identity: whose it is.
        private_key_pem: PKCS#8, never shown.
        chain_pem: leaf first, then intermediates.
        roots_pem: everything the mesh trusts, possibly several roots while they rotate.
        not_before: seconds since the epoch.
        not_after: seconds since the epoch.
        serial: serial number of the leaf.
    """

    identity: Identity
    private_key_pem: bytes = field(repr=False)
    chain_pem: bytes = field(repr=False)
    roots_pem: bytes = field(repr=False)
    not_before: float
    not_after: float
    serial: int

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything in it, hexadecimal."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @functools.cached_property
    def chain(self) -> tuple[bytes, ...]:
        """DER, leaf first, then intermediates, then the root that the chain ends in."""
        certificates = _split(self.chain_pem.decode("ascii"))
        anchor = self._anchor
        if anchor is not None and anchor != certificates[-1]:
            certificates = [*certificates, anchor]
        return tuple(item.public_bytes(serialization.Encoding.DER) for item in certificates)

    @property
    def anchored(self) -> bool:
        """Whether the chain ends in one of the roots, so that peers with them accept it."""
        return self._anchor is not None

    @functools.cached_property
    def _anchor(self) -> x509.Certificate | None:
        last = _split(self.chain_pem.decode("ascii"))[-1]
        roots = _split(self.roots_pem.decode("ascii"))
        return last if last in roots else _issuer_among(last, roots)

    def with_roots(self, roots_pem: bytes) -> "WorkloadCertificate":
        """The same certificate, trusting other roots."""
        return dataclasses.replace(self, roots_pem=roots_pem)

    def to_bytes(self) -> bytes:
        """For another process. `from_bytes` reads it back."""
        return json.dumps(
            {
                "identity": self.identity.uri,
                "private_key": self.private_key_pem.decode("ascii"),
                "chain": self.chain_pem.decode("ascii"),
                "roots": self.roots_pem.decode("ascii"),
                "not_before": self.not_before,
                "not_after": self.not_after,
                "serial": str(self.serial),
            }
        ).encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes) -> "WorkloadCertificate":
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            fields = json.loads(data)
            return cls(
                identity=Identity.parse(fields["identity"]),
                private_key_pem=fields["private_key"].encode("ascii"),
                chain_pem=fields["chain"].encode("ascii"),
                roots_pem=fields["roots"].encode("ascii"),
                not_before=float(fields["not_before"]),
                not_after=float(fields["not_after"]),
                serial=int(fields["serial"]),
            )
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a serialised workload certificate: {error!r}") from error


def make_key_and_csr(identity: Identity) -> tuple[bytes, bytes]:
    """A fresh P-256 key and a request for a certificate of `identity`.

    The subject is empty and the identity stands in the one URI name, which is therefore
    critical (RFC 5280 section 4.2.1.6, SPIFFE X.509-SVID section 2).

    Returns:
        The key in PKCS#8 and the request, both PEM.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri)])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(names, critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, request.public_bytes(pem)


def from_ca_answer(
    identity: Identity, private_key_pem: bytes, answer: Sequence[str]
) -> WorkloadCertificate:
    """Check and take over what a CA returned.

    Args:
        identity: for whom the certificate was asked.
        private_key_pem: the key that signed the request.
        answer: PEM: the leaf first, then intermediates, each signed by the one after it; the
            last element is the bundle of roots. Elements may hold several certificates.

    Raises:
        CertificateError: wrong key, wrong identity, or a chain that does not lead to a root.
    """
    if len(answer) < 2:
        raise CertificateError(f"the CA answered {len(answer)} elements: no roots to trust")
    try:
        chain = _split("\n".join(answer[:-1]))
        roots = _split(answer[-1])
        key = serialization.load_pem_private_key(private_key_pem, password=None)
        if not chain or not roots:
            raise CertificateError("the CA answered no certificate" if roots else "no root")
        leaf = chain[0]
        if leaf.public_key() != key.public_key():
            raise CertificateError("the CA certified another key than ours")
        _check_identity(leaf, identity)
    except CertificateError:
        raise
    except (ValueError, TypeError, x509.DuplicateExtension) as error:
        raise CertificateError(f"the CA's answer cannot be read: {error}") from error
    _check_order(chain, roots)
    return WorkloadCertificate(
        identity=identity,
        private_key_pem=private_key_pem,
        chain_pem=_join(chain),
        roots_pem=_join(roots),
        not_before=leaf.not_valid_before_utc.timestamp(),
        not_after=leaf.not_valid_after_utc.timestamp(),
        serial=leaf.serial_number,
    )


def _check_identity(leaf: x509.Certificate, identity: Identity) -> None:
    try:
        extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        raise CertificateError(
            f"the CA was asked for {identity.uri} and named nobody in the certificate"
        ) from None
    names = extension.value.get_values_for_type(x509.UniformResourceIdentifier)
    if names != [identity.uri]:
        raise CertificateError(
            f"the CA was asked for {identity.uri} and certified {', '.join(names) or 'no URI'}"
        )


def _check_order(chain: list[x509.Certificate], roots: list[x509.Certificate]) -> None:
    for position, (certificate, issuer) in enumerate(itertools.pairwise(chain)):
        if not _issued(certificate, issuer):
            raise CertificateError(
                f"the CA's chain is out of order: certificate {position}, "
                f"{_name(certificate.subject)}, is not signed by the next, {_name(issuer.subject)}"
            )
    if chain[-1] not in roots and _issuer_among(chain[-1], roots) is None:
        raise CertificateError(
            f"none of the CA's {len(roots)} roots signed the end of its chain, "
            f"which wants {_name(chain[-1].issuer)}"
        )


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _issuer_among(
    certificate: x509.Certificate, candidates: list[x509.Certificate]
) -> x509.Certificate | None:
    return next((item for item in candidates if _issued(certificate, item)), None)


def _name(name: x509.Name) -> str:
    return name.rfc4514_string() or "no name"


def _split(pem: str) -> list[x509.Certificate]:
    return [x509.load_pem_x509_certificate(block.encode("ascii")) for block in _PEM.findall(pem)]


def _join(certificates: list[x509.Certificate]) -> bytes:
    return b"".join(item.public_bytes(serialization.Encoding.PEM) for item in certificates)
