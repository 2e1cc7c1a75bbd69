"""Who is at the other end: SPIFFE identities in certificates, and whom to accept.

The certificate chain itself was verified by OpenSSL against the mesh's roots before anything
here runs. There are no host names in this: a workload's name is the URI in its certificate
(SPIFFE X.509-SVID, section 2).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509

from ztunnel.mesh.identity import Identity, IdentityError
from ztunnel.tls.crl import RevocationList
from ztunnel.tls.errors import Alert, PeerRefused

_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """What the peer proved in the handshake.

    Attributes:
        chain: DER, leaf first, up to the trust anchor that was used; the leaf alone where the
            `ssl` module does not tell.
        uris: the URI subject alternative names of the leaf, in order.
        identity: the first of them that is a workload's identity.
        serial: serial number of the leaf.
        not_after: when the leaf expires, seconds since the epoch.
    """

    chain: tuple[bytes, ...]
    uris: tuple[str, ...]
    identity: Identity | None
    serial: int
    not_after: float

    @property
    def leaf(self) -> bytes:
        """The peer's own certificate, DER."""
        return self.chain[0]

    @property
    def presented(self) -> str:
        """For messages: what the certificate says about who this is."""
        return ", ".join(self.uris) or "no URI in its certificate"


# Certificates repeat: each peer shows the same one until it is renewed.
_known: dict[tuple[bytes, ...], PeerCertificate] = {}


def peer_certificate(chain: tuple[bytes, ...]) -> PeerCertificate:
    """Read the leaf of a verified chain. Remembers what it read.

    Args:
        chain: DER certificates, leaf first.

    Raises:
        PeerRefused: the leaf cannot be read (bad_certificate).
    """
    found = _known.get(chain)
    if found is None:
        found = _read(chain)
        if len(_known) >= _REMEMBERED:
            del _known[next(iter(_known))]
        _known[chain] = found
    return found


def _read(chain: tuple[bytes, ...]) -> PeerCertificate:
    try:
        leaf = x509.load_der_x509_certificate(chain[0])
        uris = uri_names(leaf)
        expires = leaf.not_valid_after_utc.timestamp()
    except (ValueError, TypeError, x509.InvalidVersion, x509.UnsupportedGeneralNameType) as error:
        words = f"the peer's certificate cannot be read: {error}"
        raise PeerRefused(Alert.BAD_CERTIFICATE, words) from error
    return PeerCertificate(chain, uris, first_identity(uris), leaf.serial_number, expires)


def uri_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The URI subject alternative names of a certificate.

    Raises:
        ValueError: its extensions cannot be read.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    except x509.DuplicateExtension as error:
        raise ValueError(str(error)) from error
    return tuple(names.value.get_values_for_type(x509.UniformResourceIdentifier))


def first_identity(uris: Iterable[str]) -> Identity | None:
    """The first URI that is a workload's identity; others may stand beside it."""
    for uri in uris:
        try:
            return Identity.parse(uri)
        except IdentityError:
            continue
    return None


def refuse_revoked(peer: PeerCertificate, revocations: RevocationList | None) -> None:
    """Raises PeerRefused where a list names the peer, or an authority above it."""
    reason = revocations.revoked(peer.chain) if revocations is not None else None
    if reason is not None:
        words = f"the certificate of {peer.presented} is revoked: {reason}"
        raise PeerRefused(Alert.CERTIFICATE_REVOKED, words)


class ClientMustBe:
    """What a server asks of its clients: a workload of the mesh's trust domain.

    Args:
        trust_domains: our own and its aliases.
        revocations: certificates not to be accepted although they have not expired.
    """

    def __init__(
        self, trust_domains: Iterable[str], revocations: RevocationList | None = None
    ) -> None:
        self._trust_domains = frozenset(trust_domains)
        self._revocations = revocations

    def __call__(self, peer: PeerCertificate) -> None:
        """Accept the peer.

        Raises:
            PeerRefused: it is not of our trust domain, no workload at all, or revoked.
        """
        refuse_revoked(peer, self._revocations)
        domains = " or ".join(sorted(self._trust_domains))
        if peer.identity is None:
            raise PeerRefused(
                Alert.CERTIFICATE_UNKNOWN,
                f"expected a workload of trust domain {domains}, peer presented {peer.presented}",
            )
        if peer.identity.trust_domain not in self._trust_domains:
            raise PeerRefused(
                Alert.CERTIFICATE_UNKNOWN,
                f"expected trust domain {domains}, peer presented {peer.identity.uri}",
            )


class ServerMustBe:
    """What a client asks of the server: to be one of those the connection is meant for.

    Args:
        expected: identities, or URIs as a service's subject alternative names give them. With
            none, every server is refused.
        revocations: certificates not to be accepted although they have not expired.
    """

    def __init__(
        self, expected: Iterable[Identity | str], revocations: RevocationList | None = None
    ) -> None:
        self._expected = frozenset(
            item.uri if isinstance(item, Identity) else item for item in expected
        )
        self._revocations = revocations

    def __call__(self, peer: PeerCertificate) -> None:
        """Accept the peer.

        Raises:
            PeerRefused: it is somebody else, or revoked.
        """
        refuse_revoked(peer, self._revocations)
        if self._expected.isdisjoint(peer.uris):
            wanted = " or ".join(sorted(self._expected)) or "nobody, no identity is known"
            raise PeerRefused(
                Alert.CERTIFICATE_UNKNOWN,
                f"expected {wanted}, peer presented {peer.presented}",
            )
