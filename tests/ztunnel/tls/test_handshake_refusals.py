"""Each way to be refused: the right alert goes over the wire and the log gets the right words."""

import dataclasses
import ssl
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.pki import DAY, Authority, make_root
from tests.support.tls import (
    PlainPeer,
    accept_anybody,
    client,
    open_all,
    plain_context,
    server,
    shake_with_plain,
)
from ztunnel.mesh.identity import Identity
from ztunnel.tls.contexts import ContextCache, Records
from ztunnel.tls.crl import RevocationList
from ztunnel.tls.errors import Alert, PeerRefused, TlsError
from ztunnel.tls.handshake import Handshake
from ztunnel.tls.spiffe import ClientMustBe, PeerCertificate, ServerMustBe
from ztunnel.tls.workload_certificate import WorkloadCertificate

Verify = Callable[[PeerCertificate], None]
EVE = Identity("cluster.local", "shop", "eve")


def failure(one: Handshake, other: Handshake, *, refuses: str) -> tuple[TlsError, TlsError]:
    """Let a client and a server fail. Returns what the refusing and what the refused one saw."""
    ends = {"client": one, "server": other}
    refused = ends["server" if refuses == "client" else "client"]
    error = talk(one, other)
    assert error is not None
    reply = error.reply
    assert reply
    assert not ends[refuses].done
    if refused.done:
        # A client is through before the server has looked at its certificate (RFC 8446, 4.4).
        assert refused is one
        consumed, plain = open_all(refused.result.session, reply)
        assert (consumed, plain) == (len(reply), b"")
        seen = refused.result.session.error
        assert seen is not None
    else:
        with pytest.raises(TlsError) as told:
            refused.feed(reply)
        seen = told.value
    return error, seen


def talk(one: Handshake, other: Handshake) -> TlsError | None:
    """Let a client and a server go on until one of them fails or both are done."""
    try:
        for _ in range(4):
            other.feed(one.outgoing())
            if one.done and other.done:
                break
            one.feed(other.outgoing())
    except TlsError as error:
        return error
    return None


def fed(handshake: Handshake, data: bytes) -> TlsError | None:
    """How a handshake fails on this input, if it does."""
    try:
        handshake.feed(data)
    except TlsError as error:
        return error
    return None


def pair(
    near: WorkloadCertificate,
    far: WorkloadCertificate,
    client_verify: Verify = accept_anybody,
    server_verify: Verify = accept_anybody,
) -> tuple[Handshake, Handshake]:
    cache = ContextCache()
    one = Handshake(cache.client(near), client_verify)
    one.start()
    return one, Handshake(cache.server(far), server_verify)


@pytest.mark.parametrize("refuses", ["client", "server"])
@pytest.mark.parametrize(
    ("kind", "alert", "words"),
    [
        ("foreign", Alert.UNKNOWN_CA, "unable to get local issuer certificate"),
        ("expired", Alert.CERTIFICATE_EXPIRED, "certificate has expired"),
        ("future", Alert.BAD_CERTIFICATE, "certificate is not yet valid"),
    ],
)
def test_invalid_chains(
    authority: Authority,
    alice: WorkloadCertificate,
    refuses: str,
    kind: str,
    alert: Alert,
    words: str,
) -> None:
    if kind == "foreign":
        bad = make_root("another").intermediate("between").workload(EVE)
        bad = dataclasses.replace(bad, roots_pem=alice.roots_pem)
    elif kind == "expired":
        bad = authority.workload(EVE, not_before=0)
    else:
        bad = authority.workload(EVE, not_before=time.time() + DAY)
    one, other = pair(alice, bad) if refuses == "client" else pair(bad, alice)
    error, seen = failure(one, other, refuses=refuses)
    assert error.alert is alert
    assert words in str(error)
    assert not error.from_peer
    assert seen.alert is alert
    assert seen.from_peer
    assert str(seen) == f"the peer refused our certificate: TLS alert {alert.label}"


