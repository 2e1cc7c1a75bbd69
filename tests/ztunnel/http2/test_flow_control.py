import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ztunnel.http2.exchange import data_of, feed, fresh_client, pair, pump, tunnel
from ztunnel.http2 import (
    ConnectionTerminated,
    ErrorCode,
    LocalSettings,
    StreamReset,
    StreamWritable,
    UsageError,
)
from ztunnel.http2.frames import (
    DATA,
    END_STREAM,
    FRAME_HEADER,
    PADDED,
    SETTINGS,
    UINT32,
    WINDOW_UPDATE,
    frame,
)
from ztunnel.http2.limits import MAX_WINDOW
from ztunnel.http2.settings import INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE

SMALL = LocalSettings(initial_window=65_535, connection_window=65_535)
WIDE = LocalSettings(initial_window=65_535, connection_window=1 << 20)


def frames_in(data: bytes | bytearray) -> list[tuple[int, int, int, bytes]]:
    found = []
    pos = 0
    while pos < len(data):
        word, flags, stream = FRAME_HEADER.unpack_from(data, pos)
        pos += 9
        found.append((word & 0xFF, flags, stream, bytes(data[pos : pos + (word >> 8)])))
        pos += word >> 8
    return found


def test_sending_stops_at_the_stream_window_and_resumes() -> None:
    client, server = pair(server=WIDE)
    ours, theirs = tunnel(client, server)
    payload = bytes(range(256)) * 1024
    assert client.send(ours, payload, True) == 65_535
    _, events = pump(client, server)
    assert data_of(events, theirs) == payload[:65_535]
    assert client.sendable(ours) == 0
    server.consumed(theirs, 65_535)
    events, _ = pump(client, server)
    assert events == [StreamWritable(ours)]
    assert client.sendable(ours) == 65_535


def test_the_connection_window_holds_all_streams_and_comes_back_on_receipt() -> None:
    client, server = pair(server=SMALL)
    first, _ = tunnel(client, server)
    second, _ = tunnel(client, server)
    assert client.send(first, bytes(65_535)) == 65_535
    assert client.sendable(second) == 0
    # Nobody consumes anything: the stream that is not read must not hold up the other.
    events, _ = pump(client, server)
    assert events == [StreamWritable(second)]
    assert client.sendable(second) == 65_535
    assert client.sendable(first) == 0


def test_stream_credit_comes_back_in_halves_of_the_window() -> None:
    client, server = pair(server=LocalSettings(initial_window=100_000))
    _, theirs = tunnel(client, server)
    server.consumed(theirs, 49_999)
    assert not server.out
    server.consumed(theirs, 1)
    assert frames_in(server.take()) == [(WINDOW_UPDATE, 0, theirs.id, UINT32.pack(50_000))]
    server.consumed(theirs, 49_999)
    assert not server.out


def test_windows_are_updated_sparsely_even_for_small_frames() -> None:
    client, server = pair()
    ours, theirs = tunnel(client, server)
    updates = 0
    for _ in range(10_000):
        client.queue(ours, b"x" * 100)
        for event in feed(server, client.take()):
            assert isinstance(event, tuple)
            server.consumed(theirs, len(event[1]))
        answers = server.take()
        updates += len(frames_in(answers))
        feed(client, answers)
    assert updates == 1_000_000 // 131_072


def test_a_grown_window_lets_more_through() -> None:
    client, server = pair(server=WIDE)
    ours, theirs = tunnel(client, server)
    client.send(ours, bytes(65_535))
    pump(client, server)
    server.consumed(theirs, 1000)
    server.grow_window(theirs, 100_000)
    pump(client, server)
    assert client.sendable(ours) == 101_000
    assert theirs.window == 165_535
    with pytest.raises(UsageError):
        server.grow_window(theirs, MAX_WINDOW)


def test_a_shrunk_window_is_paid_off_before_credit_is_given_again() -> None:
    client, server = pair(server=LocalSettings(initial_window=400_000))
    ours, theirs = tunnel(client, server)
    server.shrink_window(theirs, 300_000)
    assert theirs.window == 100_000
    received = 0
    most = 0
    for _ in range(100):
        count = client.send(ours, bytes(10_000))
        most = max(most, client.sendable(ours))
        pump(client, server)
        received += count
        server.consumed(theirs, count)
        pump(client, server)
        if received >= 400_000:
            assert client.sendable(ours) <= 100_000
    assert received == 1_000_000, "it never stops"
    assert most < 400_000
    with pytest.raises(UsageError):
        server.shrink_window(theirs, 100_000)


