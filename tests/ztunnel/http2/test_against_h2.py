"""Our end against the `h2` library's: the same bytes, in both roles, under random schedules."""

import random
from collections import defaultdict
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    PingAckReceived,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.settings import SettingCodes
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ztunnel.http2.exchange import CONNECT, GET, OK, feed
from ztunnel.http2 import (
    ClientConnection,
    Connection,
    ErrorCode,
    LocalSettings,
    ServerConnection,
    Stream,
)
from ztunnel.http2 import events as ours
from ztunnel.http2.events import ReceivedEvent


class Peer:
    """The library's end, driven as its documentation says."""

    def __init__(self, client: bool) -> None:
        config = H2Configuration(client_side=client, header_encoding=None)
        self.h2 = H2Connection(config)
        self.h2.initiate_connection()
        self.received: dict[int, bytearray] = defaultdict(bytearray)
        self.ended: set[int] = set()
        self.reset: dict[int, int] = {}
        self.headers: dict[int, list[tuple[bytes, bytes]]] = {}
        self.trailers: dict[int, list[tuple[bytes, bytes]]] = {}
        self.pongs: list[bytes] = []
        self.terminated: Any = None

    def feed(self, data: bytes | bytearray) -> None:
        for event in self.h2.receive_data(bytes(data)):
            if isinstance(event, DataReceived):
                self.received[event.stream_id] += event.data
                if event.flow_controlled_length:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, StreamEnded):
                self.ended.add(event.stream_id)
            elif isinstance(event, StreamReset):
                self.reset[event.stream_id] = int(event.error_code or 0)
            elif isinstance(event, RequestReceived | ResponseReceived):
                self.headers[event.stream_id] = [(name, value) for name, value in event.headers]
            elif isinstance(event, TrailersReceived):
                self.trailers[event.stream_id] = [(name, value) for name, value in event.headers]
            elif isinstance(event, PingAckReceived):
                self.pongs.append(event.ping_data)
            elif isinstance(event, ConnectionTerminated):
                self.terminated = event

    def send(self, stream: int, data: bytes, padding: int | None) -> int:
        """As much as the windows take, in one frame."""
        room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size) - (
            0 if padding is None else padding + 1
        )
        piece = data[: max(room, 0)]
        if piece:
            self.h2.send_data(stream, piece, pad_length=padding)
        return len(piece)


class Harness:
    """Bytes between the two ends in random pieces, and what our end has seen."""

    def __init__(self, connection: Connection, peer: Peer, rng: random.Random) -> None:
        self.connection = connection
        self.peer = peer
        self.rng = rng
        self.to_us = bytearray()
        self.to_peer = bytearray()
        self.received: dict[int, bytearray] = defaultdict(bytearray)
        self.ended: set[int] = set()
        self.events: list[ReceivedEvent] = []
        self.unconsumed: list[tuple[Stream, int]] = []

    def collect(self) -> None:
        self.to_us += self.peer.h2.data_to_send()
        self.to_peer += self.connection.take()

    def step(self) -> None:
        self.collect()
        size = self.rng.choice([1, 5, 9, 10, 100, 5000, 100_000])
        if self.rng.random() < 0.5:
            piece, self.to_us = self.to_us[:size], self.to_us[size:]
            self.see(feed(self.connection, piece))
        else:
            piece, self.to_peer = self.to_peer[:size], self.to_peer[size:]
            self.peer.feed(piece)
        if self.unconsumed and self.rng.random() < 0.6:
            self.connection.consumed(*self.unconsumed.pop())

    def see(self, events: list[ReceivedEvent]) -> None:
        for event in events:
            if isinstance(event, tuple):
                stream, view, ends = event
                self.received[stream.id] += view
                self.unconsumed.append((stream, len(view)))
                if ends:
                    self.ended.add(stream.id)
            else:
                assert not isinstance(event, ours.ConnectionTerminated), event
                self.events.append(event)

    def settle(self) -> None:
        while True:
            self.collect()
            for stream, count in self.unconsumed:
                self.connection.consumed(stream, count)
            self.unconsumed.clear()
            self.collect()
            if not self.to_us and not self.to_peer:
                return
            to_us, self.to_us = self.to_us, bytearray()
            self.see(feed(self.connection, to_us))
            to_peer, self.to_peer = self.to_peer, bytearray()
            self.peer.feed(to_peer)


def client_harness(seed: int, local: LocalSettings | None = None) -> tuple[Any, Harness]:
    client = ClientConnection(local)
    harness = Harness(client, Peer(client=False), random.Random(seed))
    harness.settle()
    return client, harness


