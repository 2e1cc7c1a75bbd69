"""The lives of streams: halves, resets, late frames, trailers, limits on their number."""

import pytest

from tests.ztunnel.http2.exchange import (
    CONNECT,
    GET,
    OK,
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
    ConnectionTerminated,
    ErrorCode,
    InformationalReceived,
    LocalSettings,
    RequestReceived,
    ResponseReceived,
    StreamReset,
    TrailersReceived,
    UsageError,
)
from ztunnel.http2.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PRIORITY,
    PRIORITY_FLAG,
    RST_STREAM,
    UINT32,
    WINDOW_UPDATE,
    frame,
)
from ztunnel.http2.limits import CLOSED_STREAMS_REMEMBERED

ALL = END_HEADERS | END_STREAM


def reset_frame(stream: int, code: ErrorCode) -> bytes:
    return frame(RST_STREAM, 0, stream, UINT32.pack(code))


def terminated(events: list[object]) -> ConnectionTerminated:
    event = events[-1]
    assert isinstance(event, ConnectionTerminated)
    return event


def test_half_close_in_both_orders() -> None:
    for first in ("client", "server"):
        client, server = pair()
        ours, theirs = tunnel(client, server)
        if first == "client":
            client.queue(ours, b"request", True)
            pump(client, server)
            assert theirs.remote_closed
            assert not theirs.closed
            server.queue(theirs, b"after")
            events, _ = pump(client, server)
            assert data_of(events, ours) == b"after"
            server.end(theirs)
        else:
            server.queue(theirs, b"answer", True)
            pump(client, server)
            client.queue(ours, b"after")
            _, events = pump(client, server)
            assert data_of(events, theirs) == b"after"
            client.end(ours)
        pump(client, server)
        assert ours.closed
        assert theirs.closed
        assert not client.streams
        assert not server.streams
        client.end(ours)
        assert not client.out


def test_a_whole_request_with_trailers_both_ways() -> None:
    client, server = pair()
    ours = client.open(GET)
    client.queue(ours, b"body")
    client.send_trailers(ours, [(b"checksum", b"1")])
    _, events = pump(client, server)
    request, data, trailers = events
    assert isinstance(request, RequestReceived)
    assert request.headers == GET
    assert isinstance(data, tuple)
    assert trailers == TrailersReceived(request.stream, [(b"checksum", b"1")])
    server.send_headers(request.stream, [(b":status", b"103"), (b"link", b"x")])
    server.send_headers(request.stream, OK)
    server.queue(request.stream, b"body")
    server.send_headers(request.stream, [(b"grpc-status", b"0")], end_stream=True)
    events, _ = pump(client, server)
    assert events[0] == InformationalReceived(ours, 103, [(b":status", b"103"), (b"link", b"x")])
    assert events[1] == ResponseReceived(ours, 200, OK, False)
    assert data_of(events, ours) == b"body"
    assert events[3] == TrailersReceived(ours, [(b"grpc-status", b"0")])
    assert ours.closed
    assert request.stream.closed


def test_the_order_of_headers_is_enforced_on_the_sender() -> None:
    client, server = pair()
    ours, theirs = tunnel(client, server)
    with pytest.raises(UsageError):
        server.send_headers(theirs, OK)
    with pytest.raises(UsageError):
        server.send_headers(theirs, [(b"grpc-status", b"0")])
    server.end(theirs)
    with pytest.raises(UsageError):
        server.send_headers(theirs, [(b"grpc-status", b"0")], end_stream=True)
    client.end(ours)
    with pytest.raises(UsageError):
        client.send_trailers(ours, [])
    request = client.open(GET)
    pump(client, server)
    stream = server.streams[request.id]
    with pytest.raises(UsageError):
        server.send_headers(stream, [(b"grpc-status", b"0")], end_stream=True)
    with pytest.raises(UsageError):
        server.send_headers(stream, [(b":status", b"100")], end_stream=True)


def test_end_stream_and_then_no_error_is_a_clean_end() -> None:
    client, server = pair()
    ours, _ = tunnel(client, server)
    events = feed(
        client,
        frame(DATA, END_STREAM, ours.id, b"last") + reset_frame(ours.id, ErrorCode.NO_ERROR),
    )
    assert data_of(events, ours) == b"last"
    reset = events[-1]
    assert isinstance(reset, StreamReset)
    assert reset.clean
    assert ours.closed
    assert client.sendable(ours) == 0


