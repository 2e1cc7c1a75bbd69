"""An authority in force: who signs, and which roots are to be trusted."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from daemonset.control_plane.ca.issuer import (
    AuthorityError,
    Issuer,
    certificates_from_pem,
    key_from_pem,
    to_pem,
)


@dataclass(frozen=True, slots=True)
class Authority:
    """``chain_pem`` has one certificate per element; ``roots_pem`` all roots in one."""

    issuer: Issuer
    roots: tuple[x509.Certificate, ...]

    @property
    def chain_pem(self) -> list[str]:
        return [to_pem(certificate) for certificate in self.issuer.chain]

    @property
    def roots_pem(self) -> str:
        return "".join(to_pem(certificate) for certificate in self.roots)


class AuthorityHolder:
    """The authority in force, which rotation replaces while others sign. Any thread."""

    def __init__(self, authority: Authority) -> None:
        self._lock = threading.Lock()
        self._authority = authority

    def get(self) -> Authority:
        with self._lock:
            return self._authority

    def replace(self, authority: Authority) -> None:
        with self._lock:
            self._authority = authority


def build(
    key_pem: bytes,
    certificates: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    place: str,
    now: datetime.datetime,
) -> Authority:
    """Check that all of it fits together.

    Args:
        certificates: that of the key first, then those up to a root; roots among them are left out.
        place: what to name in errors.

    Raises:
        AuthorityError: saying what does not fit.
    """
    if not certificates:
        raise AuthorityError(f"{place}: holds no certificate")
    if not roots:
        raise AuthorityError(f"{place}: holds no root certificate")
    key = key_from_pem(key_pem, place)
    own = certificates[0]
    if own.public_key() != key.public_key():
        raise AuthorityError(f"{place}: the key does not belong to the first certificate")
    _check_authority(own, place, now)
    chain = [item for item in certificates if item.issuer != item.subject]
    previous = own
    for item in chain[1:]:
        _check_issued(previous, item, place)
        _check_authority(item, place, now)
        previous = item
    if own in roots:
        return Authority(Issuer(key, (), own), tuple(dict.fromkeys(roots)))
    if not any(is_issued(previous, root) for root in roots):
        raise AuthorityError(f"{place}: no root has issued {previous.subject.rfc4514_string()}")
    return Authority(Issuer(key, tuple(chain), own), tuple(dict.fromkeys(roots)))


def _check_authority(certificate: x509.Certificate, place: str, now: datetime.datetime) -> None:
    name = certificate.subject.rfc4514_string()
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        constraints = x509.BasicConstraints(ca=False, path_length=None)
    if not constraints.ca:
        raise AuthorityError(f"{place}: {name} is not a CA certificate")
    try:
        certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        raise AuthorityError(f"{place}: {name} has no subject key identifier") from None
    if certificate.not_valid_after_utc <= now:
        raise AuthorityError(f"{place}: {name} expired at {certificate.not_valid_after_utc}")


def _check_issued(child: x509.Certificate, parent: x509.Certificate, place: str) -> None:
    if not is_issued(child, parent):
        child_name, name = child.subject.rfc4514_string(), parent.subject.rfc4514_string()
        raise AuthorityError(f"{place}: {child_name} was not issued by {name}, which follows it")


def is_issued(child: x509.Certificate, parent: x509.Certificate) -> bool:
    """Is the child signed by the parent's key?"""
    try:
        child.verify_directly_issued_by(parent)
    except (InvalidSignature, TypeError, ValueError):  # another key, another kind of key or name
        return False
    return True


def load_given(folder: Path, now: datetime.datetime) -> Authority:
    """An authority that the user brings, in the layout of Istio's ``cacerts`` secret:
    ca-cert.pem, ca-key.pem, root-cert.pem and, where there is more between, cert-chain.pem.

    Raises:
        AuthorityError: something is missing or does not fit.
        OSError: a file cannot be read.
    """
    own = certificates_from_pem((folder / "ca-cert.pem").read_bytes(), f"{folder}/ca-cert.pem")
    roots = certificates_from_pem(
        (folder / "root-cert.pem").read_bytes(), f"{folder}/root-cert.pem"
    )
    chain_file = folder / "cert-chain.pem"
    chain = own
    if chain_file.exists():
        chain = certificates_from_pem(chain_file.read_bytes(), str(chain_file))
        if chain[0] != own[0]:
            chain = [own[0], *chain]
    return build((folder / "ca-key.pem").read_bytes(), chain, roots, str(folder), now)
