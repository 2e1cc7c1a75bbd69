"""Our client and our server under random schedules: every byte arrives, and every end is told."""

import random
from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ztunnel.http2.exchange import CONNECT, OK, feed
from ztunnel.http2 import (
    ClientConnection,
    Connection,
    ConnectionTerminated,
    ErrorCode,
    LocalSettings,
    RequestReceived,
    ServerConnection,
    Stream,
    StreamReset,
    StreamWritable,
)
from ztunnel.http2.events import ReceivedEvent


class End:
    """One end: what it sends on each stream, and what it got."""

    def __init__(self, connection: Connection, rng: random.Random) -> None:
        self.connection = connection
        self.rng = rng
        self.inbox = bytearray()
        self.to_send: dict[int, bytes] = {}
        self.sent: dict[int, int] = defaultdict(int)
        self.got: dict[int, bytearray] = defaultdict(bytearray)
        self.ended: set[int] = set()
        self.resets: dict[int, ErrorCode] = {}
        self.streams: dict[int, Stream] = {}
        self.unread: dict[int, int] = defaultdict(int)
        self.waiting: set[int] = set()

    def add(self, stream: Stream, size: int) -> None:
        self.streams[stream.id] = stream
        self.to_send[stream.id] = self.rng.randbytes(size)

    def write(self) -> None:
        """Send a little on a random stream that is not waiting to become writable."""
        ready = [s for s in self.streams.values() if s.can_send and s.id not in self.waiting]
        if not ready:
            return
        stream = self.rng.choice(ready)
        sid = stream.id
        rest = memoryview(self.to_send[sid])[self.sent[sid] :]
        if not rest:
            self.connection.end(stream)
            return
        room = self.connection.sendable(stream)
        if not room:
            self.waiting.add(sid)
            return
        size = min(
            len(rest), room, self.connection.max_send_frame, self.rng.choice([1, 99, 1 << 24])
        )
        ends = size == len(rest) and self.rng.random() < 0.5
        if self.rng.random() < 0.5:
            self.connection.queue(stream, rest[:size], ends)
        else:
            buffer = bytearray(9)
            self.connection.write_data_header(buffer, 0, stream, size, ends)
            self.connection.out += buffer + rest[:size]
        self.sent[sid] += size

    def read(self, limit: int) -> list[ReceivedEvent]:
        piece, self.inbox = self.inbox[:limit], self.inbox[limit:]
        others: list[ReceivedEvent] = []
        for event in feed(self.connection, piece):
            assert not isinstance(event, ConnectionTerminated), event
            if isinstance(event, tuple):
                stream, view, ends = event
                self.streams[stream.id] = stream
                assert view or ends
                assert stream.id not in self.ended
                self.got[stream.id] += view
                self.unread[stream.id] += len(view)
                if ends:
                    self.ended.add(stream.id)
            elif isinstance(event, StreamWritable):
                assert event.stream.id in self.waiting
                self.waiting.discard(event.stream.id)
            elif isinstance(event, StreamReset):
                assert event.by_peer
                self.resets[event.stream.id] = event.code
            else:
                others.append(event)
        return others

    def consume(self, everything: bool = False) -> None:
        for sid in list(self.unread):
            if everything or self.rng.random() < 0.3:
                self.connection.consumed(self.streams[sid], self.unread.pop(sid))


limits = st.sampled_from(
    [
        LocalSettings(initial_window=65_535, connection_window=65_535),
        LocalSettings(initial_window=65_535, connection_window=1 << 20),
        LocalSettings(max_frame_size=1 << 20, header_table_size=0),
    ]
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), limits, limits, st.integers(1, 8))
def test_every_byte_arrives(
    seed: int, client_limits: LocalSettings, server_limits: LocalSettings, count: int
) -> None:
    rng = random.Random(seed)
    sizes = [0, 1, 500, 20_000, 65_535, 200_000]
    client_connection = ClientConnection(client_limits)
    server_connection = ServerConnection(server_limits)
    client, server = End(client_connection, rng), End(server_connection, rng)
    reset_by_client: set[int] = set()
    opened = 0
    quiet = 0
    while quiet < 3:
        before = (opened, sum(client.sent.values()), sum(server.sent.values()))
        for _ in range(rng.randrange(1, 20)):
            action = rng.random()
            if action < 0.05 and opened < count and client_connection.can_open():
                client.add(
                    client_connection.open([*CONNECT, (b"n", b"%d" % opened)]), rng.choice(sizes)
                )
                opened += 1
            elif action < 0.4:
                client.write()
            elif action < 0.8:
                server.write()
            elif action < 0.805 and client.streams:
                stream = rng.choice(list(client.streams.values()))
                if not stream.closed:
                    client_connection.reset(stream, ErrorCode.CANCEL, 0.0)
                    reset_by_client.add(stream.id)
            else:
                rng.choice([client, server]).consume()
        for source, target in ((client, server), (server, client)):
            target.inbox += source.connection.take()
        limit = rng.choice([1, 9, 100, 1 << 30])
        client.read(limit)
        for event in server.read(limit):
            # The events after this one may have ended the stream already.
            if isinstance(event, RequestReceived) and not event.stream.closed:
                server.streams[event.stream.id] = event.stream
                server.to_send[event.stream.id] = rng.randbytes(rng.choice(sizes))
                server_connection.send_headers(event.stream, OK)
        done = opened == count and not client.inbox and not server.inbox
        if done and before == (opened, sum(client.sent.values()), sum(server.sent.values())):
            # Only unread bytes can hold anything up now.
            client.consume(True)
            server.consume(True)
            idle = not client_connection.out and not server_connection.out
            quiet = quiet + 1 if idle and not client_connection.streams else 0
        else:
            quiet = 0
    for sid in client.streams:
        if sid in reset_by_client:
            there = server.to_send.get(sid, b"")
            assert there.startswith(client.got[sid])
            assert client.to_send[sid].startswith(server.got[sid])
            continue
        assert server.got[sid] == client.to_send[sid]
        assert client.got[sid] == server.to_send[sid]
        assert sid in client.ended
        assert sid in server.ended
    assert set(server.resets) <= reset_by_client
    assert not client.resets
    assert not server_connection.streams
