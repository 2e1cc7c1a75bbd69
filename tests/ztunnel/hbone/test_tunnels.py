"""Tunnels end to end: our client and server, and each against the `h2` library."""

import random

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, RequestReceived, ResponseReceived, StreamEnded

from ztunnel.hbone import (
    Authority,
    ConnectRequested,
    RequestRejected,
    TunnelAccepted,
    TunnelClient,
    TunnelRefused,
    TunnelServer,
)
from ztunnel.hbone.client import REFUSAL_TEXT
from ztunnel.hbone.server import MAX_REFUSED_OPEN
from ztunnel.http2 import (
    Connection,
    ErrorCode,
    GoAwayReceived,
    LocalSettings,
    Stream,
    StreamReset,
    UsageError,
)
from ztunnel.http2.events import ReceivedEvent


def feed(connection: Connection, data: bytes | bytearray) -> list[ReceivedEvent]:
    return connection.receive(memoryview(bytes(data)), 0.0)


def pump(
    client: TunnelClient, server: TunnelServer
) -> tuple[list[ReceivedEvent], list[ReceivedEvent]]:
    client_events: list[ReceivedEvent] = []
    server_events: list[ReceivedEvent] = []
    while client.out or server.out:
        server_events += feed(server, client.take())
        client_events += feed(client, server.take())
    return client_events, server_events


def pair(server: LocalSettings | None = None) -> tuple[TunnelClient, TunnelServer]:
    ends = TunnelClient(), TunnelServer(server)
    pump(*ends)
    return ends


def requested(client: TunnelClient, server: TunnelServer, authority: str) -> tuple[Stream, Stream]:
    ours = client.connect(authority)
    _, events = pump(client, server)
    (event,) = events
    assert isinstance(event, ConnectRequested)
    return ours, event.stream


def test_a_tunnel_from_open_to_end() -> None:
    client, server = pair()
    ours = client.connect(
        "[2001:db8::1]:8080",
        baggage="service.name=a",
        forwarded='for="10.0.0.1:1"',
        traceparent="00-tp",
        extra=((b"x-forwarded-network", b"net1"),),
    )
    _, events = pump(client, server)
    (request,) = events
    assert isinstance(request, ConnectRequested)
    theirs = request.stream
    assert request == ConnectRequested(
        theirs,
        Authority("2001:db8::1", 8080, True),
        "service.name=a",
        'for="10.0.0.1:1"',
        "00-tp",
        "net1",
        False,
    )
    assert server.accept(theirs, "service.name=b")
    events, _ = pump(client, server)
    assert events == [TunnelAccepted(ours, "service.name=b")]
    client.queue(ours, b"hello", True)
    server.queue(theirs, b"world", True)
    client_events, server_events = pump(client, server)
    for seen, stream, text in ((client_events, ours, b"world"), (server_events, theirs, b"hello")):
        (data,) = seen
        assert isinstance(data, tuple)
        assert (data[0], bytes(data[1]), data[2]) == (stream, text, True)
    assert not client.streams
    assert not server.streams


def test_what_is_absent_is_not_sent() -> None:
    client, server = pair()
    _, theirs = requested(client, server, "web.shop:80")
    server.accept(theirs)
    events, _ = pump(client, server)
    assert events == [TunnelAccepted(client.streams[1], "")]


def test_refused_with_a_reason_and_without_a_reset() -> None:
    client, server = pair()
    ours, theirs = requested(client, server, "10.0.0.1:80")
    server.refuse(theirs, 401, "policy deny-all\n  of namespace shop")
    events, _ = pump(client, server)
    assert events == [
        TunnelRefused(
            ours,
            401,
            "the peer answered CONNECT with status 401: policy deny-all of namespace shop",
            False,
        )
    ]
    assert ours.closed
    assert theirs.closed
    assert ours.reset_code is None
    assert client.resets.left(0.0) == server.resets.left(0.0) == 250


def test_refused_without_a_reason() -> None:
    client, server = pair()
    ours, theirs = requested(client, server, "10.0.0.1:80")
    server.refuse(theirs, 503)
    events, _ = pump(client, server)
    expected = TunnelRefused(ours, 503, "the peer answered CONNECT with status 503", False)
    assert events == [expected]
    assert ours.closed


def test_data_that_came_before_the_refusal_is_thrown_away() -> None:
    client, server = pair(LocalSettings(initial_window=65_535))
    ours = client.connect("10.0.0.1:80")
    assert client.send(ours, bytes(65_535)) == 65_535
    _, events = pump(client, server)
    request = events[0]
    assert isinstance(request, ConnectRequested)
    server.refuse(request.stream, 503, "no")
    # The client's window is used up; the end of its half comes all the same.
    assert client.sendable(ours) == 0
    events, server_events = pump(client, server)
    assert [type(e) for e in events] == [TunnelRefused]
    assert server_events == []
    assert not server.streams


