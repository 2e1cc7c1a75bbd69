"""What our record layer knows while the kernel does the records (its own part: tests/vm)."""

import os

import pytest

from tests.support.tls import open_all, seal
from ztunnel.tls.errors import Alert
from ztunnel.tls.key_schedule import SUITES
from ztunnel.tls.records import Direction, OwnRecords

SUITE = SUITES["TLS_AES_128_GCM_SHA256"]
ALERT, HANDSHAKE = 21, 22
KEY_UPDATE = bytes((24, 0, 0, 1, 0))
KEY_UPDATE_ASKING = bytes((24, 0, 0, 1, 1))


@pytest.fixture
def ends() -> tuple[OwnRecords, OwnRecords]:
    client, server = os.urandom(32), os.urandom(32)
    return (
        OwnRecords(Direction(SUITE, client), Direction(SUITE, server), server_side=False),
        OwnRecords(Direction(SUITE, server), Direction(SUITE, client), server_side=True),
    )


def test_alerts_are_content_for_the_kernel_to_seal(ends: tuple[OwnRecords, OwnRecords]) -> None:
    ours, theirs = ends
    ours.hand_over_sealing()
    assert ours.close_notify() == bytes((1, Alert.CLOSE_NOTIFY))
    assert ours.close_notify() == b""
    assert theirs.alert(Alert.INTERNAL_ERROR) != bytes((2, Alert.INTERNAL_ERROR))


def test_the_reply_to_what_the_peer_did_wrong_is_content_too(
    ends: tuple[OwnRecords, OwnRecords],
) -> None:
    ours, _ = ends
    ours.hand_over_sealing()
    assert not ours.control(HANDSHAKE, bytes((99, 0, 0, 0)), True)
    assert ours.ended
    assert ours.error is not None
    assert ours.error.reply == bytes((2, Alert.UNEXPECTED_MESSAGE))


def test_a_key_update_changes_the_keys_behind_it(ends: tuple[OwnRecords, OwnRecords]) -> None:
    ours, theirs = ends
    sequence = ours.ktls_parameters(sending=True).sequence
    ours.hand_over_sealing()
    ours.renew_keys()
    assert ours.take_key_update() == KEY_UPDATE_ASKING
    assert not ours.update_due
    # Where our end goes on is where the other one does when it has seen the message.
    assert theirs.control(HANDSHAKE, KEY_UPDATE_ASKING, True)
    assert theirs.update_due
    one, other = ours.ktls_parameters(sending=True), theirs.ktls_parameters(sending=False)
    assert (one.key, one.iv, one.sequence) == (other.key, other.iv, sequence)
    assert theirs.take_key_update() == KEY_UPDATE


@pytest.mark.parametrize(("code", "closed"), [(0, True), (44, False)])
def test_alerts_from_the_kernel_end_the_session(
    code: int, closed: bool, ends: tuple[OwnRecords, OwnRecords]
) -> None:
    ours, _ = ends
    assert not ours.control(ALERT, bytes((2, code)), True)
    assert ours.ended
    assert ours.closed is closed
    assert (ours.error is None) is closed


def test_a_message_in_two_records_is_put_together(ends: tuple[OwnRecords, OwnRecords]) -> None:
    ours, _ = ends
    assert not ours.control(HANDSHAKE, KEY_UPDATE[:3], True)
    assert ours.control(HANDSHAKE, KEY_UPDATE[3:], False)


def test_records_without_data_are_limited(ends: tuple[OwnRecords, OwnRecords]) -> None:
    ours, _ = ends
    taken = [ours.control(HANDSHAKE, KEY_UPDATE, True) for _ in range(100)]
    assert all(taken)
    taken = [ours.control(HANDSHAKE, KEY_UPDATE, False) for _ in range(100)]
    assert not taken[-1]
    assert ours.error is not None
    assert "without any data" in str(ours.error)


def test_the_kernels_count_brings_new_keys(ends: tuple[OwnRecords, OwnRecords]) -> None:
    ours, _ = ends
    limit = 1 << 23
    ours.used(limit - 1, limit - 1)
    assert not ours.update_due
    ours.used(limit, 0)
    assert ours.take_key_update() == KEY_UPDATE
    ours.used(0, limit)
    assert ours.take_key_update() == KEY_UPDATE_ASKING
    ours.used(0, limit + 1)
    assert not ours.update_due  # asked once


def test_the_move_is_at_a_record_boundary(ends: tuple[OwnRecords, OwnRecords]) -> None:
    ours, theirs = ends
    for _ in range(3):
        assert open_all(theirs, seal(ours, b"data"))[1] == b"data"
    assert ours.ktls_parameters(sending=True).sequence == 3
    assert theirs.ktls_parameters(sending=False).sequence == 3
