import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pki import Authority
from ztunnel.mesh.identity import Identity
from ztunnel.tls import spiffe
from ztunnel.tls.crl import RevocationList
from ztunnel.tls.errors import Alert, PeerRefused
from ztunnel.tls.spiffe import (
    ClientMustBe,
    PeerCertificate,
    ServerMustBe,
    first_identity,
    peer_certificate,
)
from ztunnel.tls.workload_certificate import WorkloadCertificate

ALICE = Identity("cluster.local", "shop", "alice")


def peer_with(authority: Authority, *uris: str) -> PeerCertificate:
    return peer_certificate(authority.leaf_with_uris(uris).chain)


def test_first_readable_identity_counts(authority: Authority) -> None:
    peer = peer_with(authority, "https://x/", "spiffe://cluster.local/other", ALICE.uri)
    assert peer.identity == ALICE
    assert peer.uris == ("https://x/", "spiffe://cluster.local/other", ALICE.uri)
    assert peer.presented == f"https://x/, spiffe://cluster.local/other, {ALICE.uri}"
    assert first_identity([]) is None
    assert peer_with(authority).presented == "no URI in its certificate"


def test_certificates_are_read_once(
    authority: Authority, alice: WorkloadCertificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spiffe, "_REMEMBERED", 3)
    monkeypatch.setattr(spiffe, "_known", {})
    first = peer_certificate(alice.chain)
    assert peer_certificate(alice.chain) is first
    for _ in range(5):
        peer_with(authority, ALICE.uri)
    assert len(spiffe._known) == 3
    assert peer_certificate(alice.chain) == first
    assert peer_certificate(alice.chain) is not first


def test_trust_domain_and_its_aliases(authority: Authority) -> None:
    old = peer_with(authority, "spiffe://old.mesh/ns/shop/sa/alice")
    ClientMustBe(["cluster.local", "old.mesh"])(old)
    with pytest.raises(PeerRefused, match=r"trust domain cluster\.local, peer presented") as found:
        ClientMustBe(["cluster.local"])(old)
    assert found.value.alert is Alert.CERTIFICATE_UNKNOWN
    assert found.value.reply == b""


def test_server_may_be_any_of_the_expected(authority: Authority) -> None:
    peer = peer_with(authority, ALICE.uri)
    ServerMustBe([Identity("cluster.local", "shop", "bob"), ALICE])(peer)
    ServerMustBe(["spiffe://cluster.local/ns/shop/sa/alice"])(peer)
    # Service names in certificates need not be workload identities.
    ServerMustBe(["https://db.example.com"])(peer_with(authority, "https://db.example.com"))
    with pytest.raises(PeerRefused, match=r"expected a:b or spiffe://.*/bob, peer presented"):
        ServerMustBe([Identity("cluster.local", "shop", "bob"), "a:b"])(peer)


def test_revocation_comes_first(authority: Authority, alice: WorkloadCertificate) -> None:
    revocations = RevocationList.parse(authority.crl([alice.serial]))
    for verify in (ServerMustBe([], revocations), ClientMustBe([], revocations)):
        with pytest.raises(PeerRefused, match="is revoked: serial number") as found:
            verify(peer_certificate(alice.chain))
        assert found.value.alert is Alert.CERTIFICATE_REVOKED


@given(st.binary())
def test_unreadable_certificates_are_refused(data: bytes) -> None:
    with pytest.raises(PeerRefused, match="cannot be read") as found:
        peer_certificate((data,))
    assert found.value.alert is Alert.BAD_CERTIFICATE


# A damaged serial number may be negative, which the library minds in words and reads all the same.
@pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive")
@given(place=st.integers(0, 2000), value=st.integers(1, 255))
def test_damaged_certificates_are_read_or_refused(
    alice: WorkloadCertificate, authority: Authority, place: int, value: int
) -> None:
    damaged = bytearray(alice.chain[0])
    damaged[place % len(damaged)] ^= value
    chain = (bytes(damaged), *alice.chain[1:])
    revocations = RevocationList.parse(authority.crl([1]))
    reason = revocations.revoked(chain)
    assert reason is None or "cannot be looked up" in reason or "serial number 1 " in reason
    try:
        peer = peer_certificate(chain)
    except PeerRefused:
        return
    assert peer.leaf == bytes(damaged)
