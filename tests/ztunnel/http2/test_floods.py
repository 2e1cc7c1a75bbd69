"""Each guard stops its flood, and what honest peers do stays far below it."""

from collections.abc import Callable

import pytest

from tests.ztunnel.http2.exchange import (
    CONNECT,
    GET,
    OK,
    block,
    feed,
    fresh_client,
    fresh_server,
    pair,
    pump,
    tunnel,
)
from ztunnel.http2 import Connection, ConnectionTerminated, ErrorCode, LocalSettings, limits
from ztunnel.http2.flood import Bucket
from ztunnel.http2.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    UINT32,
    WINDOW_UPDATE,
    frame,
)

ALL = END_HEADERS | END_STREAM


def drown(connection: Connection, wave: Callable[[int], bytes], most: int) -> int:
    """How many waves it took, and that it ended with ENHANCE_YOUR_CALM."""
    for number in range(most):
        events = feed(connection, wave(number))
        connection.take()
        if events and isinstance(events[-1], ConnectionTerminated):
            assert events[-1].code is ErrorCode.ENHANCE_YOUR_CALM, events[-1].reason
            return number
    raise AssertionError(f"{most} waves were taken")


def opened(number: int) -> bytes:
    return frame(HEADERS, END_HEADERS, 2 * number + 1, block(CONNECT))


def test_rapid_reset() -> None:
    def wave(number: int) -> bytes:
        reset = frame(RST_STREAM, 0, 2 * number + 1, UINT32.pack(ErrorCode.CANCEL))
        return opened(number) + reset

    assert drown(fresh_server(), wave, 2000) == limits.RESET_BURST


def test_resets_in_time_are_taken() -> None:
    server = fresh_server()
    for number in range(2 * limits.RESET_BURST):
        wire = opened(number) + frame(RST_STREAM, 0, 2 * number + 1, UINT32.pack(8))
        feed(server, wire, now=number / limits.RESETS_PER_SECOND)
        server.take()
    assert server.terminated is None


def test_a_server_may_end_every_tunnel_by_end_stream_and_reset() -> None:
    client, server = pair()
    for _ in range(limits.RESET_BURST + 500):
        ours, theirs = tunnel(client, server)
        server.end(theirs)
        server.reset(theirs, ErrorCode.NO_ERROR, 0.0)
        pump(client, server)
        assert ours.closed
    assert client.terminated is None


@pytest.mark.parametrize(
    ("wave", "least"),
    [
        (frame(PING, 0, 0, bytes(8)), limits.PING_BURST),
        (frame(SETTINGS, 0, 0, b""), limits.SETTINGS_BURST - 1),
        (frame(GOAWAY, 0, 0, bytes(8)), limits.SETTINGS_BURST - 1),
        (frame(DATA, 0, 1, b""), limits.EMPTY_BURST),
        (frame(PRIORITY, 0, 1, bytes(5)), limits.PRIORITY_BASE),
        (frame(WINDOW_UPDATE, 0, 0, UINT32.pack(1)), limits.WINDOW_UPDATE_BASE),
        (frame(0x99, 0, 0, b""), limits.USELESS_BURST),
    ],
)
def test_floods_of_small_frames(wave: bytes, least: int) -> None:
    server = fresh_server()
    feed(server, opened(0))
    taken = drown(server, lambda _: wave, 20_000)
    assert least <= taken <= 2 * least


def test_answers_that_nobody_reads() -> None:
    server = fresh_server()
    wave = frame(PING, 0, 0, bytes(8)) * 500
    now = 0.0
    for _ in range(100):
        now += 1.0
        events = feed(server, wave, now)
        if events:
            assert isinstance(events[-1], ConnectionTerminated)
            break
    assert len(server.out) < 20 * limits.MAX_UNREAD_ANSWERS
    assert now < 20


def test_answers_that_are_read() -> None:
    server = fresh_server()
    now = 0.0
    for _ in range(100):
        now += 1.0
        assert feed(server, frame(PING, 0, 0, bytes(8)) * 500, now) == []
        server.take()


def test_continuation_flood() -> None:
    server = fresh_server()
    start = frame(HEADERS, END_STREAM, 1, b"")
    wave = frame(CONTINUATION, 0, 1, b"\x00\x01a\x01b" * 10)
    taken = drown(server, lambda number: start if not number else wave, 1000)
    assert taken == limits.MAX_CONTINUATIONS + 1