@pytest.mark.parametrize(
    ("refuses", "verify", "alert", "words"),
    [
        (
            "client",
            ServerMustBe([EVE]),
            Alert.CERTIFICATE_UNKNOWN,
            "expected spiffe://cluster.local/ns/shop/sa/eve, "
            "peer presented spiffe://cluster.local/ns/shop/sa/bob",
        ),
        (
            "client",
            ServerMustBe([]),
            Alert.CERTIFICATE_UNKNOWN,
            "expected nobody, no identity is known, peer presented",
        ),
        (
            "server",
            ClientMustBe(["other.mesh", "another.mesh"]),
            Alert.CERTIFICATE_UNKNOWN,
            "expected trust domain another.mesh or other.mesh, "
            "peer presented spiffe://cluster.local/ns/shop/sa/alice",
        ),
    ],
)
def test_valid_chain_of_the_wrong_peer(
    alice: WorkloadCertificate,
    bob: WorkloadCertificate,
    refuses: str,
    verify: Verify,
    alert: Alert,
    words: str,
) -> None:
    if refuses == "client":
        one, other = pair(alice, bob, client_verify=verify)
    else:
        one, other = pair(alice, bob, server_verify=verify)
    error, seen = failure(one, other, refuses=refuses)
    assert isinstance(error, PeerRefused)
    assert words in str(error)
    assert error.alert is seen.alert is alert
    assert seen.from_peer


@pytest.mark.parametrize("uris", [[], ["https://example.com/"], ["spiffe://cluster.local/x"]])
def test_client_that_is_no_workload(
    authority: Authority, bob: WorkloadCertificate, uris: list[str]
) -> None:
    one, other = pair(
        authority.leaf_with_uris(uris), bob, server_verify=ClientMustBe(["cluster.local"])
    )
    error, _ = failure(one, other, refuses="server")
    assert "expected a workload of trust domain cluster.local" in str(error)
    assert (uris[0] if uris else "no URI in its certificate") in str(error)


@pytest.mark.parametrize("refuses", ["client", "server"])
def test_revoked_peer(
    authority: Authority, alice: WorkloadCertificate, bob: WorkloadCertificate, refuses: str
) -> None:
    revocations = RevocationList.parse(authority.crl([alice.serial, bob.serial]))
    one, other = (
        pair(alice, bob, client_verify=ServerMustBe([bob.identity], revocations))
        if refuses == "client"
        else pair(alice, bob, server_verify=ClientMustBe(["cluster.local"], revocations))
    )
    error, seen = failure(one, other, refuses=refuses)
    assert error.alert is seen.alert is Alert.CERTIFICATE_REVOKED
    assert "is revoked: serial number" in str(error)


def test_client_without_a_certificate(alice: WorkloadCertificate) -> None:
    ours = server(alice)
    context = plain_context(None, server_side=False, roots=alice.roots_pem)
    peer = PlainPeer(context, server_side=False)
    ours.feed(peer.step(b""))
    with pytest.raises(TlsError, match="the peer presented no certificate") as found:
        ours.feed(peer.step(ours.outgoing()))
    assert found.value.alert is Alert.CERTIFICATE_REQUIRED
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
        peer.read(found.value.reply)


def test_refused_server_never_takes_the_connection_for_established(
    alice: WorkloadCertificate, bob: WorkloadCertificate
) -> None:
    ours = Handshake(ContextCache().client(alice), ServerMustBe([EVE]))
    ours.start()
    peer = PlainPeer(plain_context(bob, server_side=True), server_side=True)
    with pytest.raises(PeerRefused) as found:
        ours.feed(peer.step(ours.outgoing()))
    assert ours.outgoing() == b""
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate.unknown"):
        peer.step(found.value.reply)
    assert not peer.done


def test_client_refused_by_an_ordinary_server_hears_it_after_its_handshake(
    alice: WorkloadCertificate, bob: WorkloadCertificate
) -> None:
    foreign = make_root("foreign").workload(EVE)
    context = plain_context(bob, server_side=True, roots=foreign.roots_pem)
    peer = PlainPeer(context, server_side=True)
    ours = client(alice)
    ours.feed(peer.step(ours.outgoing()))
    assert ours.done
    peer.incoming.write(ours.outgoing())
    with pytest.raises(ssl.SSLCertVerificationError):
        peer.tls.do_handshake()
    session = ours.result.session
    wire = peer.outgoing.read()
    assert open_all(session, wire) == (len(wire), b"")
    assert session.error is not None
    assert str(session.error) == "the peer refused our certificate: TLS alert unknown_ca"


