"""What concerns the connection as a whole: the preface, SETTINGS, PING, GOAWAY, its end."""

import pytest

from tests.ztunnel.http2.exchange import (
    CONNECT,
    GET,
    block,
    data_of,
    feed,
    fresh_client,
    fresh_server,
    pair,
    pump,
    tunnel,
)
from ztunnel.http2 import (
    ClientConnection,
    ConnectionTerminated,
    ErrorCode,
    GoAwayReceived,
    LocalSettings,
    PingAcknowledged,
    RequestReceived,
    ServerConnection,
    SettingsAcknowledged,
    SettingsReceived,
    StreamReset,
    UsageError,
)
from ztunnel.http2.frames import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    TWO_UINT32,
    WINDOW_UPDATE,
    frame,
)


def setting(key: int, value: int) -> bytes:
    return frame(SETTINGS, 0, 0, key.to_bytes(2, "big") + value.to_bytes(4, "big"))


def test_settings_are_exchanged_and_acknowledged() -> None:
    client = ClientConnection(LocalSettings(max_frame_size=1 << 20))
    server = ServerConnection(LocalSettings(max_concurrent_streams=7, max_header_list_size=9999))
    client_events, server_events = pump(client, server)
    assert client_events == [SettingsReceived(True), SettingsAcknowledged()]
    assert server_events == [SettingsReceived(True), SettingsAcknowledged()]
    assert client.settings_acknowledged
    assert server.settings_acknowledged
    assert client.peer.max_concurrent_streams == 7
    assert client.peer.max_header_list_size == 9999
    assert server.peer.max_frame_size == 1 << 20
    assert server.peer.enable_push is False
    assert client.send_window == 16 * 1024 * 1024
    assert feed(client, setting(0x3, 9)) == [SettingsReceived(False)]
    assert client.peer.max_concurrent_streams == 9


def test_extended_connect_is_announced_when_it_is_on() -> None:
    client, _ = pair(server=LocalSettings(enable_connect_protocol=True))
    assert client.peer.enable_connect_protocol