def test_a_window_that_grows_again_before_it_is_paid_off_owes_less() -> None:
    client, server = pair(server=LocalSettings(initial_window=400_000))
    ours, theirs = tunnel(client, server)
    server.shrink_window(theirs, 300_000)
    server.grow_window(theirs, 100_000)
    assert not server.out
    assert theirs.owed == -200_000
    server.grow_window(theirs, 250_000)
    pump(client, server)
    assert client.sendable(ours) == 450_000
    assert theirs.window == 450_000


@given(
    st.lists(
        st.tuples(st.sampled_from(["send", "consume", "grow", "shrink"]), st.integers(1, 300_000)),
        max_size=60,
    )
)
def test_whatever_becomes_of_a_window_it_is_kept_and_never_stalls(
    steps: list[tuple[str, int]],
) -> None:
    client, server = pair(server=LocalSettings(initial_window=200_000))
    ours, theirs = tunnel(client, server)
    unread = 0
    for step, count in steps:
        if step == "send":
            unread += client.send(ours, bytes(count))
        elif step == "consume":
            server.consumed(theirs, min(count, unread))
            unread -= min(count, unread)
        elif step == "grow":
            server.grow_window(theirs, count)
        elif count < theirs.window:
            server.shrink_window(theirs, count)
        pump(client, server)
        assert client.sendable(ours) == theirs.recv_window
        assert theirs.recv_window + theirs.owed + unread == theirs.window
    server.consumed(theirs, unread)
    pump(client, server)
    assert client.sendable(ours) > 0, "nothing is unread, so more may come"
    for _ in range(20):  # what was shrunk has been paid off when all credit was used once
        count = client.send(ours, bytes(client.sendable(ours)))
        pump(client, server)
        server.consumed(theirs, count)
        pump(client, server)
    assert 0 < client.sendable(ours) <= theirs.window


def test_no_credit_for_a_stream_that_the_peer_has_ended() -> None:
    client, server = pair()
    ours, theirs = tunnel(client, server)
    client.queue(ours, b"x" * 1000, True)
    pump(client, server)
    server.consumed(theirs, 1_000_000)
    server.grow_window(theirs, 1_000_000)
    assert not server.out


def test_padding_is_charged_and_credited() -> None:
    client, server = pair(server=LocalSettings(initial_window=65_535))
    ours, theirs = tunnel(client, server)
    padded = frame(DATA, PADDED, ours.id, b"\xff" + b"abc" + bytes(255))
    for _ in range(200):
        events = feed(server, padded)
        assert data_of(events, theirs) == b"abc"
        server.consumed(theirs, 3)
    # 200 frames of 259 bytes are 51,800; half a window went back as soon as it was due.
    assert theirs.owed + theirs.recv_window == 65_535
    assert theirs.owed < 32_768


@pytest.mark.parametrize("cut", range(1, 20))
def test_padded_data_in_two_pieces(cut: int) -> None:
    client, server = pair()
    ours, theirs = tunnel(client, server)
    whole = frame(DATA, PADDED | END_STREAM, ours.id, b"\x04" + b"hello" + bytes(4))
    events = feed(server, whole[:cut]) + feed(server, whole[cut:])
    assert data_of(events, theirs) == b"hello"
    assert theirs.remote_closed
    assert [e[2] for e in events if isinstance(e, tuple)].count(True) == 1


def test_padding_alone_can_end_a_stream() -> None:
    client, server = pair()
    ours, theirs = tunnel(client, server)
    events = feed(server, frame(DATA, PADDED | END_STREAM, ours.id, b"\x04" + bytes(4)))
    (event,) = events
    assert isinstance(event, tuple)
    assert event[0] is theirs
    assert not event[1]
    assert event[2]


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\x05abcd"])
def test_more_padding_than_payload(payload: bytes) -> None:
    client, server = pair()
    ours, _ = tunnel(client, server)
    (event,) = feed(server, frame(DATA, PADDED, ours.id, payload))
    assert isinstance(event, ConnectionTerminated)
    assert event.code is ErrorCode.PROTOCOL_ERROR


def test_the_peer_overruns_a_stream_window() -> None:
    client, server = pair(server=WIDE)
    ours, theirs = tunnel(client, server)
    payload = b"".join(frame(DATA, 0, ours.id, bytes(16_384)) for _ in range(5))
    events = feed(server, payload)
    assert len(data_of(events, theirs)) == 3 * 16_384
    reset = events[-1]
    assert isinstance(reset, StreamReset)
    assert (reset.code, reset.by_peer) == (ErrorCode.FLOW_CONTROL_ERROR, False)
    assert server.terminated is None


def test_the_peer_overruns_the_connection_window() -> None:
    client, server = pair(server=LocalSettings(initial_window=1 << 20, connection_window=65_535))
    ours, _ = tunnel(client, server)
    events = feed(server, b"".join(frame(DATA, 0, ours.id, bytes(16_384)) for _ in range(5)))
    assert isinstance(events[-1], ConnectionTerminated)
    assert events[-1].code is ErrorCode.FLOW_CONTROL_ERROR