@pytest.mark.parametrize(("ended", "code"), [(False, ErrorCode.NO_ERROR), (True, ErrorCode.CANCEL)])
def test_other_resets_are_not_clean(ended: bool, code: ErrorCode) -> None:
    client, server = pair()
    ours, _ = tunnel(client, server)
    if ended:
        feed(client, frame(DATA, END_STREAM, ours.id, b""))
    (reset,) = feed(client, reset_frame(ours.id, code))
    assert reset == StreamReset(ours, code, True, False, f"the peer reset the stream: {code.name}")
    assert ours.reset_code is code


def test_an_unknown_code_counts_as_internal_error() -> None:
    client, server = pair()
    ours, _ = tunnel(client, server)
    (reset,) = feed(client, frame(RST_STREAM, 0, ours.id, UINT32.pack(0xDEAD)))
    assert isinstance(reset, StreamReset)
    assert reset.code is ErrorCode.INTERNAL_ERROR


def test_frames_under_way_when_we_reset_are_ignored() -> None:
    client, server = pair()
    ours, theirs = tunnel(client, server)
    server.reset(theirs, ErrorCode.CANCEL, 0.0)
    late = (
        frame(DATA, 0, ours.id, b"late")
        + frame(WINDOW_UPDATE, 0, ours.id, UINT32.pack(5))
        + frame(HEADERS, ALL, ours.id, block([(b"a", b"b")]))
        + reset_frame(ours.id, ErrorCode.NO_ERROR)
    )
    assert feed(server, late) == []
    assert server.terminated is None
    server.reset(theirs, ErrorCode.CANCEL, 0.0)
    events, _ = pump(client, server)
    assert [type(e) for e in events] == [StreamReset]


def test_a_reset_in_the_middle_of_a_data_frame_drops_its_rest() -> None:
    client, server = pair()
    ours, theirs = tunnel(client, server)
    other, _ = tunnel(client, server)
    whole = frame(DATA, 0, ours.id, b"0123456789") + frame(DATA, 0, other.id, b"next")
    assert data_of(feed(server, whole[:14]), theirs) == b"01234"
    server.reset(theirs, ErrorCode.CANCEL, 0.0)
    events = feed(server, whole[14:])
    assert [bytes(e[1]) for e in events if isinstance(e, tuple)] == [b"next"]


def test_data_after_end_stream() -> None:
    client, server = pair()
    ours, _ = tunnel(client, server)
    client.end(ours)
    pump(client, server)
    (reset,) = feed(server, frame(DATA, 0, ours.id, b"x"))
    assert isinstance(reset, StreamReset)
    assert reset.code is ErrorCode.STREAM_CLOSED


def test_data_after_both_ends_closed() -> None:
    client, server = pair()
    ours, theirs = tunnel(client, server)
    client.end(ours)
    server.end(theirs)
    pump(client, server)
    event = terminated([*feed(server, frame(DATA, 0, ours.id, b"x"))])
    assert event.code is ErrorCode.STREAM_CLOSED


def test_streams_that_nobody_remembers_are_let_pass() -> None:
    server = fresh_server()
    headers = block(GET)
    for number in range(CLOSED_STREAMS_REMEMBERED + 10):
        (request,) = feed(server, frame(HEADERS, ALL, 2 * number + 1, headers))
        assert isinstance(request, RequestReceived)
        server.send_headers(request.stream, OK, end_stream=True)
    assert feed(server, frame(DATA, 0, 1, b"x")) == []
    last = 2 * CLOSED_STREAMS_REMEMBERED + 1
    assert terminated([*feed(server, frame(DATA, 0, last, b"x"))])


@pytest.mark.parametrize(
    "wrong",
    [
        frame(DATA, 0, 7, b"x"),
        frame(WINDOW_UPDATE, 0, 7, UINT32.pack(1)),
        reset_frame(7, ErrorCode.CANCEL),
        frame(HEADERS, ALL, 2, block(GET)),
        frame(HEADERS, ALL, 0, block(GET)),
        frame(DATA, 0, 0, b"x"),
        frame(RST_STREAM, 0, 0, UINT32.pack(0)),
        frame(PRIORITY, 0, 0, bytes(5)),
    ],
)
def test_frames_on_streams_that_were_never_opened(wrong: bytes) -> None:
    assert terminated([*feed(fresh_server(), wrong)]).code is ErrorCode.PROTOCOL_ERROR