def test_a_client_that_never_ends_refused_streams() -> None:
    peer = H2Connection(H2Configuration(client_side=True, header_encoding=None))
    peer.initiate_connection()
    server = TunnelServer()
    feed(server, peer.data_to_send())
    peer.receive_data(bytes(server.take()))
    for number in range(MAX_REFUSED_OPEN + 10):
        stream = 2 * number + 1
        peer.send_headers(stream, [(b":method", b"CONNECT"), (b":authority", b"a:1")])
        (request,) = (
            e for e in feed(server, peer.data_to_send()) if isinstance(e, ConnectRequested)
        )
        server.refuse(request.stream, 503)
        peer.receive_data(bytes(server.take()))
    assert len(server.streams) == MAX_REFUSED_OPEN


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        (
            [
                (b":method", b"GET"),
                (b":scheme", b"http"),
                (b":path", b"/"),
                (b":authority", b"web"),
            ],
            "GET: only CONNECT",
        ),
        ([(b":method", b"CONNECT"), (b":authority", b"web")], "has no port"),
        ([(b":method", b"CONNECT"), (b":authority", b"10.0.0.300:1")], "Octet 300"),
    ],
)
@pytest.mark.parametrize("ends", [True, False])
def test_what_is_no_tunnel(headers: list[tuple[bytes, bytes]], reason: str, ends: bool) -> None:
    client, server = pair()
    ours = client.open(headers, ends)
    client_events, server_events = pump(client, server)
    (rejected,) = server_events
    assert isinstance(rejected, RequestRejected)
    assert rejected.status == 400
    assert reason in rejected.reason
    (refused,) = client_events
    assert isinstance(refused, TunnelRefused)
    assert refused.status == 400
    assert reason in refused.reason
    assert ours.closed
    assert not server.streams
    assert not server._refused


def test_reset_instead_of_an_answer() -> None:
    client, server = pair()
    ours, theirs = requested(client, server, "10.0.0.1:80")
    server.reset(theirs, ErrorCode.CANCEL, 0.0)
    events, _ = pump(client, server)
    reason = "the peer reset the stream: CANCEL"
    assert events == [TunnelRefused(ours, 0, reason, False)]


def test_a_stream_beyond_the_limit_can_be_tried_elsewhere() -> None:
    client, server = pair(LocalSettings(max_concurrent_streams=1))
    client.connect("10.0.0.1:80")
    client.peer.max_concurrent_streams = 100
    ours = client.connect("10.0.0.2:80")
    events, _ = pump(client, server)
    (refused,) = events
    assert isinstance(refused, TunnelRefused)
    assert (refused.stream, refused.status, refused.retryable) == (ours, 0, True)


def test_reset_after_acceptance_is_a_reset() -> None:
    client, server = pair()
    ours, theirs = requested(client, server, "10.0.0.1:80")
    server.accept(theirs)
    pump(client, server)
    server.reset(theirs, ErrorCode.CONNECT_ERROR, 0.0)
    events, _ = pump(client, server)
    (event,) = events
    assert isinstance(event, StreamReset)
    assert (event.stream, event.code) == (ours, ErrorCode.CONNECT_ERROR)


def test_the_client_gives_up_before_the_answer() -> None:
    client, server = pair()
    ours, theirs = requested(client, server, "10.0.0.1:80")
    client.abandon(ours, 0.0)
    _, events = pump(client, server)
    assert [type(e) for e in events] == [StreamReset]
    assert not server.accept(theirs)
    server.refuse(theirs, 503)
    assert not server.out


def test_only_one_answer() -> None:
    client, server = pair()
    _, theirs = requested(client, server, "10.0.0.1:80")
    server.accept(theirs)
    with pytest.raises(UsageError):
        server.accept(theirs)
    with pytest.raises(UsageError):
        server.refuse(theirs, 503)


def test_streams_that_a_goaway_leaves_out() -> None:
    client, server = pair()
    server.shutdown(final=True)
    ours = client.connect("10.0.0.1:80")
    events, server_events = pump(client, server)
    assert server_events == []
    assert [e.unprocessed for e in events if isinstance(e, GoAwayReceived)] == [(ours,)]


class LibraryServer:
    """A CONNECT server made of the library, to answer in ways ours does not."""

    def __init__(self) -> None:
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self.h2.initiate_connection()
        self.client = TunnelClient()
        self.exchange()

    def exchange(self) -> list[ReceivedEvent]:
        events: list[ReceivedEvent] = []
        for _ in range(4):
            self.seen = self.h2.receive_data(bytes(self.client.take()))
            events += feed(self.client, self.h2.data_to_send())
        return events

    def connect(self) -> Stream:
        stream = self.client.connect("10.0.0.1:80")
        self.exchange()
        return stream


