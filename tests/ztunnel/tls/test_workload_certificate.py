import dataclasses

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pki import Authority, make_root, pem
from ztunnel.mesh.identity import Identity
from ztunnel.tls.workload_certificate import (
    CertificateError,
    WorkloadCertificate,
    from_ca_answer,
    make_key_and_csr,
)

ALICE = Identity("cluster.local", "shop", "alice")


def test_csr_has_one_critical_name_and_no_subject() -> None:
    key_pem, csr_pem = make_key_and_csr(ALICE)
    csr = x509.load_pem_x509_csr(csr_pem)
    assert csr.is_signature_valid
    assert list(csr.subject) == []
    (extension,) = csr.extensions
    assert extension.critical
    assert isinstance(extension.value, x509.SubjectAlternativeName)
    assert extension.value.get_values_for_type(x509.UniformResourceIdentifier) == [ALICE.uri]
    key = serialization.load_pem_private_key(key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP256R1)
    assert key_pem.startswith(b"-----BEGIN PRIVATE KEY-----"), "PKCS#8"
    assert key.public_key() == csr.public_key()
    assert make_key_and_csr(ALICE)[0] != key_pem


def test_bytes_and_back(alice: WorkloadCertificate) -> None:
    again = WorkloadCertificate.from_bytes(alice.to_bytes())
    assert again == alice
    assert hash(again) == hash(alice)
    assert again.fingerprint == alice.fingerprint
    assert dataclasses.replace(alice, roots_pem=b"").fingerprint != alice.fingerprint


@given(st.one_of(st.binary(), st.text().map(str.encode), st.just(b'{"identity": 3}')))
def test_other_bytes_are_an_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        WorkloadCertificate.from_bytes(data)


def test_the_key_is_never_shown(alice: WorkloadCertificate) -> None:
    assert "PRIVATE" not in repr(alice)
    assert "alice" in repr(alice)


def test_chain_goes_from_leaf_to_root(authority: Authority, alice: WorkloadCertificate) -> None:
    chain = [x509.load_der_x509_certificate(item) for item in alice.chain]
    assert [item.serial_number for item in chain] == [
        alice.serial,
        authority.certificate.serial_number,
        authority.root.serial_number,
    ]
    assert alice.anchored
    assert not alice.with_roots(pem(make_root().certificate).encode()).anchored


def answer_for(authority: Authority, uris: list[str]) -> tuple[bytes, list[str]]:
    key, csr = make_key_and_csr(ALICE)
    return key, authority.answer(csr, uris)


def test_several_roots_and_several_certificates_per_element(authority: Authority) -> None:
    key, answer = answer_for(authority, [ALICE.uri])
    roots = pem(make_root("next").certificate) + answer[-1]
    got = from_ca_answer(ALICE, key, [answer[0] + answer[1], roots])
    assert got.chain_pem.count(b"BEGIN CERTIFICATE") == 2
    assert got.roots_pem.count(b"BEGIN CERTIFICATE") == 2
    assert got.anchored


def test_root_may_stand_in_the_chain_too(authority: Authority) -> None:
    key, answer = answer_for(authority, [ALICE.uri])
    got = from_ca_answer(ALICE, key, [*answer, answer[-1]])
    assert got.chain[-1] == authority.root.public_bytes(serialization.Encoding.DER)
    assert len(got.chain) == 3


def test_leaf_of_a_root_alone() -> None:
    root = make_root()
    key, answer = answer_for(root, [ALICE.uri])
    assert len(answer) == 2
    assert from_ca_answer(ALICE, key, answer).anchored


@pytest.mark.parametrize(
    ("uris", "words"),
    [
        ([], "named nobody"),
        (
            ["spiffe://cluster.local/ns/shop/sa/bob"],
            "and certified spiffe://cluster.local/ns/shop/sa",
        ),
        ([ALICE.uri, "spiffe://cluster.local/ns/shop/sa/bob"], "and certified"),
        (["spiffe://other/ns/shop/sa/alice"], "asked for spiffe://cluster.local/ns/shop/sa/alice"),
    ],
)
def test_wrong_name_is_refused(authority: Authority, uris: list[str], words: str) -> None:
    key, answer = answer_for(authority, uris)
    with pytest.raises(CertificateError, match=words):
        from_ca_answer(ALICE, key, answer)


def test_wrong_key_is_refused(authority: Authority) -> None:
    _, answer = answer_for(authority, [ALICE.uri])
    with pytest.raises(CertificateError, match="another key than ours"):
        from_ca_answer(ALICE, make_key_and_csr(ALICE)[0], answer)


def test_chains_that_lead_nowhere_are_refused(authority: Authority) -> None:
    key, answer = answer_for(authority.intermediate("lowest"), [ALICE.uri])
    leaf, lowest, middle, root = answer
    for broken, words in (
        ([], "0 elements: no roots"),
        ([leaf], "1 elements: no roots"),
        ([leaf, middle, lowest, root], "out of order: certificate 0, no name, is not signed by"),
        ([leaf, lowest, root], "none of the CA's 1 roots signed"),
        ([leaf, lowest, middle, pem(make_root().certificate)], "none of the CA's 1 roots signed"),
        ([leaf, lowest, middle, ""], "no root"),
        (["", root], "no certificate"),
        (["-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", root], "cannot be read"),
    ):
        with pytest.raises(CertificateError, match=words):
            from_ca_answer(ALICE, key, broken)


@given(st.lists(st.text(max_size=50), max_size=4))
def test_any_other_answer_is_refused(answer: list[str]) -> None:
    key, _ = make_key_and_csr(ALICE)
    with pytest.raises(CertificateError):
        from_ca_answer(ALICE, key, answer)
