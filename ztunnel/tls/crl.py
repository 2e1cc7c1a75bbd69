"""Certificate revocation lists (RFC 5280 section 5).

As in Istio, a certificate about which no list says anything is accepted, and a list past its
`nextUpdate` still counts; the log says so. `strict` turns both into refusals.
"""

import functools
import itertools
import logging
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes

log = logging.getLogger("ztunnel.tls")

_PEM = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)

# Critical extensions that we understand: none changes what the list means. An indirect or
# delta list, or one of a part of the certificates, is marked critical and must not be used as
# if it were a complete one (RFC 5280 section 5.2).
_UNDERSTOOD = frozenset(
    {x509.CRLNumber.oid, x509.AuthorityKeyIdentifier.oid, x509.IssuerAlternativeName.oid}
)


class CrlError(ValueError):
    """Revocation lists that cannot be read or not be relied on."""


@dataclass(frozen=True, slots=True)
class _Facts:
    serial: int
    issuer: bytes
    issuer_text: str


@functools.lru_cache(4096)
def _facts(der: bytes) -> _Facts:
    certificate = x509.load_der_x509_certificate(der)
    return _Facts(
        certificate.serial_number,
        certificate.issuer.public_bytes(),
        certificate.issuer.rfc4514_string(),
    )


class _Crl:
    def __init__(self, crl: x509.CertificateRevocationList) -> None:
        for extension in crl.extensions:
            if extension.critical and extension.oid not in _UNDERSTOOD:
                oid = extension.oid.dotted_string
                raise CrlError(
                    f"the list of {crl.issuer.rfc4514_string()} has the critical "
                    f"extension {oid}: only complete lists of one issuer are understood"
                )
        self.crl = crl
        self.issuer = crl.issuer.public_bytes()
        self.issuer_text = crl.issuer.rfc4514_string()
        self.revoked = {entry.serial_number: _describe(entry) for entry in crl}
        until = crl.next_update_utc
        self.expires = until.timestamp() if until is not None else float("inf")
        self.expiry_told = False
        self._signed_by: dict[bytes, bool] = {}

    def is_by(self, issuer: bytes | None) -> bool:
        """Whether the certificate `issuer` signed this list, and not merely one of its name."""
        if issuer is None:
            # Without the issuer's key at hand, believe the operator's own file.
            return True
        known = self._signed_by.get(issuer)
        if known is None:
            key = x509.load_der_x509_certificate(issuer).public_key()
            # OpenSSL verified a certificate with it, so it is a key that can sign.
            known = self.crl.is_signature_valid(cast(CertificateIssuerPublicKeyTypes, key))
            self._signed_by[issuer] = known
        return known


def _describe(entry: x509.RevokedCertificate) -> str:
    words = f"revoked on {entry.revocation_date_utc:%Y-%m-%d}"
    try:
        reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    except x509.ExtensionNotFound:
        return words
    return f"{words}, reason {reason.value}"


class RevocationList:
    """All lists of a CRL file. Immutable but for what it remembers.

    Args:
        crls: as read.
        strict: refuse certificates whose status no current list tells.
    """

    def __init__(
        self, crls: tuple[x509.CertificateRevocationList, ...] = (), *, strict: bool = False
    ) -> None:
        self._strict = strict
        self._by_issuer: dict[bytes, list[_Crl]] = {}
        for crl in crls:
            read = _Crl(crl)
            self._by_issuer.setdefault(read.issuer, []).append(read)

    @classmethod
    def parse(cls, data: bytes, *, strict: bool = False) -> "RevocationList":
        """Read PEM (any number of blocks) or DER. Empty input revokes nothing.

        Raises:
            CrlError: it is neither, or a list that is not a complete one of a single issuer.
        """
        try:
            blocks = _PEM.findall(data)
            if b"-----BEGIN" in data and data.count(b"-----BEGIN") != len(blocks):
                raise CrlError("a PEM block that is not a whole X509 CRL")
            if blocks:
                crls = tuple(x509.load_pem_x509_crl(block) for block in blocks)
            elif data.strip():
                crls = (x509.load_der_x509_crl(data),)
            else:
                crls = ()
            return cls(crls, strict=strict)
        except CrlError:
            raise
        except (ValueError, TypeError, x509.DuplicateExtension) as error:
            raise CrlError(f"not a certificate revocation list: {error}") from error

    def __len__(self) -> int:
        return sum(len(entry.revoked) for crls in self._by_issuer.values() for entry in crls)

    def revoked(self, chain: tuple[bytes, ...], now: float | None = None) -> str | None:
        """Why a chain is not to be accepted, or None.

        Args:
            chain: DER, leaf first. The last one is the trust anchor, which nobody revokes,
                unless it is alone.
            now: seconds since the epoch, by default the current time.
        """
        if not self._by_issuer and not self._strict:
            return None
        moment = time.time() if now is None else now
        links: Iterable[tuple[bytes, bytes | None]] = itertools.pairwise(chain)
        if len(chain) == 1:
            links = [(chain[0], None)]
        try:
            for certificate, issuer in links:
                reason = self._status(certificate, issuer, moment)
                if reason is not None:
                    return reason
        except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
            return f"a certificate of the chain cannot be looked up: {error}"
        return None

    def _status(self, certificate: bytes, issuer: bytes | None, now: float) -> str | None:
        facts = _facts(certificate)
        current = False
        for entry in self._by_issuer.get(facts.issuer, ()):
            if not entry.is_by(issuer):
                continue
            if facts.serial in entry.revoked:
                words = entry.revoked[facts.serial]
                return f"serial number {facts.serial} of {facts.issuer_text} was {words}"
            if entry.expires > now:
                current = True
            elif not entry.expiry_told:
                entry.expiry_told = True
                until = datetime.fromtimestamp(entry.expires, UTC)
                log.warning(
                    "the revocation list of %s expired at %s and is still used: it may be "
                    "missing newer revocations",
                    entry.issuer_text,
                    f"{until:%Y-%m-%dT%H:%M:%SZ}",
                )
        if self._strict and not current:
            return (
                f"no current revocation list of {facts.issuer_text} tells about serial number "
                f"{facts.serial}, and the mesh is configured to want one"
            )
        return None


class CrlFile:
    """A CRL file that may appear, change and disappear. Poll `refresh` every few seconds.

    Attributes:
        current: the lists in force; the last good ones while the file cannot be read.
        data: the bytes they were read from, to hand to other processes.
    """

    def __init__(self, path: str | os.PathLike[str], *, strict: bool = False) -> None:
        self._path = Path(path)
        self._strict = strict
        self._seen: tuple[int, int, int] | None = None
        self.data = b""
        self.current = RevocationList(strict=strict)

    def refresh(self) -> bool:
        """Read the file if it changed. Returns whether `current` is new."""
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_ino, status.st_size)
            if seen == self._seen:
                return False
            data = self._path.read_bytes()
        except FileNotFoundError:
            seen, data = None, b""
        except OSError as error:
            log.error("cannot read the revocation lists of %s: %s", self._path, error)
            return False
        self._seen = seen
        if data == self.data:
            return False
        try:
            self.current = RevocationList.parse(data, strict=self._strict)
        except CrlError as error:
            log.error("%s is not used, the last good lists stay in force: %s", self._path, error)
            return False
        self.data = data
        log.info("%s revokes %d certificates", self._path, len(self.current))
        return True