def test_settings_shift_the_windows_of_open_streams_below_zero_and_back() -> None:
    client, server = pair(server=WIDE)
    ours, _ = tunnel(client, server)
    client.send(ours, bytes(65_535))
    client.take()

    def announce(value: int) -> list[object]:
        setting = INITIAL_WINDOW_SIZE.to_bytes(2, "big") + value.to_bytes(4, "big")
        return [*feed(client, frame(SETTINGS, 0, 0, setting))]

    announce(1000)
    assert ours.send_window == 1000 - 65_535
    assert client.sendable(ours) == 0
    assert StreamWritable(ours) not in announce(65_535)
    assert StreamWritable(ours) in announce(65_536)
    assert client.sendable(ours) == 1
    # An empty END_STREAM needs no window.
    announce(0)
    client.end(ours)
    assert ours.local_closed


def test_settings_that_make_a_window_too_large() -> None:
    client, server = pair(server=WIDE)
    ours, _ = tunnel(client, server)
    feed(client, frame(WINDOW_UPDATE, 0, ours.id, UINT32.pack(MAX_WINDOW - 65_535)))
    setting = INITIAL_WINDOW_SIZE.to_bytes(2, "big") + (65_536).to_bytes(4, "big")
    (event,) = feed(client, frame(SETTINGS, 0, 0, setting))
    assert isinstance(event, ConnectionTerminated)
    assert event.code is ErrorCode.FLOW_CONTROL_ERROR


@pytest.mark.parametrize("increment", [0, MAX_WINDOW])
def test_bad_window_updates(increment: int) -> None:
    client, server = pair()
    ours, _ = tunnel(client, server)
    (event,) = feed(client, frame(WINDOW_UPDATE, 0, ours.id, UINT32.pack(increment)))
    assert isinstance(event, StreamReset)
    (fatal,) = feed(client, frame(WINDOW_UPDATE, 0, 0, UINT32.pack(increment)))
    assert isinstance(fatal, ConnectionTerminated)


def test_frames_as_large_as_the_peer_takes() -> None:
    client, server = pair(
        server=LocalSettings(
            max_frame_size=1 << 20, initial_window=1 << 22, connection_window=1 << 24
        )
    )
    ours, theirs = tunnel(client, server)
    assert client.max_send_frame == 1 << 20
    assert client.send(ours, bytes(3_000_000)) == 3_000_000
    sent = client.take()
    assert [len(f[3]) for f in frames_in(sent)] == [1 << 20, 1 << 20, 3_000_000 - (2 << 20)]
    assert len(data_of(feed(server, sent), theirs)) == 3_000_000


def test_headers_written_into_the_owners_buffer() -> None:
    client, server = pair()
    ours, theirs = tunnel(client, server)
    buffer = bytearray(b"-----" + bytes(9) + b"payload")
    client.write_data_header(buffer, 5, ours, 7)
    assert data_of(feed(server, buffer[5:]), theirs) == b"payload"
    assert client.sendable(ours) == 256 * 1024 - 7
    client.write_data_header(buffer, 5, ours, 7, end_stream=True)
    feed(server, buffer[5:])
    assert theirs.remote_closed
    assert ours.local_closed


@pytest.mark.parametrize("length", [0, 16_385, 70_000])
def test_what_may_not_be_sent_changes_nothing(length: int) -> None:
    client, server = pair(server=WIDE)
    ours, _ = tunnel(client, server)
    with pytest.raises(UsageError):
        client.queue(ours, bytes(length))
    with pytest.raises(UsageError):
        client.write_data_header(bytearray(9), 0, ours, length)
    assert not client.out
    assert client.sendable(ours) == 65_535


def test_nothing_may_be_sent_before_the_response_headers() -> None:
    client, server = pair()
    client.open([(b":method", b"CONNECT"), (b":authority", b"a:1")])
    _, events = pump(client, server)
    stream = next(iter(server.streams.values()))
    assert server.sendable(stream) == 0
    with pytest.raises(UsageError):
        server.queue(stream, b"early")
    with pytest.raises(UsageError):
        server.send(stream, b"early")
    assert len(events) == 1


def test_a_frame_larger_than_announced() -> None:
    client, server = pair()
    ours, _ = tunnel(client, server)
    (event,) = feed(server, frame(DATA, 0, ours.id, bytes(16_385))[:100])
    assert isinstance(event, ConnectionTerminated)
    assert event.code is ErrorCode.FRAME_SIZE_ERROR


def test_settings_take_effect_on_frames() -> None:
    client = fresh_client()
    setting = MAX_FRAME_SIZE.to_bytes(2, "big") + (1 << 20).to_bytes(4, "big")
    feed(client, frame(SETTINGS, 0, 0, setting))
    assert client.max_send_frame == 1 << 20
