"""Whatever comes: no exception, no end of work, no memory without a limit."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ztunnel.http2.exchange import CONNECT, GET, OK, block, feed, fresh_client, fresh_server
from ztunnel.hbone import ConnectRequested, TunnelClient, TunnelServer
from ztunnel.http2 import ClientConnection, Connection, ConnectionTerminated, ServerConnection
from ztunnel.http2.events import ReceivedEvent, RequestReceived
from ztunnel.http2.frames import FRAME_HEADER, PREFACE, frame

BUFFERED = 100_000

payloads = st.binary(max_size=40) | st.sampled_from(
    [
        b"",
        bytes(4),
        bytes(5),
        bytes(8),
        b"\x00\x00\x00\x01",
        b"\x7f\xff\xff\xff",
        b"\x00\x04\x00\x00\x00\x00",
        b"\x00\x04\x7f\xff\xff\xff",
        b"\x00\x05\x00\x10\x00\x00",
        b"\x00\x01\x00\x00\x00\x00",
        b"\x00\x06\x00\x00\x00\x01",
        b"\x00\x03\x00\x00\x00\x00",
        block(CONNECT),
        block(GET),
        block(OK),
        block([*GET, (b"content-length", b"5")]),
        block([(b"trailer", b"x")]),
        bytes(4096),
    ]
)
frame_bytes = st.builds(
    frame,
    st.integers(0, 10) | st.integers(0, 255),
    st.sampled_from([0, 1, 4, 5, 8, 9, 0xC, 0x20, 0x2D]) | st.integers(0, 255),
    st.integers(0, 9) | st.integers(0, 2**32 - 1),
    payloads,
)
# A header that announces more than follows.
broken_frames = st.builds(
    lambda length, kind, flags, stream, rest: (
        FRAME_HEADER.pack(length << 8 | kind, flags, stream) + rest
    ),
    st.integers(0, 2**24 - 1),
    st.integers(0, 10),
    st.integers(0, 255),
    st.integers(0, 9),
    st.binary(max_size=30),
)
streams_of_bytes = st.lists(
    frame_bytes | frame_bytes | frame_bytes | st.binary(max_size=30) | broken_frames, max_size=30
).map(b"".join)


def in_pieces(connection: Connection, data: bytes, cuts: list[int]) -> list[ReceivedEvent]:
    """Feed the data cut up; views are copied out, since they die with their buffer."""
    found: list[ReceivedEvent] = []
    pos = 0
    size = 0
    while pos < len(data):
        step = cuts[size % len(cuts)]
        size += 1
        for event in feed(connection, data[pos : pos + step]):
            if isinstance(event, tuple):
                connection.consumed(event[0], len(event[1]))
                event = (event[0], memoryview(bytes(event[1])), event[2])
            found.append(event)
        pos += step
        held = len(connection._frame) + len(connection._block) + len(connection._stash)
        assert held < BUFFERED
    return found


def summary(events: list[ReceivedEvent]) -> list[object]:
    """Events without what depends on the pieces: DATA put together, no StreamWritable."""
    merged: list[object] = []
    for event in events:
        if isinstance(event, tuple):
            stream, view, ends = event
            last = merged[-1] if merged else None
            if isinstance(last, list) and last[0] == stream.id and not last[2]:
                last[1] += bytes(view)
                last[2] = ends
            else:
                merged.append([stream.id, bytes(view), ends])
        elif type(event).__name__ != "StreamWritable":
            merged.append(
                (
                    type(event).__name__,
                    getattr(getattr(event, "stream", None), "id", None),
                    getattr(event, "headers", None),
                    getattr(event, "code", None),
                    getattr(event, "reason", None),
                )
            )
    return merged


def only_one_end(connection: Connection, events: list[ReceivedEvent]) -> None:
    ends = [e for e in events if isinstance(e, ConnectionTerminated)]
    assert len(ends) <= 1
    assert bool(ends) == (connection.terminated is not None)
    if ends:
        assert events[-1] is ends[0]
        assert ends[0].reason


def prepared_server() -> ServerConnection:
    server = fresh_server()
    for stream, headers in ((1, CONNECT), (3, GET)):
        (request,) = feed(server, frame(0x1, 0x4, stream, block(headers)))
        assert isinstance(request, RequestReceived)
        server.send_headers(request.stream, OK)
    server.take()
    return server


def prepared_client() -> ClientConnection:
    client = fresh_client()
    client.open(CONNECT)
    client.open(GET, end_stream=True)
    client.open(GET)
    feed(client, frame(0x1, 0x4, 1, block(OK)))
    client.take()
    return client


@given(st.binary(max_size=200), st.lists(st.integers(1, 50), min_size=1, max_size=10))
def test_random_bytes(data: bytes, cuts: list[int]) -> None:
    for connection in (ClientConnection(), ServerConnection()):
        only_one_end(connection, in_pieces(connection, data, cuts))
    server = ServerConnection()
    only_one_end(server, in_pieces(server, PREFACE + data, cuts))


@settings(max_examples=300, deadline=None)
@given(streams_of_bytes, st.lists(st.integers(1, 50), min_size=1, max_size=10))
def test_random_frames_to_a_server_in_any_pieces(data: bytes, cuts: list[int]) -> None:
    whole = prepared_server()
    events = feed(whole, data)
    for event in events:
        if isinstance(event, tuple):
            whole.consumed(event[0], len(event[1]))
    only_one_end(whole, events)
    pieces = prepared_server()
    cut = in_pieces(pieces, data, cuts)
    only_one_end(pieces, cut)
    assert summary(cut) == summary(events)


def prepared_tunnels() -> list[Connection]:
    """A server with an accepted, a refused and a waiting tunnel, and a client with the same."""
    server = TunnelServer()
    feed(server, PREFACE + frame(0x4, 0, 0, b""))
    for stream in (1, 3, 5):
        (request,) = feed(server, frame(0x1, 0x4, stream, block(CONNECT)))
        assert isinstance(request, ConnectRequested)
        if stream == 1:
            server.accept(request.stream)
        elif stream == 3:
            server.refuse(request.stream, 503, "no")
    client = TunnelClient()
    feed(client, frame(0x4, 0, 0, b""))
    for _ in range(3):
        client.connect("10.0.0.1:80")
    feed(client, frame(0x1, 0x4, 1, block(OK)))
    feed(client, frame(0x1, 0x4, 3, block([(b":status", b"503")])))
    return [server, client]


@settings(max_examples=300, deadline=None)
@given(streams_of_bytes, st.lists(st.integers(1, 50), min_size=1, max_size=10))
def test_random_frames_to_tunnels_in_any_pieces(data: bytes, cuts: list[int]) -> None:
    for tunnels in prepared_tunnels():
        only_one_end(tunnels, in_pieces(tunnels, data, cuts))


@settings(max_examples=300, deadline=None)
@given(streams_of_bytes, st.lists(st.integers(1, 50), min_size=1, max_size=10))
def test_random_frames_to_a_client_in_any_pieces(data: bytes, cuts: list[int]) -> None:
    whole = prepared_client()
    events = feed(whole, data)
    for event in events:
        if isinstance(event, tuple):
            whole.consumed(event[0], len(event[1]))
    only_one_end(whole, events)
    pieces = prepared_client()
    cut = in_pieces(pieces, data, cuts)
    only_one_end(pieces, cut)
    assert summary(cut) == summary(events)