@pytest.mark.parametrize("stream", [1, 2])
def test_a_server_cannot_open_streams(stream: int) -> None:
    wrong = frame(HEADERS, ALL, stream, block(OK))
    assert terminated([*feed(fresh_client(), wrong)]).code is ErrorCode.PROTOCOL_ERROR


def test_a_stream_number_cannot_be_used_twice() -> None:
    server = fresh_server()
    feed(server, frame(HEADERS, ALL, 5, block(GET)))
    server.send_headers(server.streams[5], OK, end_stream=True)
    event = terminated([*feed(server, frame(HEADERS, ALL, 5, block(GET)))])
    assert event.code is ErrorCode.STREAM_CLOSED


def test_the_peers_limit_on_streams_is_kept() -> None:
    client, server = pair(server=LocalSettings(max_concurrent_streams=2))
    first, other = tunnel(client, server)
    tunnel(client, server)
    assert not client.can_open()
    with pytest.raises(UsageError):
        client.open(CONNECT)
    client.end(first)
    server.end(other)
    assert not client.can_open()
    pump(client, server)
    assert client.can_open()


def test_no_stream_before_the_peers_settings() -> None:
    client, server = pair()
    assert client.can_open()
    client = type(client)()
    assert not client.can_open()
    with pytest.raises(UsageError):
        client.open(CONNECT)
    pump(client, type(server)())
    assert client.can_open()


def test_streams_beyond_the_limit_are_refused_and_harm_nothing() -> None:
    server = fresh_server(LocalSettings(max_concurrent_streams=1))
    (request,) = feed(server, frame(HEADERS, END_HEADERS, 1, block(GET)))
    assert isinstance(request, RequestReceived)
    refused = frame(HEADERS, END_HEADERS, 3, block(GET)) + frame(DATA, 0, 3, b"x")
    assert feed(server, refused) == []
    assert server.out == reset_frame(3, ErrorCode.REFUSED_STREAM)
    assert server.streams_refused == 1
    events = feed(server, frame(DATA, 0, 1, b"still here"))
    assert data_of(events, request.stream) == b"still here"


def test_malformed_requests_are_reset_alone() -> None:
    server = fresh_server()
    (reset,) = feed(server, frame(HEADERS, ALL, 1, block([(b":method", b"GET")])))
    assert isinstance(reset, StreamReset)
    assert (reset.code, reset.by_peer) == (ErrorCode.PROTOCOL_ERROR, False)
    assert reset.stream.owner is None
    assert not server.streams
    (request,) = feed(server, frame(HEADERS, ALL, 3, block(GET)))
    assert isinstance(request, RequestReceived)


def test_a_header_list_that_is_too_large_is_reset_alone() -> None:
    server = fresh_server(LocalSettings(max_header_list_size=1000))
    big = block([*GET, (b"x", b"y" * 3000)])
    (reset,) = feed(server, frame(HEADERS, ALL, 1, big))
    assert isinstance(reset, StreamReset)
    assert reset.code is ErrorCode.ENHANCE_YOUR_CALM
    (request,) = feed(server, frame(HEADERS, ALL, 3, block(GET)))
    assert isinstance(request, RequestReceived)
    huge = block([*GET, (b"x", b"y" * 9000)])
    assert terminated([*feed(server, frame(HEADERS, ALL, 5, huge))])


def test_a_list_larger_than_the_peer_takes_is_not_sent() -> None:
    client, _ = pair(server=LocalSettings(max_header_list_size=500))
    with pytest.raises(UsageError, match="500"):
        client.open([*CONNECT, (b"baggage", b"x" * 500)])
    assert not client.out
    assert client.open(CONNECT).id == 1


def test_large_header_blocks_travel_in_continuations() -> None:
    client, server = pair()
    headers = [*CONNECT, *((b"x-%d" % n, b"v" * 1000) for n in range(50))]
    client.open(headers)
    _, events = pump(client, server)
    assert isinstance(events[0], RequestReceived)
    assert events[0].headers == headers


@pytest.mark.parametrize(
    "between",
    [
        frame(DATA, 0, 1, b"x"),
        frame(HEADERS, ALL, 3, block(GET)),
        frame(CONTINUATION, END_HEADERS, 3, b""),
        frame(0x2A, 0, 0, b""),
    ],
)
def test_nothing_comes_between_the_parts_of_a_block(between: bytes) -> None:
    server = fresh_server()
    (request,) = feed(server, frame(HEADERS, END_HEADERS, 1, block(GET)))
    assert isinstance(request, RequestReceived)
    start = frame(HEADERS, END_STREAM, 5, block(GET)[:3])
    event = terminated([*feed(server, start + between)])
    assert event.code is ErrorCode.PROTOCOL_ERROR


