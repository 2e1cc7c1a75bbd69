"""The authority's own keys under a state folder, and their rotation.

Each root is a generation, a folder of its own that is created whole and never changed, except
that its intermediate is renewed. Generations overlap: a new root is handed out with every
certificate for ``overlap`` before anything is signed below it, so that every workload has renewed
and trusts it by then; the old one stays among the roots until it expires.
"""

from __future__ import annotations

import datetime
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from daemonset.control_plane.ca.authority import Authority, build
from daemonset.control_plane.ca.issuer import (
    AuthorityError,
    Issuer,
    certificates_from_pem,
    key_from_pem,
    key_to_pem,
    new_root,
    to_pem,
)
from daemonset.control_plane.ca.private_files import (
    create_folder,
    make_private_folder,
    read_private,
    write_private,
)

OVERLAP = datetime.timedelta(hours=48)
_GRACE = 0.2  # share of a root's life that is left when the next one is made
_FOLDER = re.compile(r"root-(\d{14})")

_log = logging.getLogger("daemonset.control_plane.ca")


@dataclass(frozen=True, slots=True)
class Generation:
    """One root."""

    folder: Path
    made_at: datetime.datetime
    root: x509.Certificate


def open_state(
    state: Path, trust_domain: str, now: datetime.datetime, overlap: datetime.timedelta = OVERLAP
) -> Authority:
    """The authority kept under ``state``, made if there is none, rotated if it is time.

    Raises:
        AuthorityError: what is there does not fit together.
        UnsafeFileError: it is open to others.
        OSError: it cannot be read or written.
    """
    make_private_folder(state)
    generations = _list(state, now)
    if not generations or _is_old(generations[-1].root, now):
        _make(state, trust_domain, now)
        generations = _list(state, now)
    signer = _signer(generations, now, overlap)
    roots = [generation.root for generation in reversed(generations)]
    # The signer's root first: clients that read only one read that.
    roots.sort(key=lambda root: root is not signer.root)
    return _open(signer, trust_domain, roots, now)


def rotate(state: Path, trust_domain: str, now: datetime.datetime) -> None:
    """Make a new root now; it signs once it has been handed out for the overlap.

    Raises:
        OSError: it cannot be written.
    """
    make_private_folder(state)
    _make(state, trust_domain, now)


def _signer(
    generations: list[Generation], now: datetime.datetime, overlap: datetime.timedelta
) -> Generation:
    ripe = [generation for generation in generations if generation.made_at + overlap <= now]
    return ripe[-1] if ripe else generations[0]


def _is_old(root: x509.Certificate, now: datetime.datetime) -> bool:
    life = root.not_valid_after_utc - root.not_valid_before_utc
    return now >= root.not_valid_after_utc - life * _GRACE


def _list(state: Path, now: datetime.datetime) -> list[Generation]:
    """The generations that have not expired, oldest first."""
    found: list[Generation] = []
    for folder in sorted(state.iterdir()):
        match = _FOLDER.fullmatch(folder.name)
        if match is None:
            continue
        made_at = datetime.datetime.strptime(match[1], "%Y%m%d%H%M%S").replace(tzinfo=datetime.UTC)
        path = folder / "root-cert.pem"
        certificates = certificates_from_pem(path.read_bytes(), str(path))
        if not certificates:
            raise AuthorityError(f"{path}: holds no certificate")
        if certificates[0].not_valid_after_utc > now:
            found.append(Generation(folder, made_at, certificates[0]))
    return found


def _make(state: Path, trust_domain: str, now: datetime.datetime) -> None:
    stamp = now.strftime("%Y%m%d%H%M%S")
    root_key, root = new_root(f"{trust_domain} root {stamp}", now)
    key, certificate = Issuer(root_key, (), root).new_intermediate(
        f"{trust_domain} intermediate {stamp}", now
    )
    files = {
        "root-key.pem": key_to_pem(root_key),
        "root-cert.pem": to_pem(root).encode(),
        "ca.pem": key_to_pem(key) + to_pem(certificate).encode(),
    }
    if create_folder(state / f"root-{stamp}", files):
        _log.info("made root %s, valid until %s", root.subject.rfc4514_string(), _end(root))


def _open(
    generation: Generation,
    trust_domain: str,
    roots: list[x509.Certificate],
    now: datetime.datetime,
) -> Authority:
    # Key and certificate of the intermediate share one file, so that renewal replaces both at once.
    path = generation.folder / "ca.pem"
    data = read_private(path)
    certificates = certificates_from_pem(data, str(path))
    if not certificates or _needs_renewal(certificates[0], generation.root, now):
        place = str(generation.folder / "root-key.pem")
        root_key = key_from_pem(read_private(generation.folder / "root-key.pem"), place)
        issuer = Issuer(root_key, (), generation.root)
        stamp = now.strftime("%Y%m%d%H%M%S")
        key, certificate = issuer.new_intermediate(f"{trust_domain} intermediate {stamp}", now)
        data = key_to_pem(key) + to_pem(certificate).encode()
        write_private(path, data)
        _log.info("made intermediate %s", certificate.subject.rfc4514_string())
        certificates = [certificate]
    return build(data, certificates, roots, str(path), now)


def _needs_renewal(
    certificate: x509.Certificate, root: x509.Certificate, now: datetime.datetime
) -> bool:
    # One that ends with its root gains nothing by renewal.
    if certificate.not_valid_after_utc >= root.not_valid_after_utc:
        return False
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return now >= certificate.not_valid_before_utc + life * 2 / 3


def _end(certificate: x509.Certificate) -> str:
    return certificate.not_valid_after_utc.isoformat()