def test_a_header_block_is_bounded_in_bytes() -> None:
    server = fresh_server()
    feed(server, frame(HEADERS, END_STREAM, 1, b""))
    largest = 64 * 1024 + limits.HEADER_BLOCK_MARGIN
    wave = frame(CONTINUATION, 0, 1, bytes(16_384))
    for _ in range(largest // 16_384):
        assert feed(server, wave) == []
    (event,) = feed(server, wave)
    assert isinstance(event, ConnectionTerminated)
    assert len(server._block) <= largest + 16_384


@pytest.mark.parametrize("kind", [SETTINGS, PING, GOAWAY, PRIORITY, 0x5])
def test_large_control_frames_are_refused_at_their_header(kind: int) -> None:
    wide = LocalSettings(max_frame_size=1 << 20)
    for connection in (fresh_server(wide), fresh_client(wide)):
        (event,) = feed(connection, frame(kind, 0, 0, bytes(16_385))[:9])
        assert isinstance(event, ConnectionTerminated)
        assert event.code is ErrorCode.ENHANCE_YOUR_CALM


def test_refused_streams_without_end() -> None:
    server = fresh_server(LocalSettings(max_concurrent_streams=0))
    taken = drown(server, opened, limits.REFUSED_BURST + 10)
    assert taken == limits.REFUSED_BURST


def test_malformed_requests_without_end() -> None:
    wrong = block([(b":method", b"GET")])
    server = fresh_server()
    taken = drown(server, lambda n: frame(HEADERS, ALL, 2 * n + 1, wrong), 10_000)
    assert taken == limits.FAULT_BURST


def test_window_updates_for_each_data_frame_are_taken() -> None:
    """What the most generous implementations do: two updates for each DATA frame."""
    client, server = pair()
    ours, theirs = tunnel(client, server)
    for _ in range(5000):
        client.queue(ours, b"x")
        feed(server, client.take())
        theirs.recv_window += 1
        server.take()
        update = frame(WINDOW_UPDATE, 0, 0, UINT32.pack(1))
        feed(client, update + frame(WINDOW_UPDATE, 0, ours.id, UINT32.pack(1)))
    assert client.terminated is None


def test_a_thousand_clients_opening_at_once() -> None:
    client, server = pair()
    streams = [client.open(CONNECT) for _ in range(1024)]
    pump(client, server)
    for stream in list(server.streams.values()):
        server.send_headers(stream, OK)
    pump(client, server)
    assert all(stream.responded for stream in streams)
    assert server.terminated is None
    assert client.terminated is None


def test_informational_responses_without_end() -> None:
    client = fresh_client()
    client.open(GET)
    wave = frame(HEADERS, END_HEADERS, 1, block([(b":status", b"102")]))
    feed(client, wave * (limits.USELESS_BURST + 1))
    assert not client.streams


def test_bucket() -> None:
    bucket = Bucket(2, 10.0)
    assert [bucket.take(0.0) for _ in range(3)] == [True, True, False]
    assert bucket.take(0.1)
    assert not bucket.take(0.1)
    assert not bucket.take(0.05)
    assert bucket.left(100.0) == 2


def test_a_bucket_that_was_never_used_is_not_filled_twice() -> None:
    """Clocks do not begin at 0."""
    bucket = Bucket(2, 10.0)
    assert [bucket.take(5000.0) for _ in range(3)] == [True, True, False]
    assert bucket.take(5000.1)
    assert [bucket.take(6000.0) for _ in range(3)] == [True, True, False]


def test_closed_streams_do_not_pile_up() -> None:
    client, server = pair()
    for _ in range(2000):
        ours, theirs = tunnel(client, server)
        client.end(ours)
        server.end(theirs)
        pump(client, server)
    for connection in (client, server):
        assert not connection.streams
        assert len(connection._closed) == limits.CLOSED_STREAMS_REMEMBERED


def test_our_own_client_never_sends_what_peers_count() -> None:
    """No empty DATA but END_STREAM, no reset in an orderly life."""
    client, server = pair()
    for _ in range(100):
        ours, theirs = tunnel(client, server)
        client.send(ours, b"x" * 100_000)
        client.send(ours, b"", False)
        client.end(ours)
        sent = bytes(client.out)
        assert frame(DATA, 0, ours.id, b"") not in sent
        pump(client, server)
        server.end(theirs)
        pump(client, server)
    assert client.resets.left(0.0) == limits.PEER_EARLY_RESET_BURST
