"""An authority that the user brings."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509

from daemonset.control_plane.ca.authority import load_given
from daemonset.control_plane.ca.issuer import (
    AuthorityError,
    Issuer,
    key_to_pem,
    new_key,
    new_root,
    to_pem,
)

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


class Pki:
    """Root, policy authority, intermediate: three levels, the last one to be used."""

    def __init__(self) -> None:
        self.root_key, self.root = new_root("corp", NOW)
        # new_intermediate makes authorities that cannot have another below them, so the middle
        # is made as a root is and signed by the root.
        self.key, self.certificate = Issuer(self.root_key, (), self.root).new_intermediate(
            "mesh", NOW
        )

    def write(self, folder: Path, **files: bytes) -> Path:
        everything = {
            "ca-key.pem": key_to_pem(self.key),
            "ca-cert.pem": to_pem(self.certificate).encode(),
            "cert-chain.pem": to_pem(self.certificate).encode(),
            "root-cert.pem": to_pem(self.root).encode(),
        }
        everything.update({name.replace("_", "-") + ".pem": data for name, data in files.items()})
        for name, data in everything.items():
            if data:
                (folder / name).write_bytes(data)
        return folder


@pytest.fixture
def pki() -> Pki:
    return Pki()


def issued(folder: Path) -> x509.Certificate:
    authority = load_given(folder, NOW)
    uri, day = "spiffe://a/ns/b/sa/c", datetime.timedelta(days=1)
    return authority.issuer.workload(new_key().public_key(), uri, day, NOW)


def test_the_layout_of_cacerts(pki: Pki, tmp_path: Path) -> None:
    authority = load_given(pki.write(tmp_path), NOW)
    assert authority.chain_pem == [to_pem(pki.certificate)]
    assert authority.roots_pem == to_pem(pki.root)
    issued(tmp_path).verify_directly_issued_by(pki.certificate)


def test_the_chain_may_hold_the_root_or_be_missing(pki: Pki, tmp_path: Path) -> None:
    chain = (to_pem(pki.certificate) + to_pem(pki.root)).encode()
    assert load_given(pki.write(tmp_path, cert_chain=chain), NOW).chain_pem == [
        to_pem(pki.certificate)
    ]
    (tmp_path / "cert-chain.pem").unlink()
    assert load_given(tmp_path, NOW).chain_pem == [to_pem(pki.certificate)]
    only_root = pki.write(tmp_path, cert_chain=to_pem(pki.root).encode())
    assert load_given(only_root, NOW).chain_pem == [to_pem(pki.certificate)]


def test_the_authority_may_be_the_root_itself(pki: Pki, tmp_path: Path) -> None:
    folder = pki.write(
        tmp_path,
        ca_cert=to_pem(pki.root).encode(),
        ca_key=key_to_pem(pki.root_key),
        cert_chain=b"",
    )
    assert load_given(folder, NOW).chain_pem == []
    issued(folder).verify_directly_issued_by(pki.root)


def test_several_roots_are_handed_out_together(pki: Pki, tmp_path: Path) -> None:
    _, other = new_root("other", NOW)
    roots = (to_pem(pki.root) + to_pem(other)).encode()
    assert load_given(pki.write(tmp_path, root_cert=roots), NOW).roots_pem == roots.decode()


def test_what_does_not_fit_is_named(pki: Pki, tmp_path: Path) -> None:
    stranger_key, stranger = new_root("stranger", NOW)
    cases = [
        ({"ca_key": key_to_pem(stranger_key)}, "the key does not belong to the first certificate"),
        ({"root_cert": to_pem(stranger).encode()}, "no root has issued CN=mesh"),
        ({"root_cert": b"x"}, "root-cert.pem: not certificates in PEM"),
        ({"ca_key": b"x"}, "not a private key in PEM"),
    ]
    for files, message in cases:
        with pytest.raises(AuthorityError, match=message):
            load_given(pki.write(tmp_path, **files), NOW)
    middle = (to_pem(pki.certificate) + to_pem(leaf(pki))).encode()
    with pytest.raises(AuthorityError, match="was not issued by"):
        load_given(pki.write(tmp_path, cert_chain=middle), NOW)
    with pytest.raises(AuthorityError, match="is not a CA certificate"):
        load_given(pki.write(tmp_path, ca_cert=to_pem(leaf(pki)).encode(), cert_chain=b""), NOW)
    with pytest.raises(AuthorityError, match="expired"):
        load_given(pki.write(tmp_path), NOW + datetime.timedelta(days=800))
    (tmp_path / "ca-key.pem").unlink()
    with pytest.raises(FileNotFoundError):
        load_given(tmp_path, NOW)


def leaf(pki: Pki) -> x509.Certificate:
    """A certificate of the same key that is no authority."""
    issuer = Issuer(pki.root_key, (), pki.root)
    day = datetime.timedelta(days=1)
    return issuer.workload(pki.key.public_key(), "spiffe://a/ns/b/sa/c", day, NOW)