@pytest.mark.parametrize("wrong", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", PREFACE[:10] + b"x"])
def test_a_client_without_preface(wrong: bytes) -> None:
    server = ServerConnection()
    (event,) = feed(server, wrong)
    assert isinstance(event, ConnectionTerminated)
    assert event.code is ErrorCode.PROTOCOL_ERROR


def test_the_first_frame_must_be_settings() -> None:
    (event,) = feed(ServerConnection(), PREFACE + frame(PING, 0, 0, bytes(8)))
    assert isinstance(event, ConnectionTerminated)
    (event,) = feed(ClientConnection(), frame(SETTINGS, ACK, 0, b""))
    assert isinstance(event, ConnectionTerminated)


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (setting(0x2, 2), ErrorCode.PROTOCOL_ERROR),
        (setting(0x4, 1 << 31), ErrorCode.FLOW_CONTROL_ERROR),
        (setting(0x5, 16_383), ErrorCode.PROTOCOL_ERROR),
        (setting(0x5, 1 << 24), ErrorCode.PROTOCOL_ERROR),
        (setting(0x8, 2), ErrorCode.PROTOCOL_ERROR),
        (frame(SETTINGS, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(SETTINGS, 0, 1, b""), ErrorCode.PROTOCOL_ERROR),
        (frame(SETTINGS, ACK, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(SETTINGS, 0, 0, bytes(6 * 65)), ErrorCode.ENHANCE_YOUR_CALM),
        (frame(PING, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (frame(GOAWAY, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(GOAWAY, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (frame(WINDOW_UPDATE, 0, 0, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(RST_STREAM, 0, 1, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_broken_frames_end_the_connection_with_goaway(wrong: bytes, code: ErrorCode) -> None:
    for connection in (fresh_client(), fresh_server()):
        (event,) = feed(connection, wrong)
        assert isinstance(event, ConnectionTerminated)
        assert event.code is code
        assert connection.terminated == event
        payload = TWO_UINT32.pack(0, code) + event.reason.encode()
        assert connection.take() == frame(GOAWAY, 0, 0, payload)
        # And then nothing.
        assert feed(connection, frame(PING, 0, 0, bytes(8))) == []
        assert not connection.out


def test_a_server_may_not_turn_push_on() -> None:
    (event,) = feed(fresh_client(), setting(0x2, 1))
    assert isinstance(event, ConnectionTerminated)


def test_what_came_before_the_fault_is_still_told() -> None:
    client, server = pair()
    ours, theirs = tunnel(client, server)
    events = feed(server, frame(DATA, 0, ours.id, b"good") + frame(PING, 0, 1, bytes(8)))
    assert data_of(events, theirs) == b"good"
    assert isinstance(events[-1], ConnectionTerminated)
    assert server.streams == {theirs.id: theirs}


def test_nothing_can_be_sent_on_a_terminated_connection() -> None:
    client, server = pair()
    ours, _ = tunnel(client, server)
    client.terminate(ErrorCode.NO_ERROR, "the certificate is revoked")
    client.terminate(ErrorCode.INTERNAL_ERROR, "again")
    assert client.take().endswith(b"the certificate is revoked")
    assert client.sendable(ours) == 0
    assert not client.can_open()
    with pytest.raises(UsageError):
        client.queue(ours, b"x")
    with pytest.raises(UsageError):
        client.end(ours)
    with pytest.raises(UsageError):
        client.send_trailers(ours, [])
    with pytest.raises(UsageError):
        client.open(CONNECT)
    client.consumed(ours, 1 << 20)
    client.ping(b"01234567")
    client.shutdown()
    client.reset(ours, ErrorCode.CANCEL, 0.0)
    assert not client.out


def test_ping_both_ways() -> None:
    client, server = pair()
    client.ping(b"01234567")
    assert client.pings_outstanding == 1
    events, _ = pump(client, server)
    assert events == [PingAcknowledged(b"01234567")]
    assert client.pings_outstanding == 0
    assert feed(client, frame(PING, ACK, 0, b"unasked!")) == []
    with pytest.raises(UsageError):
        client.ping(b"short")
    for number in range(16):
        client.ping(number.to_bytes(8, "big"))
    with pytest.raises(UsageError):
        client.ping(bytes(8))


def test_shutdown_of_a_server_in_two_steps() -> None:
    client, server = pair()
    ours, theirs = tunnel(client, server)
    late = client.open(GET)
    under_way = client.take()
    server.shutdown(final=False)
    (goaway,) = feed(client, server.take())
    assert isinstance(goaway, GoAwayReceived)
    assert goaway.last_stream_id == 2**31 - 1
    assert goaway.unprocessed == ()
    assert not client.can_open()
    (request,) = feed(server, under_way)
    assert isinstance(request, RequestReceived)
    server.shutdown(final=True)
    server.shutdown(final=True)
    server.shutdown(final=False)
    (goaway,) = feed(client, server.take())
    assert isinstance(goaway, GoAwayReceived)
    assert goaway.last_stream_id == late.id
    server.queue(theirs, b"goes on")
    events, _ = pump(client, server)
    assert data_of(events, ours) == b"goes on"
    client.queue(ours, b"and on")
    _, events = pump(client, server)
    assert data_of(events, theirs) == b"and on"


def test_streams_after_the_final_goaway_are_ignored_and_told_to_the_client() -> None:
    client, server = pair()
    tunnel(client, server)
    lost = client.open([*CONNECT, (b"baggage", b"in-the-table")])
    client.queue(lost, b"lost")
    under_way = client.take()
    server.shutdown(final=True)
    assert feed(server, under_way) == []
    events, _ = pump(client, server)
    (goaway,) = events
    assert isinstance(goaway, GoAwayReceived)
    assert goaway.unprocessed == (lost,)
    assert lost.closed
    assert server.terminated is None


def test_shutdown_of_a_client() -> None:
    client, server = pair()
    ours, theirs = tunnel(client, server)
    client.shutdown()
    client.shutdown()
    assert not client.can_open()
    _, events = pump(client, server)
    assert [type(e) for e in events] == [GoAwayReceived]
    client.queue(ours, b"goes on", True)
    _, events = pump(client, server)
    assert data_of(events, theirs) == b"goes on"


def test_unknown_frames_and_flags_are_ignored() -> None:
    client, server = pair()
    ours, theirs = tunnel(client, server)
    wire = (
        frame(0x2A, 0xFF, 3, bytes(10_000))
        + frame(DATA, 0x72, ours.id, b"odd flags")
        + frame(PING, 0xFE, 0, b"01234567")
    )
    assert data_of(feed(server, wire), theirs) == b"odd flags"
    assert server.take() == frame(PING, ACK, 0, b"01234567")
    # In pieces too.
    assert data_of([e for b in wire for e in feed(server, bytes((b,)))], theirs) == b"odd flags"


def test_the_reserved_bit_of_a_stream_number_is_ignored() -> None:
    client, server = pair()
    ours, theirs = tunnel(client, server)
    events = feed(server, frame(DATA, 0, ours.id | 1 << 31, b"x"))
    assert data_of(events, theirs) == b"x"


def test_resets_are_counted_against_the_peers_guards() -> None:
    client, server = pair()
    allowed = client.resets.left(0.0)
    assert allowed == 250
    client.reset(client.open(CONNECT), ErrorCode.CANCEL, 0.0)
    assert client.resets.left(0.0) == allowed - 1
    ours, _ = tunnel(client, server)
    client.reset(ours, ErrorCode.CANCEL, 0.0)
    assert client.resets.left(0.0) == allowed - 1
    assert client.resets.left(1.0) == allowed


@pytest.mark.parametrize(
    "values",
    [
        {"initial_window": 65_534},
        {"connection_window": 1 << 31},
        {"max_frame_size": 1000},
        {"max_concurrent_streams": -1},
        {"header_table_size": 1 << 20},
        {"max_header_list_size": 0},
    ],
)
def test_settings_out_of_range(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        LocalSettings(**values)  # type: ignore[arg-type]


def test_a_stream_that_was_reset_leaves_no_trace_for_the_next() -> None:
    client, server = pair()
    for _ in range(50):
        ours, theirs = tunnel(client, server)
        server.reset(theirs, ErrorCode.CONNECT_ERROR, 0.0)
        events, _ = pump(client, server)
        assert [type(e) for e in events] == [StreamReset]
        assert ours.closed
    assert not client.streams
    assert not server.streams


def test_headers_for_the_same_block_end_in_any_piece() -> None:
    wire = frame(HEADERS, END_HEADERS | END_STREAM, 1, block(GET))
    for cut in range(1, len(wire)):
        server = fresh_server()
        events = feed(server, wire[:cut]) + feed(server, wire[cut:])
        assert [type(e) for e in events] == [RequestReceived]
