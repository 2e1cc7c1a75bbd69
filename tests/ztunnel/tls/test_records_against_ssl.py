"""Our records and OpenSSL's must understand each other, in both roles."""

import os
import random
import ssl

import pytest

from tests.support.tls import (
    PlainPeer,
    client,
    open_all,
    plain_context,
    seal,
    server,
    shake_with_plain,
)
from ztunnel.tls.contexts import Records
from ztunnel.tls.handshake import HandshakeResult
from ztunnel.tls.key_schedule import SUITES
from ztunnel.tls.records import Direction, OwnRecords
from ztunnel.tls.session import STRIDE, sealed_size
from ztunnel.tls.workload_certificate import WorkloadCertificate

Pair = tuple[HandshakeResult, PlainPeer]


def connect(
    alice: WorkloadCertificate,
    bob: WorkloadCertificate,
    *,
    we_serve: bool,
    records: Records = "own",
) -> Pair:
    peer = PlainPeer(plain_context(bob, server_side=not we_serve), server_side=not we_serve)
    ours = server(alice, records) if we_serve else client(alice, records)
    return shake_with_plain(ours, peer), peer


@pytest.fixture(params=["client", "server"])
def pair(
    request: pytest.FixtureRequest, alice: WorkloadCertificate, bob: WorkloadCertificate
) -> Pair:
    return connect(alice, bob, we_serve=request.param == "server")


def test_the_default_is_own_records_and_h2(pair: Pair) -> None:
    ours, peer = pair
    assert isinstance(ours.session, OwnRecords)
    assert ours.session.implementation == "own"
    assert ours.alpn == peer.tls.selected_alpn_protocol() == "h2"
    cipher = peer.tls.cipher()
    assert cipher is not None
    assert ours.cipher == ours.session.suite == cipher[0]


def test_sizes_around_the_record_limit_pass_both_ways(pair: Pair) -> None:
    ours, peer = pair
    for n in (1, 2, 16383, 16384, 16385, 32767, 32768, 32769, 200_000):
        data = os.urandom(n)
        assert peer.read(seal(ours.session, data)) == data
        wire = peer.write(data)
        assert open_all(ours.session, wire) == (len(wire), data)


def test_random_traffic_in_random_pieces(pair: Pair) -> None:
    ours, peer = pair
    rng = random.Random(7)
    sent, received, wire = b"", b"", b""
    for _ in range(300):
        data = rng.randbytes(rng.choice((1, 50, 900, 17_000)))
        assert peer.read(seal(ours.session, data)) == data
        data = rng.randbytes(rng.choice((1, 50, 900, 40_000)))
        sent += data
        wire += peer.write(data)
        cut = rng.randrange(len(wire) + 1)
        consumed, plain = open_all(ours.session, wire[:cut])
        assert consumed <= cut
        wire = wire[consumed:]
        received += plain
    received += open_all(ours.session, wire)[1]
    assert received == sent
    assert not ours.session.ended


@pytest.mark.parametrize("n", [0, 1, 16383, 16384, 16385, 32768, 50_000, 16 * 16384])
@pytest.mark.parametrize("records", ["own", "openssl"])
def test_scattered_content_is_sealed_where_it_lies(
    alice: WorkloadCertificate, bob: WorkloadCertificate, records: Records, n: int
) -> None:
    ours, peer = connect(alice, bob, we_serve=False, records=records)
    data = os.urandom(n)
    before = 3
    src = bytearray(before + 17 * STRIDE)
    for i in range(0, n, 16384):
        chunk = data[i : i + 16384]
        begin = before + i // 16384 * STRIDE
        src[begin : begin + len(chunk)] = chunk
    out = bytearray(9 + sealed_size(n))
    size = ours.session.seal_scattered(memoryview(src), before, n, memoryview(out), 9)
    assert peer.read(bytes(out[9 : 9 + size])) == data


def test_source_bytes_are_left_as_they_were(pair: Pair) -> None:
    data = os.urandom(40_000)
    src = bytearray(data)
    out = memoryview(bytearray(sealed_size(39_999)))
    pair[0].session.seal(memoryview(src), 0, 39_999, out, 0)
    assert bytes(src) == data


def test_padding_is_understood_by_openssl_and_by_us(pair: Pair) -> None:
    ours, peer = pair
    assert isinstance(ours.session, OwnRecords)
    keys = ours.session.ktls_parameters(sending=True)
    nonce = (int.from_bytes(keys.iv, "big") ^ keys.sequence).to_bytes(12, "big")
    inner = b"hello" + b"\x17" + bytes(1000)
    header = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
    record = header + SUITES[keys.suite].aead(keys.key).encrypt(nonce, inner, header)
    assert peer.read(record) == b"hello"


