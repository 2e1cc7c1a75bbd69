"""Payload of DATA frames that its owner moves by itself, past the connection."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ztunnel.http2.exchange import feed, pair, tunnel
from ztunnel.http2 import Stream
from ztunnel.http2.errors import ErrorCode, UsageError
from ztunnel.http2.frames import DATA, END_STREAM, PADDED, PING, frame

PIECES = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from((1, 2, 9, 100, 4000)), st.booleans()),
    max_size=20,
)


@given(PIECES, st.integers(0, 1 << 30), st.booleans())
def test_moving_and_receiving_in_any_mixture_loses_nothing(
    pieces: list[tuple[int, int, bool]], seed: int, exact: bool
) -> None:
    """Frames of two streams, with others between: read to the boundary, beyond it, or moved."""
    choose = random.Random(seed)
    client, server = pair()
    streams = [tunnel(client, server)[1] for _ in range(2)]
    expected = [b"", b""]
    wire = b""
    for number, size, ping in pieces:
        payload = choose.randbytes(size)
        expected[number] += payload
        if ping:
            wire += frame(PING, 0, 0, b"12345678")
        if choose.random() < 0.2:
            wire += frame(DATA, PADDED, streams[number].id, b"\3" + payload + bytes(3))
        else:
            wire += frame(DATA, 0, streams[number].id, payload)
    for stream in streams:
        last = choose.randbytes(50)
        expected[streams.index(stream)] += last
        wire += frame(DATA, END_STREAM, stream.id, last)
    got = [b"", b""]
    ended: list[Stream] = []
    while wire:
        left = server.payload_left
        if left and choose.random() < 0.7:
            moved = server.payload_stream
            assert moved is not None
            count = min(choose.randrange(1, left + 1), len(wire))
            got[streams.index(moved)] += wire[:count]
            wire = wire[count:]
            if server.payload_moved(count):
                ended.append(moved)
            continue
        count = server.boundary if exact or choose.random() < 0.5 else choose.randrange(1, 300)
        assert count > 0
        for event in feed(server, wire[:count]):
            if type(event) is tuple:
                got[streams.index(event[0])] += event[1]
                if event[2]:
                    ended.append(event[0])
        wire = wire[count:]
    assert got == expected
    assert ended == streams
    assert all(stream.remote_closed for stream in streams)
    assert server.terminated is None


def test_a_frame_is_announced_by_its_header_alone() -> None:
    client, server = pair()
    _, stream = tunnel(client, server)
    assert server.boundary == 9
    assert server.payload_left == 0
    assert feed(server, frame(DATA, 0, stream.id, bytes(1000))[:9]) == []
    assert (server.payload_left, server.boundary) == (1000, 1000)
    assert server.payload_stream is stream
    before = stream.recv_window
    assert not server.payload_moved(999)
    assert server.payload_left == 1
    assert not server.payload_moved(1)
    assert server.boundary == 9
    assert stream.recv_window == before  # the header was charged for all of it


def test_more_than_the_payload_cannot_be_moved() -> None:
    client, server = pair()
    _, stream = tunnel(client, server)
    feed(server, frame(DATA, 0, stream.id, bytes(1000))[:9])
    with pytest.raises(UsageError):
        server.payload_moved(1001)


def test_payload_of_a_stream_that_was_reset_must_be_received() -> None:
    client, server = pair()
    _, stream = tunnel(client, server)
    feed(server, frame(DATA, 0, stream.id, bytes(1000))[:9])
    server.reset(stream, ErrorCode.CANCEL, 0.0)
    assert server.payload_left == 0
    assert feed(server, bytes(1000)) == []
    assert server.boundary == 9


def test_a_reset_between_moving_and_telling_is_no_second_end() -> None:
    client, server = pair()
    _, stream = tunnel(client, server)
    feed(server, frame(DATA, END_STREAM, stream.id, bytes(1000))[:9])
    server.reset(stream, ErrorCode.CANCEL, 0.0)
    assert not server.payload_moved(1000)
    assert server.boundary == 9