def test_envoys_refusal() -> None:
    server = LibraryServer()
    stream = server.connect()
    server.h2.send_headers(1, [(b":status", b"503"), (b"content-type", b"text/plain")])
    server.h2.send_data(1, b"upstream connect error", end_stream=True)
    server.h2.reset_stream(1, ErrorCodes.CONNECT_ERROR)
    reason = "the peer answered CONNECT with status 503: upstream connect error"
    assert server.exchange() == [TunnelRefused(stream, 503, reason, False)]
    assert not server.client.streams


def test_a_refusal_that_is_cut() -> None:
    server = LibraryServer()
    stream = server.connect()
    server.h2.send_headers(1, [(b":status", b"401")])
    assert server.exchange() == []
    server.h2.send_data(1, b"deny \xff\x1b[31m")
    assert server.exchange() == []
    server.h2.reset_stream(1, ErrorCodes.CANCEL)
    (event,) = server.exchange()
    assert isinstance(event, TunnelRefused)
    assert event.reason.endswith("401: deny \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}[31m")
    assert event.stream is stream


def test_a_refusal_without_end() -> None:
    server = LibraryServer()
    server.connect()
    server.h2.send_headers(1, [(b":status", b"503")])
    events = []
    for _ in range(100):
        window = server.h2.local_flow_control_window(1)
        server.h2.send_data(1, b"x" * min(window, 16_384))
        events += server.exchange()
    (event,) = events
    assert isinstance(event, TunnelRefused)
    assert len(event.reason) < REFUSAL_TEXT + 100
    # It was told once, and its window kept being returned: the peer may go on or end it.
    server.h2.end_stream(1)
    assert server.exchange() == []
    assert not server.client.streams


@pytest.mark.parametrize("status", [b"201", b"204", b"302", b"407"])
def test_any_status_but_200_is_a_refusal(status: bytes) -> None:
    server = LibraryServer()
    server.connect()
    server.h2.send_headers(1, [(b":status", b"103")])
    server.h2.send_headers(1, [(b":status", status)], end_stream=True)
    (event,) = server.exchange()
    assert isinstance(event, TunnelRefused)
    assert event.status == int(status)


def test_accepted_and_ended_at_once() -> None:
    server = LibraryServer()
    stream = server.connect()
    server.h2.send_headers(1, [(b":status", b"200")], end_stream=True)
    accepted, data = server.exchange()
    assert accepted == TunnelAccepted(stream, "")
    assert isinstance(data, tuple)
    assert (data[0], len(data[1]), data[2]) == (stream, 0, True)
    server.client.queue(stream, b"still", True)
    server.h2.receive_data(bytes(server.client.take()))
    assert stream.closed


def test_envoys_clean_end() -> None:
    server = LibraryServer()
    stream = server.connect()
    server.h2.send_headers(1, [(b":status", b"200")])
    server.h2.send_data(1, b"bye", end_stream=True)
    server.h2.reset_stream(1, ErrorCodes.NO_ERROR)
    accepted, data, reset = server.exchange()
    assert accepted == TunnelAccepted(stream, "")
    assert isinstance(data, tuple)
    assert data[2]
    assert isinstance(reset, StreamReset)
    assert reset.clean


def test_the_librarys_client_through_our_server() -> None:
    peer = H2Connection(H2Configuration(client_side=True, header_encoding=None))
    peer.initiate_connection()
    server = TunnelServer()
    rng = random.Random(1)
    payload = rng.randbytes(50_000)
    feed(server, peer.data_to_send())
    peer.receive_data(bytes(server.take()))
    # Data before the answer is delivered, and may be held by the owner.
    peer.send_headers(1, [(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80")])
    for start in range(0, 50_000, 10_000):
        peer.send_data(1, payload[start : start + 10_000])
    peer.end_stream(1)
    events = feed(server, peer.data_to_send())
    request = next(e for e in events if isinstance(e, ConnectRequested))
    assert b"".join(e[1] for e in events if isinstance(e, tuple)) == payload
    server.accept(request.stream, "service.name=b")
    server.send(request.stream, payload, True)
    answers = peer.receive_data(bytes(server.take()))
    response = next(e for e in answers if isinstance(e, ResponseReceived))
    assert (b"baggage", b"service.name=b") in list(response.headers)
    assert b"".join(e.data for e in answers if isinstance(e, DataReceived)) == payload
    assert any(isinstance(e, StreamEnded) for e in answers)
    assert request.stream.closed
    assert not any(isinstance(e, RequestReceived) for e in answers)
