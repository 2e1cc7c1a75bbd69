"""Whatever a peer sends ends in data, in silence or in a named error with an alert; never more."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tls import open_all, seal
from ztunnel.tls.errors import Alert
from ztunnel.tls.key_schedule import SUITES
from ztunnel.tls.records import QUIET_LIMIT, Direction, OwnRecords
from ztunnel.tls.session import sealed_size

SUITE = SUITES["TLS_AES_128_GCM_SHA256"]
ALERT, HANDSHAKE, DATA = 21, 22, 23
TICKET = b"\x04\x00\x00\x05hello"
KEY_UPDATE = b"\x18\x00\x00\x01\x00"
KEY_UPDATE_REQUEST = b"\x18\x00\x00\x01\x01"


class Peer:
    """A peer that keeps to no rule, and the session that has to bear it."""

    def __init__(self, *, server_side: bool = False) -> None:
        ours, theirs = os.urandom(32), os.urandom(32)
        self.session = OwnRecords(
            Direction(SUITE, ours), Direction(SUITE, theirs), server_side=server_side
        )
        self.sending = Direction(SUITE, theirs)
        self.receiving = Direction(SUITE, ours)

    def record(self, inner: bytes) -> bytes:
        """A record with this content, type and padding."""
        header = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
        nonce = (self.sending.iv ^ self.sending.sequence).to_bytes(12, "big")
        self.sending.sequence += 1
        return header + self.sending.aead.encrypt(nonce, inner, header)

    def send(self, kind: int, content: bytes) -> bytes:
        """Send one record, return the plain bytes that came out."""
        wire = self.record(content + bytes((kind,)))
        consumed, plain = open_all(self.session, wire)
        assert consumed == len(wire)
        return plain

    def unseal(self, wire: bytes) -> tuple[int, bytes]:
        """Open one record of the session: type and content."""
        nonce = (self.receiving.iv ^ self.receiving.sequence).to_bytes(12, "big")
        self.receiving.sequence += 1
        inner = self.receiving.aead.decrypt(nonce, wire[5:], wire[:5])
        return inner[-1], inner[:-1]


def assert_failed(peer: Peer, alert: Alert, words: str) -> None:
    error = peer.session.error
    assert error is not None
    assert error.alert is alert
    assert words in str(error)
    assert not error.from_peer
    assert peer.session.ended
    assert not peer.session.closed
    # The peer is told, under the right key, by a fatal alert.
    assert peer.unseal(error.reply) == (ALERT, bytes((2, alert)))
    # Whatever else comes is swallowed.
    assert open_all(peer.session, b"more") == (4, b"")
    assert peer.session.alert(Alert.INTERNAL_ERROR) == b""


def test_damaged_record_is_refused_and_earlier_data_delivered() -> None:
    peer = Peer()
    good, bad = peer.record(b"hello\x17"), bytearray(peer.record(b"world\x17"))
    bad[7] ^= 0x40
    assert open_all(peer.session, good + bytes(bad))[1] == b"hello"
    assert_failed(peer, Alert.BAD_RECORD_MAC, "does not authenticate")


def test_replayed_record_is_refused() -> None:
    peer = Peer()
    wire = peer.record(b"hello\x17")
    assert open_all(peer.session, wire + wire)[1] == b"hello"
    assert_failed(peer, Alert.BAD_RECORD_MAC, "does not authenticate")


@pytest.mark.parametrize(
    ("wire", "alert", "words"),
    [
        (
            b"\x15\x03\x03\x00\x02\x02\x28",
            Alert.UNEXPECTED_MESSAGE,
            "unprotected record of type 21",
        ),
        (b"\x14\x03\x03\x00\x01\x01", Alert.UNEXPECTED_MESSAGE, "unprotected record of type 20"),
        (b"GET / HTTP/1.1\r\n", Alert.UNEXPECTED_MESSAGE, "unprotected record of type 71"),
        (b"\x17\x03\x03\x40\x12", Alert.RECORD_OVERFLOW, "a record of 16402 bytes"),
        (b"\x17\x03\x03\xff\xff", Alert.RECORD_OVERFLOW, "a record of 65535 bytes"),
        (b"\x17\x03\x03\x00\x10" + bytes(16), Alert.DECODE_ERROR, "only 16 bytes"),
        (b"\x17\x03\x03\x00\x00", Alert.DECODE_ERROR, "only 0 bytes"),
    ],
)
def test_impossible_headers_are_refused_before_their_body(
    wire: bytes, alert: Alert, words: str
) -> None:
    peer = Peer()
    assert open_all(peer.session, wire) == (len(wire), b"")
    assert_failed(peer, alert, words)


def test_largest_record_is_taken_with_and_without_padding() -> None:
    peer = Peer()
    data = os.urandom(16384)
    assert open_all(peer.session, peer.record(data + b"\x17"))[1] == data
    assert open_all(peer.session, peer.record(data[:9] + b"\x17" + bytes(16375)))[1] == data[:9]
    # Zeros at the end of the content are content.
    assert open_all(peer.session, peer.record(bytes(5) + b"\x17\x00\x00"))[1] == bytes(5)


def test_nothing_but_padding_is_refused() -> None:
    peer = Peer()
    assert open_all(peer.session, peer.record(bytes(16385)))[1] == b""
    assert_failed(peer, Alert.UNEXPECTED_MESSAGE, "nothing but padding")


def test_unknown_inner_type_is_refused() -> None:
    peer = Peer()
    assert peer.send(99, b"x") == b""
    assert_failed(peer, Alert.UNEXPECTED_MESSAGE, "unknown type 99")


@pytest.mark.parametrize("padding", [0, 3])
def test_tickets_are_ignored_by_a_client(padding: int) -> None:
    peer = Peer()
    wire = peer.record(TICKET + TICKET + b"\x16" + bytes(padding)) + peer.record(b"data\x17")
    assert open_all(peer.session, wire) == (len(wire), b"data")
    assert not peer.session.ended


def test_ticket_in_pieces_is_ignored() -> None:
    peer = Peer()
    for i in range(len(TICKET)):
        assert peer.send(HANDSHAKE, TICKET[i : i + 1]) == b""
    assert peer.send(DATA, b"data") == b"data"
    assert not peer.session.ended


@pytest.mark.parametrize(
    ("server_side", "content", "alert", "words"),
    [
        (True, TICKET, Alert.UNEXPECTED_MESSAGE, "handshake message 4"),
        (False, b"\x0d\x00\x00\x01x", Alert.UNEXPECTED_MESSAGE, "handshake message 13"),
        (False, b"\x01\x00", Alert.UNEXPECTED_MESSAGE, ""),
        (False, b"\x04\x01\x00\x01", Alert.DECODE_ERROR, "ticket of 65537 bytes"),
        (False, b"", Alert.UNEXPECTED_MESSAGE, "an empty handshake record"),
        (False, b"\x18\x00\x00\x01\x02", Alert.ILLEGAL_PARAMETER, "asks for 2"),
        (False, b"\x18\x00\x00\x02\x00\x00", Alert.DECODE_ERROR, "KeyUpdate of 2 bytes"),
        (False, KEY_UPDATE + KEY_UPDATE, Alert.UNEXPECTED_MESSAGE, "across a change of keys"),
        (False, KEY_UPDATE + b"\x04", Alert.UNEXPECTED_MESSAGE, "across a change of keys"),
    ],
)
def test_handshake_messages_out_of_place(
    server_side: bool, content: bytes, alert: Alert, words: str
) -> None:
    peer = Peer(server_side=server_side)
    assert peer.send(HANDSHAKE, content) == b""
    if content == b"\x01\x00":
        # Two bytes of a ClientHello are not yet a message; data in its middle is the error.
        assert peer.send(DATA, b"data") == b""
        words = "broken off in the middle"
    assert_failed(peer, alert, words)


def test_alert_in_the_middle_of_a_message_is_refused() -> None:
    peer = Peer()
    peer.send(HANDSHAKE, TICKET[:5])
    peer.send(ALERT, b"\x01\x00")
    assert_failed(peer, Alert.UNEXPECTED_MESSAGE, "broken off in the middle")


def test_key_update_is_followed_and_answered_once() -> None:
    peer = Peer()
    for _ in range(3):
        assert peer.send(HANDSHAKE, KEY_UPDATE_REQUEST) == b""
        peer.sending.update()
    assert peer.send(DATA, b"new keys") == b"new keys"
    wire = seal(peer.session, b"answer")
    length = 5 + int.from_bytes(wire[3:5], "big")
    assert peer.unseal(wire[:length]) == (HANDSHAKE, KEY_UPDATE)
    peer.receiving.update()
    assert peer.unseal(wire[length:]) == (DATA, b"answer")
    assert peer.unseal(seal(peer.session, b"no more")) == (DATA, b"no more")


def test_key_update_without_request_is_not_answered() -> None:
    peer = Peer()
    peer.send(HANDSHAKE, KEY_UPDATE)
    peer.sending.update()
    assert peer.send(DATA, b"new") == b"new"
    assert peer.unseal(seal(peer.session, b"answer")) == (DATA, b"answer")


def test_answer_to_a_key_update_can_be_sent_without_data() -> None:
    peer = Peer()
    peer.send(HANDSHAKE, KEY_UPDATE_REQUEST)
    assert peer.unseal(seal(peer.session, b"")) == (HANDSHAKE, KEY_UPDATE)
    assert seal(peer.session, b"") == b""


def test_old_keys_after_a_key_update_are_refused() -> None:
    peer = Peer()
    peer.send(HANDSHAKE, KEY_UPDATE)
    assert peer.send(DATA, b"old") == b""
    assert_failed(peer, Alert.BAD_RECORD_MAC, "does not authenticate")


@pytest.mark.parametrize(
    ("kind", "content"), [(DATA, b""), (HANDSHAKE, TICKET), (ALERT, b"\x01\x5a")]
)
def test_floods_without_data_are_cut(kind: int, content: bytes) -> None:
    peer = Peer()
    for _ in range(QUIET_LIMIT):
        assert peer.send(kind, content) == b""
    assert peer.send(DATA, b"x") == b"x"
    for _ in range(QUIET_LIMIT):
        assert peer.send(kind, content) == b""
    assert not peer.session.ended
    assert peer.send(kind, content) == b""
    assert_failed(peer, Alert.UNEXPECTED_MESSAGE, "33 records in a row without any data")


def test_close_notify_ends_reading_and_ignores_the_rest() -> None:
    peer = Peer()
    wire = peer.record(b"last\x17") + peer.record(b"\x01\x00\x15") + peer.record(b"late\x17")
    assert open_all(peer.session, wire) == (len(wire), b"last")
    assert peer.session.closed
    assert peer.session.ended
    assert peer.session.error is None
    # We may still send (RFC 8446 section 6.1: the two directions close each by itself).
    assert peer.unseal(seal(peer.session, b"reply")) == (DATA, b"reply")
    assert peer.unseal(peer.session.close_notify()) == (ALERT, b"\x01\x00")


@pytest.mark.parametrize(
    ("code", "alert", "words"),
    [
        (48, Alert.UNKNOWN_CA, "the peer refused our certificate: TLS alert unknown_ca"),
        (116, Alert.CERTIFICATE_REQUIRED, "refused our certificate: TLS alert certificate_req"),
        (80, Alert.INTERNAL_ERROR, "ended the connection with TLS alert internal_error"),
        (200, Alert.INTERNAL_ERROR, "unknown TLS alert 200"),
    ],
)
@pytest.mark.parametrize("level", [1, 2, 77])
def test_fatal_alerts_of_the_peer_are_named(
    code: int, alert: Alert, words: str, level: int
) -> None:
    peer = Peer()
    assert peer.send(ALERT, bytes((level, code))) == b""
    error = peer.session.error
    assert error is not None
    assert error.alert is alert
    assert error.from_peer
    assert words in str(error)
    assert error.reply == b""
    assert peer.session.ended
    assert not peer.session.closed


@pytest.mark.parametrize("content", [b"", b"\x02", b"\x02\x28\x02"])
def test_alerts_of_a_wrong_length(content: bytes) -> None:
    peer = Peer()
    peer.send(ALERT, content)
    assert_failed(peer, Alert.DECODE_ERROR, f"an alert of {len(content)} bytes")


def test_our_own_alert_is_fatal_and_last() -> None:
    peer = Peer()
    assert peer.unseal(peer.session.alert(Alert.ACCESS_DENIED)) == (ALERT, b"\x02\x31")
    with pytest.raises(RuntimeError):
        seal(peer.session, b"x")


def test_buffers_too_small_are_an_error_before_anything_is_written() -> None:
    peer = Peer()
    src, out = memoryview(bytearray(11)), bytearray(sealed_size(10) - 1)
    with pytest.raises(ValueError, match="bytes of room"):
        peer.session.seal(src, 0, 10, memoryview(out), 0)
    with pytest.raises(ValueError, match="spare byte"):
        peer.session.seal(src, 0, 11, memoryview(bytearray(1000)), 0)
    with pytest.raises(ValueError, match="spare byte"):
        peer.session.seal_scattered(
            memoryview(bytearray(16386)), 0, 16385, memoryview(bytearray(20_000)), 0
        )
    assert out == bytearray(len(out))
    wire = memoryview(peer.record(b"hello\x17"))
    with pytest.raises(ValueError, match="room for 10"):
        peer.session.open(wire, 0, len(wire), memoryview(bytearray(10)), 0)
    # Nothing was lost by it.
    assert peer.unseal(seal(peer.session, b"x")) == (DATA, b"x")


inner_records = st.tuples(
    st.sampled_from((ALERT, HANDSHAKE, DATA, DATA, DATA, 0, 20, 99)),
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from((TICKET, KEY_UPDATE, KEY_UPDATE_REQUEST, b"\x01\x00", b"\x02\x28")),
    ),
    st.integers(0, 5),
)


@settings(max_examples=200, deadline=None)
@given(
    records=st.lists(inner_records, max_size=12),
    damage=st.none() | st.tuples(st.integers(0), st.integers(1, 255)),
    cuts=st.lists(st.integers(0), max_size=5),
    server_side=st.booleans(),
)
def test_fuzzed_records(
    records: list[tuple[int, bytes, int]],
    damage: tuple[int, int] | None,
    cuts: list[int],
    server_side: bool,
) -> None:
    """Authentic records of any content, whole or damaged, cut anywhere: no exception."""
    peer = Peer(server_side=server_side)
    wire = bytearray()
    for kind, content, padding in records:
        wire += peer.record(content + bytes((kind,)) + bytes(padding))
        if kind == HANDSHAKE and content in (KEY_UPDATE, KEY_UPDATE_REQUEST):
            peer.sending.update()
    if damage is not None and wire:
        wire[damage[0] % len(wire)] ^= damage[1]
    check_any_input(peer, bytes(wire), cuts)


@settings(max_examples=200, deadline=None)
@given(wire=st.binary(max_size=200), cuts=st.lists(st.integers(0), max_size=3))
def test_fuzzed_bytes(wire: bytes, cuts: list[int]) -> None:
    check_any_input(Peer(), wire, cuts)


def check_any_input(peer: Peer, wire: bytes, cuts: list[int]) -> None:
    places = sorted({cut % (len(wire) + 1) for cut in cuts} | {len(wire)})
    pending, start = b"", 0
    for place in places:
        pending += wire[start:place]
        start = place
        consumed, plain = open_all(peer.session, pending)
        assert 0 <= consumed <= len(pending)
        assert len(plain) <= len(pending)
        pending = pending[consumed:]
        session = peer.session
        assert session.ended == (session.closed or session.error is not None)
        if session.ended:
            assert pending == b""
        else:
            # What waits is part of one record, so that memory is bounded.
            assert len(pending) < 5 + 16401
    if peer.session.error is None:
        seal(peer.session, b"still alive")
