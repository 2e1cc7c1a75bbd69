"""The authority's own keys, kept and rotated."""

from __future__ import annotations

import datetime
import os
import stat
from pathlib import Path

import pytest
from cryptography import x509

from daemonset.control_plane.ca.authority import Authority
from daemonset.control_plane.ca.generations import open_state, rotate
from daemonset.control_plane.ca.issuer import AuthorityError, new_key
from daemonset.control_plane.ca.private_files import UnsafeFileError, create_folder, write_private

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
HOUR, DAY = datetime.timedelta(hours=1), datetime.timedelta(days=1)


def open_at(state: Path, now: datetime.datetime) -> Authority:
    return open_state(state, "cluster.local", now)


def leaf(authority: Authority, now: datetime.datetime) -> x509.Certificate:
    key = new_key().public_key()
    return authority.issuer.workload(key, "spiffe://a/ns/b/sa/c", DAY, now)


def test_an_authority_is_made_once_and_kept(tmp_path: Path) -> None:
    state = tmp_path / "ca"
    first = open_at(state, NOW)
    assert open_at(state, NOW + HOUR) == open_at(state, NOW + HOUR)
    assert open_at(state, NOW + HOUR).roots == first.roots
    assert open_at(state, NOW + HOUR).issuer.chain == first.issuer.chain
    assert len(first.chain_pem) == 1
    assert first.roots_pem.count("BEGIN CERTIFICATE") == 1


def test_nobody_else_can_look(tmp_path: Path) -> None:
    open_at(tmp_path / "ca", NOW)
    for path in [tmp_path / "ca", *(tmp_path / "ca").rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_keys_that_others_can_read_are_not_used(tmp_path: Path) -> None:
    open_at(tmp_path / "ca", NOW)
    (key,) = (tmp_path / "ca").glob("*/ca.pem")
    key.chmod(0o644)
    with pytest.raises(UnsafeFileError, match=r"ca\.pem is open to others"):
        open_at(tmp_path / "ca", NOW)
    key.chmod(0o600)
    (tmp_path / "ca").chmod(0o755)
    with pytest.raises(UnsafeFileError, match="ca is open to others"):
        open_at(tmp_path / "ca", NOW)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_keys_of_somebody_else_are_not_used(tmp_path: Path) -> None:
    open_at(tmp_path / "ca", NOW)
    (key,) = (tmp_path / "ca").glob("*/ca.pem")
    os.chown(key, 12345, 12345)
    with pytest.raises(UnsafeFileError, match="belongs to user 12345"):
        open_at(tmp_path / "ca", NOW)


def test_leaf_intermediate_and_root_fit(tmp_path: Path) -> None:
    authority = open_at(tmp_path / "ca", NOW)
    certificate = leaf(authority, NOW)
    certificate.verify_directly_issued_by(authority.issuer.certificate)
    authority.issuer.certificate.verify_directly_issued_by(authority.roots[0])
    constraints = authority.issuer.certificate.extensions.get_extension_for_class(
        x509.BasicConstraints
    )
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (
        True,
        True,
        0,
    )


def test_a_new_root_is_handed_out_before_it_signs(tmp_path: Path) -> None:
    state = tmp_path / "ca"
    old = open_at(state, NOW)
    rotate(state, "cluster.local", NOW + DAY)
    during = open_at(state, NOW + DAY + 47 * HOUR)
    assert during.issuer.certificate == old.issuer.certificate
    assert len(during.roots) == 2
    assert during.roots[0] == old.roots[0]
    after = open_at(state, NOW + DAY + 48 * HOUR)
    assert after.issuer.certificate != old.issuer.certificate
    assert set(after.roots) == set(during.roots)
    # Whoever was signed below the old root is still trusted, and the other way round.
    assert after.roots[0] != old.roots[0]
    after.issuer.certificate.verify_directly_issued_by(after.roots[0])
    assert after.roots_pem.count("BEGIN CERTIFICATE") == 2


def test_a_root_is_followed_by_another_when_a_fifth_of_its_life_is_left(tmp_path: Path) -> None:
    state = tmp_path / "ca"
    first = open_at(state, NOW)
    assert len(open_at(state, NOW + 2900 * DAY).roots) == 1
    later = open_at(state, NOW + 2930 * DAY)
    assert len(later.roots) == 2
    assert later.roots[0] == first.roots[0]
    ripe = open_at(state, NOW + 2933 * DAY)
    assert ripe.roots[1] == first.roots[0]
    expired = open_at(state, NOW + 3651 * DAY)
    assert len(expired.roots) == 1
    assert expired.roots[0] == ripe.roots[0]


def test_the_intermediate_is_renewed_at_two_thirds_of_its_life(tmp_path: Path) -> None:
    state = tmp_path / "ca"
    first = open_at(state, NOW)
    assert open_at(state, NOW + 480 * DAY).issuer.certificate == first.issuer.certificate
    renewed = open_at(state, NOW + 490 * DAY)
    assert renewed.issuer.certificate != first.issuer.certificate
    assert renewed.roots == first.roots
    assert open_at(state, NOW + 491 * DAY).issuer.certificate == renewed.issuer.certificate


def test_a_certificate_never_outlives_its_issuer(tmp_path: Path) -> None:
    authority = open_at(tmp_path / "ca", NOW)
    end = authority.issuer.certificate.not_valid_after_utc
    assert leaf(authority, end - HOUR).not_valid_after_utc == end


def test_what_is_broken_is_named(tmp_path: Path) -> None:
    open_at(tmp_path / "ca", NOW)
    (path,) = (tmp_path / "ca").glob("*/ca.pem")
    data = path.read_bytes()
    write_private(path, data.replace(b"PRIVATE KEY", b"PRIVATE PIE"))
    with pytest.raises(AuthorityError, match=r"ca\.pem: not a private key in PEM"):
        open_at(tmp_path / "ca", NOW)
    write_private(path, data[: data.index(b"-----BEGIN CERT")] + b"x")
    with pytest.raises(AuthorityError, match=r"ca\.pem: not certificates in PEM"):
        open_at(tmp_path / "ca", NOW)


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    assert create_folder(tmp_path / "x", {"a": b"1"})
    assert not create_folder(tmp_path / "x", {"a": b"2", "b": b"3"})
    assert {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()} == {"a": b"1"}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("a file")
    with pytest.raises(OSError, match="Not a directory"):
        create_folder(tmp_path / "x", {"a": b"1"})
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