def server_harness(seed: int, local: LocalSettings | None = None) -> tuple[Any, Harness]:
    server = ServerConnection(local)
    harness = Harness(server, Peer(client=True), random.Random(seed))
    harness.settle()
    return server, harness


wide = st.sampled_from([None, LocalSettings(max_frame_size=1 << 20, initial_window=1 << 20)])


def run(harness: Harness, pairs: list[tuple[Stream, int]], sizes: list[int]) -> None:
    """Send random bytes both ways on every stream, half-close at the end, compare all of it."""
    rng = harness.rng
    up = {sid: rng.randbytes(rng.choice(sizes)) for _, sid in pairs}
    down = {sid: rng.randbytes(rng.choice(sizes)) for _, sid in pairs}
    sent_up = dict.fromkeys(up, 0)
    sent_down = dict.fromkeys(down, 0)
    up_open = set(up)
    down_open = set(down)
    idle = 0
    while up_open or down_open:
        stream, sid = rng.choice(pairs)
        before = (sum(sent_up.values()), sum(sent_down.values()), len(up_open), len(down_open))
        if sid in up_open:
            rest = up[sid][sent_up[sid] :]
            limit = rng.choice([1, 64, 3000, 1 << 20])
            sent_up[sid] += harness.connection.send(stream, memoryview(rest[:limit]))
            if sent_up[sid] == len(up[sid]):
                harness.connection.end(stream)
                up_open.discard(sid)
        if sid in down_open:
            rest = down[sid][sent_down[sid] :]
            padding = rng.choice([None, None, 0, 7, 255])
            sent_down[sid] += harness.peer.send(sid, rest[: rng.choice([1, 64, 1 << 20])], padding)
            if sent_down[sid] == len(down[sid]):
                harness.peer.h2.end_stream(sid)
                down_open.discard(sid)
        for _ in range(rng.randrange(4)):
            harness.step()
        now = (sum(sent_up.values()), sum(sent_down.values()), len(up_open), len(down_open))
        idle = 0 if now != before else idle + 1
        if idle > 50:
            harness.settle()
        assert idle < 500, "nothing moves any more"
    harness.settle()
    for _, sid in pairs:
        assert harness.peer.received[sid] == up[sid]
        assert harness.received[sid] == down[sid]
    assert harness.ended == set(down) == harness.peer.ended
    assert not harness.connection.streams


SIZES = [0, 1, 100, 16_384, 65_535, 65_536, 300_000]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), wide)
def test_our_client_and_the_librarys_server(
    seed: int, count: int, local: LocalSettings | None
) -> None:
    client, harness = client_harness(seed, local)
    streams = [client.open([*CONNECT, (b"baggage", b"b" * n)]) for n in range(count)]
    harness.settle()
    for stream in streams:
        assert harness.peer.headers[stream.id][1] == CONNECT[1]
        harness.peer.h2.send_headers(stream.id, [*OK, (b"baggage", b"x=y")])
    harness.settle()
    answers = [e for e in harness.events if isinstance(e, ours.ResponseReceived)]
    assert [a.stream for a in answers] == streams
    assert {a.headers[1] for a in answers} == {(b"baggage", b"x=y")}
    run(harness, [(stream, stream.id) for stream in streams], SIZES)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), wide)
def test_our_server_and_the_librarys_client(
    seed: int, count: int, local: LocalSettings | None
) -> None:
    server, harness = server_harness(seed, local)
    for number in range(count):
        harness.peer.h2.send_headers(2 * number + 1, [*CONNECT, (b"baggage", b"b" * number)])
    harness.settle()
    requests = [e for e in harness.events if isinstance(e, ours.RequestReceived)]
    assert [len(r.headers[2][1]) for r in requests] == list(range(count))
    for request in requests:
        server.send_headers(request.stream, OK)
    harness.settle()
    run(harness, [(request.stream, request.stream.id) for request in requests], SIZES)


@pytest.mark.parametrize("value", [0, 1, 65_535, 1_000_000])
def test_the_initial_window_changes_under_way(value: int) -> None:
    client, harness = client_harness(value)
    stream = client.open(CONNECT)
    harness.settle()
    harness.peer.h2.send_headers(1, OK)
    harness.settle()
    client.send(stream, bytes(40_000))
    harness.peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: value})
    harness.settle()
    window = min(stream.send_window, client.send_window)
    assert window == harness.peer.h2.remote_flow_control_window(1)
    assert client.sendable(stream) == max(0, window)