def test_continuation_without_headers() -> None:
    event = terminated([*feed(fresh_server(), frame(CONTINUATION, END_HEADERS, 1, b""))])
    assert event.code is ErrorCode.PROTOCOL_ERROR


def test_padded_headers_with_priority() -> None:
    payload = b"\x03" + bytes(5) + block(GET) + bytes(3)
    (request,) = feed(fresh_server(), frame(HEADERS, ALL | PADDED | PRIORITY_FLAG, 1, payload))
    assert isinstance(request, RequestReceived)
    assert request.headers == GET
    for wrong in (b"", b"\x05" + bytes(4), b"\x00" + bytes(4)):
        broken = frame(HEADERS, ALL | PADDED | PRIORITY_FLAG, 1, wrong)
        assert terminated([*feed(fresh_server(), broken)]).code is ErrorCode.PROTOCOL_ERROR


def test_broken_compression_ends_the_connection() -> None:
    event = terminated([*feed(fresh_server(), frame(HEADERS, ALL, 1, b"\xff\xff\xff"))])
    assert event.code is ErrorCode.COMPRESSION_ERROR


@pytest.mark.parametrize(
    "wrong",
    [
        frame(DATA, 0, 1, b"early"),
        frame(HEADERS, END_HEADERS, 1, block([(b":status", b"abc")])),
        frame(HEADERS, ALL, 1, block([(b":status", b"100")])),
        frame(HEADERS, END_HEADERS, 1, block([(b":status", b"200"), (b"content-length", b"x")])),
    ],
)
def test_malformed_responses_are_reset_alone(wrong: bytes) -> None:
    client = fresh_client()
    stream = client.open(GET)
    (reset,) = feed(client, wrong)
    assert isinstance(reset, StreamReset)
    assert reset.code is ErrorCode.PROTOCOL_ERROR
    assert stream.closed
    assert client.terminated is None


@pytest.mark.parametrize(
    ("length", "parts", "good"),
    [
        (b"4", [b"ab", b"cd"], True),
        (b"4", [b"ab"], False),
        (b"4", [b"abcde"], False),
        (b"0", [b""], True),
        (b"0", [b"x"], False),
    ],
)
def test_content_length_is_counted(length: bytes, parts: list[bytes], good: bool) -> None:
    server = fresh_server()
    wire = frame(HEADERS, END_HEADERS, 1, block([*GET, (b"content-length", length)]))
    for index, part in enumerate(parts):
        wire += frame(DATA, END_STREAM if index == len(parts) - 1 else 0, 1, part)
    events = feed(server, wire)
    assert isinstance(events[0], RequestReceived)
    assert isinstance(events[-1], StreamReset) is not good


def test_content_length_without_content() -> None:
    wrong = frame(HEADERS, ALL, 1, block([*GET, (b"content-length", b"4")]))
    (reset,) = feed(fresh_server(), wrong)
    assert isinstance(reset, StreamReset)
    client = fresh_client()
    client.open([(b":method", b"HEAD"), *GET[1:]], end_stream=True)
    answer = frame(HEADERS, ALL, 1, block([*OK, (b"content-length", b"4")]))
    (response,) = feed(client, answer)
    assert isinstance(response, ResponseReceived)


def test_headers_inside_a_tunnel_reset_it() -> None:
    client, server = pair()
    ours, theirs = tunnel(client, server)
    (reset,) = feed(server, frame(HEADERS, ALL, ours.id, block([(b"a", b"b")])))
    assert reset == StreamReset(
        theirs, ErrorCode.PROTOCOL_ERROR, False, False, "HEADERS in a tunnel"
    )
    pump(client, server)
    ours, _ = tunnel(client, server)
    (reset,) = feed(client, frame(HEADERS, ALL, ours.id, block([(b"a", b"b")])))
    assert isinstance(reset, StreamReset)


def test_trailers_must_end_the_stream() -> None:
    server = fresh_server()
    feed(server, frame(HEADERS, END_HEADERS, 1, block(GET)))
    (reset,) = feed(server, frame(HEADERS, END_HEADERS, 1, block([(b"a", b"b")])))
    assert isinstance(reset, StreamReset)
