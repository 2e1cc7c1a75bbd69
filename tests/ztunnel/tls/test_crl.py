import logging
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pki import Authority, make_root, when
from ztunnel.mesh.identity import Identity
from ztunnel.tls.crl import CrlError, CrlFile, RevocationList
from ztunnel.tls.workload_certificate import WorkloadCertificate


def root_authority(authority: Authority) -> Authority:
    return authority.parents[-1]


def test_nothing_revokes_nothing(alice: WorkloadCertificate) -> None:
    for data in (b"", b"\n"):
        empty = RevocationList.parse(data)
        assert len(empty) == 0
        assert empty.revoked(alice.chain) is None


def test_leaf_and_intermediate(
    authority: Authority, alice: WorkloadCertificate, bob: WorkloadCertificate
) -> None:
    leaf = RevocationList.parse(authority.crl([bob.serial, alice.serial]))
    assert len(leaf) == 2
    reason = leaf.revoked(alice.chain)
    assert reason is not None
    assert f"serial number {alice.serial} of CN=intermediate,O=cluster.local" in reason
    assert "reason keyCompromise" in reason
    serial = authority.certificate.serial_number
    upper = RevocationList.parse(root_authority(authority).crl([serial]))
    assert f"serial number {serial} of CN=root" in (upper.revoked(alice.chain) or "")
    # The trust anchor is not for a list to revoke.
    anchor = RevocationList.parse(root_authority(authority).crl([authority.root.serial_number]))
    assert anchor.revoked(alice.chain) is None


def test_serial_of_another_issuer_is_no_revocation(
    authority: Authority, alice: WorkloadCertificate
) -> None:
    assert RevocationList.parse(make_root("x").crl([alice.serial])).revoked(alice.chain) is None
    # The same name, another key: an impostor's list, or one from before the CA was made anew.
    impostor = make_root("root").intermediate("intermediate")
    assert RevocationList.parse(impostor.crl([alice.serial])).revoked(alice.chain) is None


def test_leaf_alone_is_judged_by_the_operators_file(
    authority: Authority, alice: WorkloadCertificate
) -> None:
    revocations = RevocationList.parse(authority.crl([alice.serial]))
    assert revocations.revoked(alice.chain[:1]) is not None


def test_several_blocks_and_der(authority: Authority, alice: WorkloadCertificate) -> None:
    upper = root_authority(authority).crl([])
    both = RevocationList.parse(upper + b"\n# note\n" + authority.crl([alice.serial]))
    assert both.revoked(alice.chain) is not None
    der = x509.load_pem_x509_crl(authority.crl([alice.serial])).public_bytes(
        serialization.Encoding.DER
    )
    assert RevocationList.parse(der).revoked(alice.chain) is not None


def test_expired_list_still_counts_and_is_told_once(
    authority: Authority,
    alice: WorkloadCertificate,
    bob: WorkloadCertificate,
    caplog: pytest.LogCaptureFixture,
) -> None:
    revocations = RevocationList.parse(authority.crl([alice.serial], last_update=0))
    assert revocations.revoked(alice.chain) is not None
    assert revocations.revoked(bob.chain) is None
    assert revocations.revoked(bob.chain) is None
    told = [record for record in caplog.records if "expired at 1970-01-02" in record.message]
    assert len(told) == 1


def test_strict_wants_a_current_list_of_every_issuer(
    authority: Authority, alice: WorkloadCertificate, bob: WorkloadCertificate
) -> None:
    def strict(data: bytes) -> RevocationList:
        return RevocationList.parse(data, strict=True)

    upper = root_authority(authority).crl([])
    assert strict(upper + authority.crl([bob.serial])).revoked(alice.chain) is None
    assert "no current revocation list of CN=intermediate" in (
        strict(upper).revoked(alice.chain) or ""
    )
    assert "no current revocation list of CN=root" in (
        strict(authority.crl([])).revoked(alice.chain) or ""
    )
    assert strict(b"").revoked(alice.chain) is not None
    expired = upper + authority.crl([], last_update=0)
    assert "no current revocation list" in (strict(expired).revoked(alice.chain) or "")
    assert strict(expired).revoked(alice.chain, now=3600.0) is None


def test_partial_list_is_refused(authority: Authority) -> None:
    partial = x509.IssuingDistributionPoint(None, None, True, False, None, False, False)
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(when(0))
        .next_update(when(1000))
        .add_extension(partial, critical=True)
        .sign(authority.key, hashes.SHA256())
    )
    with pytest.raises(CrlError, match=r"CN=intermediate.*only complete lists of one issuer"):
        RevocationList.parse(crl.public_bytes(serialization.Encoding.PEM))


@given(st.binary(min_size=1).filter(lambda data: data.strip()))
def test_other_bytes_are_an_error(data: bytes) -> None:
    with pytest.raises(CrlError):
        RevocationList.parse(data)


@given(cut=st.integers(1, 300), place=st.integers(0, 1000))
def test_damaged_lists_are_an_error_or_revoke_nobody_else(
    authority: Authority, alice: WorkloadCertificate, cut: int, place: int
) -> None:
    data = authority.crl([1])
    start = place % len(data)
    damaged = data[:start] + data[start + cut :]
    try:
        revocations = RevocationList.parse(damaged)
    except CrlError:
        return
    assert revocations.revoked(alice.chain) is None


def test_certificate_in_the_place_of_a_list(alice: WorkloadCertificate) -> None:
    with pytest.raises(CrlError, match="not a whole X509 CRL"):
        RevocationList.parse(alice.chain_pem)


def test_file_comes_changes_breaks_and_goes(
    tmp_path: Path,
    authority: Authority,
    alice: WorkloadCertificate,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "crl.pem"
    file = CrlFile(path)
    assert not file.refresh()
    assert file.current.revoked(alice.chain) is None
    path.write_bytes(authority.crl([alice.serial]))
    assert file.refresh()
    assert not file.refresh()
    assert file.current.revoked(alice.chain) is not None
    assert RevocationList.parse(file.data).revoked(alice.chain) is not None
    path.write_bytes(b"garbage")
    assert not file.refresh()
    assert "the last good lists stay in force" in caplog.text
    assert file.current.revoked(alice.chain) is not None
    path.unlink()
    assert file.refresh()
    assert file.current.revoked(alice.chain) is None


def test_unreadable_file_keeps_the_last_lists(
    tmp_path: Path,
    authority: Authority,
    alice: WorkloadCertificate,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "crl.pem"
    path.write_bytes(authority.crl([alice.serial]))
    file = CrlFile(path)
    assert file.refresh()
    path.unlink()
    path.mkdir()
    assert not file.refresh()
    assert "cannot read the revocation lists" in caplog.text
    assert file.current.revoked(alice.chain) is not None


def test_identity_with_two_issuers(authority: Authority, alice: WorkloadCertificate) -> None:
    """A serial number counts only together with its issuer."""
    other = make_root("other root")
    mallory = other.workload(Identity("cluster.local", "shop", "mallory"))
    both = RevocationList.parse(authority.crl([mallory.serial]) + other.crl([alice.serial]))
    assert both.revoked(alice.chain) is None
    assert both.revoked(mallory.chain) is None