@pytest.mark.parametrize("records", ["own", "openssl"])
def test_openssl_records_refuse_too(
    alice: WorkloadCertificate, bob: WorkloadCertificate, records: Records
) -> None:
    ours = Handshake(ContextCache(records).server(alice), ClientMustBe(["other.mesh"]))
    with pytest.raises(PeerRefused):
        shake_with_plain(ours, PlainPeer(plain_context(bob, server_side=False), server_side=False))
    assert not ours.done
    with pytest.raises(RuntimeError, match="not done"):
        _ = ours.result


def test_old_tls_is_refused(alice: WorkloadCertificate) -> None:
    context = plain_context(alice, server_side=False)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    peer = PlainPeer(context, server_side=False)
    ours = server(alice)
    with pytest.raises(TlsError, match=r"does not offer TLS 1\.3") as found:
        ours.feed(peer.step(b""))
    assert found.value.alert is Alert.PROTOCOL_VERSION
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        peer.step(found.value.reply)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "speaks plaintext HTTP, not TLS"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak TLS"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "TLS"),
    ],
)
def test_plaintext_is_named(alice: WorkloadCertificate, data: bytes, words: str) -> None:
    with pytest.raises(TlsError, match=words):
        server(alice).feed(data)


def test_end_of_stream_in_the_handshake(
    alice: WorkloadCertificate, bob: WorkloadCertificate
) -> None:
    with pytest.raises(TlsError, match="closed the connection in the TLS handshake"):
        client(alice).feed_eof()
    ours = server(alice)
    shake_with_plain(ours, PlainPeer(plain_context(bob, server_side=False), server_side=False))
    ours.feed_eof()


def test_handshake_without_end_is_cut(alice: WorkloadCertificate) -> None:
    ours = server(alice)
    # A ClientHello that announces 100 kB and trickles in small records.
    ours.feed(b"\x16\x03\x01\x00\x06\x01\x01\x80\x00\x03\x03")
    errors = [fed(ours, b"\x16\x03\x01\x04\x00" + bytes(1024)) for _ in range(300)]
    assert errors[0] is None
    assert errors[-1] is not None
    assert "more than 262144 bytes" in str(errors[-1])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_fuzzed_handshakes_end_in_a_named_error(
    authority: Authority,
    alice: WorkloadCertificate,
    bob: WorkloadCertificate,
    data: st.DataObject,
) -> None:
    """One flight of a handshake, damaged anywhere: success is impossible, exceptions are ours."""
    one, other = client(alice), server(bob)
    ends = [other, one]
    flight = one.outgoing()
    for _ in range(data.draw(st.integers(0, 2), label="flights before")):
        ends[0].feed(flight)
        flight = ends[0].outgoing()
        ends.reverse()
    damaged = bytearray(flight)
    kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
    # Flights differ in length by a few bytes from run to run.
    place = data.draw(st.integers(0, 5000)) % len(flight)
    if kind == "flip":
        damaged[place] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del damaged[place : place + data.draw(st.integers(1, 40))]
    else:
        damaged[place:place] = data.draw(st.binary(min_size=1, max_size=40))
    error = fed(ends[0], bytes(damaged))
    if error is not None:
        assert str(error)
        assert not ends[0].done
    elif one.done and other.done:
        # Only bytes behind the last flight can go unnoticed here: they are left over.
        assert damaged[: len(flight)] == flight
        assert other.result.leftover == bytes(damaged[len(flight) :])


@settings(max_examples=150, deadline=None)
@given(wire=st.binary(max_size=300))
def test_fuzzed_first_bytes(bob: WorkloadCertificate, wire: bytes) -> None:
    ours = server(bob)
    error = fed(ours, wire)
    assert error is None or str(error)
    assert not ours.done