def test_exported_keys_open_what_the_session_seals(pair: Pair) -> None:
    session = pair[0].session
    seal(session, b"one record")
    keys = session.ktls_parameters(sending=True)
    assert keys.sequence == 1
    wire = seal(session, b"hello")
    nonce = (int.from_bytes(keys.iv, "big") ^ keys.sequence).to_bytes(12, "big")
    plain = SUITES[keys.suite].aead(keys.key).decrypt(nonce, wire[5:], wire[:5])
    assert plain == b"hello\x17"
    assert keys.key.hex() not in repr(keys)


def rekeying(ours: HandshakeResult, rekey_after: int) -> OwnRecords:
    """The same connection with a lower limit, as if it had run for a long time."""
    session = ours.session
    assert isinstance(session, OwnRecords)
    session._rekey_after = rekey_after
    session._ask_at = rekey_after
    return session


def test_our_key_updates_are_followed_by_openssl(pair: Pair) -> None:
    ours, peer = pair
    session = rekeying(ours, 3)
    for i in range(20):
        data = b"message %d" % i
        assert peer.read(seal(session, data)) == data
        assert session.ktls_parameters(sending=True).sequence <= 3


def test_openssl_is_asked_to_change_its_keys_and_does(pair: Pair) -> None:
    ours, peer = pair
    session = rekeying(ours, 4)
    highest = 0
    for i in range(40):
        data = b"message %d" % i
        wire = peer.write(data)
        assert open_all(session, wire) == (len(wire), data)
        assert peer.read(seal(session, data)) == data
        highest = max(highest, session.ktls_parameters(sending=False).sequence)
    assert highest == 4
    assert not session.ended


def test_close_notify_both_ways(pair: Pair) -> None:
    ours, peer = pair
    assert peer.read(seal(ours.session, b"last") + ours.session.close_notify()) == b"last"
    assert ours.session.close_notify() == b""
    with pytest.raises(RuntimeError, match="after close_notify"):
        seal(ours.session, b"more")
    # Our side of the connection is closed, the other one still open: half-close.
    wire = peer.write(b"late")
    assert open_all(ours.session, wire) == (len(wire), b"late")
    assert (ours.session.ended, ours.session.closed) == (False, False)
    peer.tls.unwrap()
    open_all(ours.session, peer.write(b""))
    assert ours.session.closed
    assert ours.session.ended
    assert ours.session.error is None


@pytest.mark.parametrize("we_serve", [False, True])
def test_openssl_records_do_the_same_behind_the_same_interface(
    alice: WorkloadCertificate, bob: WorkloadCertificate, we_serve: bool
) -> None:
    ours, peer = connect(alice, bob, we_serve=we_serve, records="openssl")
    assert ours.session.implementation == "openssl"
    for n in (1, 16384, 16385, 200_000):
        data = os.urandom(n)
        assert peer.read(seal(ours.session, data)) == data
        wire = peer.write(data)
        cut = len(wire) // 2
        consumed, first = open_all(ours.session, wire[:cut])
        assert consumed == cut
        assert first + open_all(ours.session, wire[cut:])[1] == data
    with pytest.raises(RuntimeError, match="keeps the keys"):
        ours.session.ktls_parameters(sending=True)
    assert peer.read(seal(ours.session, b"last") + ours.session.close_notify()) == b"last"
    peer.tls.unwrap()
    open_all(ours.session, peer.write(b""))
    assert ours.session.closed
    assert ours.session.error is None


def test_openssl_records_name_a_damaged_record(
    alice: WorkloadCertificate, bob: WorkloadCertificate
) -> None:
    ours, peer = connect(alice, bob, we_serve=True, records="openssl")
    wire = bytearray(peer.write(b"hello"))
    wire[-1] ^= 1
    assert open_all(ours.session, bytes(wire)) == (len(wire), b"")
    assert ours.session.ended
    assert ours.session.error is not None
    with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac"):
        peer.read(ours.session.error.reply)


def test_openssl_records_ask_to_be_left_before_the_key_is_worn_out(
    alice: WorkloadCertificate, bob: WorkloadCertificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ztunnel.tls.openssl_records.EXHAUSTED_AFTER", 5)
    ours, peer = connect(alice, bob, we_serve=True, records="openssl")
    for _ in range(4):
        peer.read(seal(ours.session, b"x"))
    assert not ours.session.exhausted
    peer.read(seal(ours.session, b"x"))
    assert ours.session.exhausted


@pytest.mark.parametrize("name", sorted(SUITES))
def test_every_suite_seals_and_opens(name: str) -> None:
    suite = SUITES[name]
    one, other = os.urandom(suite.hash_length), os.urandom(suite.hash_length)
    left = OwnRecords(Direction(suite, one), Direction(suite, other), server_side=False)
    right = OwnRecords(Direction(suite, other), Direction(suite, one), server_side=True)
    data = os.urandom(100_000)
    assert open_all(right, seal(left, data))[1] == data
    assert open_all(left, seal(right, data))[1] == data