def test_all_other_settings_change_under_way() -> None:
    client, harness = client_harness(1)
    harness.peer.h2.update_settings(
        {
            SettingCodes.MAX_FRAME_SIZE: 100_000,
            SettingCodes.HEADER_TABLE_SIZE: 0,
            SettingCodes.MAX_CONCURRENT_STREAMS: 2,
        }
    )
    harness.settle()
    assert client.max_send_frame == 100_000
    for _ in range(2):
        client.open([*CONNECT, (b"baggage", b"same")])
    assert not client.can_open()
    harness.settle()
    harness.peer.h2.update_settings({SettingCodes.HEADER_TABLE_SIZE: 4096})
    harness.settle()
    client.reset(client.streams[1], ErrorCode.CANCEL, 0.0)
    client.open([*CONNECT, (b"baggage", b"same")])
    harness.settle()
    assert {bytes(h[2][1]) for h in harness.peer.headers.values()} == {b"same"}
    assert harness.peer.reset == {1: ErrorCodes.CANCEL}


def test_resets_cross() -> None:
    client, harness = client_harness(2)
    first, second, third = (client.open(CONNECT) for _ in range(3))
    harness.settle()
    for stream in (1, 3, 5):
        harness.peer.h2.send_headers(stream, OK)
    harness.settle()
    # Both at once, with data under way.
    client.send(first, b"x" * 1000)
    client.reset(first, ErrorCode.CONNECT_ERROR, 0.0)
    harness.peer.h2.send_data(1, b"y" * 1000)
    harness.peer.h2.reset_stream(1, ErrorCodes.INTERNAL_ERROR)
    harness.peer.h2.reset_stream(3, ErrorCodes.CANCEL)
    client.send(third, b"goes on")
    harness.settle()
    resets = [e for e in harness.events if isinstance(e, ours.StreamReset)]
    assert [(r.stream, r.code, r.by_peer) for r in resets] == [(second, ErrorCode.CANCEL, True)]
    assert harness.peer.received[5] == b"goes on"


def test_requests_with_trailers() -> None:
    client, harness = client_harness(3)
    stream = client.open(GET)
    client.send(stream, b"body")
    client.send_trailers(stream, [(b"t", b"1")])
    harness.settle()
    assert harness.peer.trailers[1] == [(b"t", b"1")]
    harness.peer.h2.send_headers(1, OK)
    harness.peer.h2.send_data(1, b"answer")
    harness.peer.h2.send_headers(1, [(b"grpc-status", b"0")], end_stream=True)
    harness.settle()
    trailers = [e for e in harness.events if isinstance(e, ours.TrailersReceived)]
    assert trailers == [ours.TrailersReceived(stream, [(b"grpc-status", b"0")])]
    assert harness.received[1] == b"answer"
    server, harness = server_harness(3)
    harness.peer.h2.send_headers(1, GET)
    harness.peer.h2.send_headers(1, [(b"t", b"2")], end_stream=True)
    harness.settle()
    (stream,) = server.streams.values()
    server.send_headers(stream, OK)
    server.send(stream, b"answer")
    server.send_headers(stream, [(b"grpc-status", b"0")], end_stream=True)
    harness.settle()
    assert harness.peer.trailers[1] == [(b"grpc-status", b"0")]
    assert harness.peer.received[1] == b"answer"


def test_ping_and_goaway() -> None:
    for make in (client_harness, server_harness):
        connection, harness = make(4)
        connection.ping(b"12345678")
        harness.peer.h2.ping(b"abcdefgh")
        harness.settle()
        assert harness.peer.pongs == [b"abcdefgh"]
        assert ours.PingAcknowledged(b"12345678") in harness.events
        connection.terminate(ErrorCode.ENHANCE_YOUR_CALM, "why")
        harness.peer.feed(connection.take())
        assert harness.peer.terminated.error_code == ErrorCodes.ENHANCE_YOUR_CALM
        assert harness.peer.terminated.additional_data == b"why"


def test_large_and_many_headers() -> None:
    headers = [*CONNECT, *((b"x-%d" % n, b"v" * 700) for n in range(60))]
    client, harness = client_harness(5)
    client.open(headers)
    harness.settle()
    assert harness.peer.headers[1] == headers
    server, harness = server_harness(6)
    harness.peer.h2.send_headers(1, headers)
    harness.settle()
    (request,) = (e for e in harness.events if isinstance(e, ours.RequestReceived))
    assert request.headers == headers
    assert server.terminated is None
