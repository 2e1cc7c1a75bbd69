"""Applications behind a tunnel, and clients in front of one, on loopback."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

Handler = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def app(handler: Handler) -> AsyncIterator[str]:
    """A TCP server; gives its authority. Every connection gets a task of its own."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                await handler(stream)
            except trio.BrokenResourceError:
                pass  # a peer that resets ends its own connection only

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        host, port = listener.socket.getsockname()[:2]
        yield f"{host}:{port}"
        nursery.cancel_scope.cancel()


async def echo(stream: trio.SocketStream) -> None:
    """Everything comes back, the end as well."""
    async for data in stream:
        await stream.send_all(data)
    await stream.send_eof()


def closed_port() -> int:
    """A port of loopback on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def make_it_reset(stream: trio.SocketStream) -> None:
    """The next close sends RST."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def ending(stream: trio.SocketStream) -> tuple[bytes, str]:
    """What still comes, and how it ends: "fin" or "rst"."""
    received = b""
    while True:
        try:
            data = await stream.receive_some(65536)
        except trio.BrokenResourceError as error:
            if not isinstance(error.__cause__, ConnectionResetError):
                raise
            return received, "rst"
        if not data:
            return received, "fin"
        received += data


def pattern(size: int, seed: int = 1) -> bytes:
    """Bytes in which nothing can be lost, doubled or swapped unseen; other seeds, other bytes."""
    return b"".join(struct.pack("!II", seed, n) for n in range((size + 7) // 8))[:size]
