"""Two ends of a connection in one process, and raw frames to put between them."""

from collections.abc import Iterable

from ztunnel.http2 import (
    ClientConnection,
    Connection,
    Headers,
    LocalSettings,
    RequestReceived,
    ServerConnection,
    Stream,
)
from ztunnel.http2.events import ReceivedEvent
from ztunnel.http2.frames import PREFACE, SETTINGS, frame
from ztunnel.http2.header_encoder import HeaderEncoder

CONNECT: Headers = [(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80")]
GET: Headers = [
    (b":method", b"GET"),
    (b":scheme", b"http"),
    (b":authority", b"web"),
    (b":path", b"/"),
]
OK: Headers = [(b":status", b"200")]


def feed(connection: Connection, data: bytes | bytearray, now: float = 0.0) -> list[ReceivedEvent]:
    return connection.receive(memoryview(bytes(data)), now)


def pump(
    client: ClientConnection, server: ServerConnection
) -> tuple[list[ReceivedEvent], list[ReceivedEvent]]:
    """Carry bytes both ways until nobody has any; what the client and the server saw."""
    client_events: list[ReceivedEvent] = []
    server_events: list[ReceivedEvent] = []
    while client.out or server.out:
        server_events += feed(server, client.take())
        client_events += feed(client, server.take())
    return client_events, server_events


def pair(
    client: LocalSettings | None = None, server: LocalSettings | None = None
) -> tuple[ClientConnection, ServerConnection]:
    """Both ends, with SETTINGS exchanged."""
    ends = ClientConnection(client), ServerConnection(server)
    pump(*ends)
    return ends


def tunnel(client: ClientConnection, server: ServerConnection) -> tuple[Stream, Stream]:
    """An accepted CONNECT: the stream as the client and as the server has it."""
    ours = client.open(CONNECT)
    _, events = pump(client, server)
    request = [event for event in events if isinstance(event, RequestReceived)][-1]
    server.send_headers(request.stream, OK)
    pump(client, server)
    return ours, request.stream


def fresh_server(local: LocalSettings | None = None) -> ServerConnection:
    """A server that has had a client's preface and empty SETTINGS."""
    server = ServerConnection(local)
    feed(server, PREFACE + frame(SETTINGS, 0, 0, b""))
    server.take()
    return server


def fresh_client(local: LocalSettings | None = None) -> ClientConnection:
    """A client that has had a server's empty SETTINGS."""
    client = ClientConnection(local)
    feed(client, frame(SETTINGS, 0, 0, b""))
    client.take()
    return client


def block(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A header block that any decoder understands in any state, and that changes none."""
    encoder = HeaderEncoder()
    encoder.set_table_size(0)
    encoder.encode(())  # Says so, once; only what follows is wanted.
    return encoder.encode(headers)


def data_of(events: Iterable[ReceivedEvent], stream: Stream) -> bytes:
    """The DATA that a list of events holds for one stream."""
    return b"".join(e[1] for e in events if isinstance(e, tuple) and e[0] is stream)
