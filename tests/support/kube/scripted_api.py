"""An API server that says what a test tells it to: for answers that a real one gives rarely."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trio

from daemonset.kube.client import KubeClient
from daemonset.kube.config import KubeConfig

Query = dict[str, str]


class Exchange:
    """One request, and the way to answer it."""

    def __init__(self, stream: trio.abc.Stream, method: str, target: str, body: bytes) -> None:
        self.stream = stream
        self.body = body
        self.method = method
        url = urlsplit(target)
        self.path = url.path
        self.query: Query = {name: values[0] for name, values in parse_qs(url.query).items()}

    @property
    def json(self) -> Any:
        """What the client sent."""
        return json.loads(self.body)

    @property
    def watches(self) -> bool:
        return "watch" in self.query

    async def answer(self, body: Any, status: int = 200, headers: str = "") -> None:
        """The whole answer at once."""
        data = json.dumps(body).encode()
        head = (
            f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{headers}"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        await self.stream.send_all(head.encode() + data)

    async def events(self, *events: Any, pieces: int = 0, end: bool = False) -> None:
        """A watch's answer, in chunks; ``pieces``: of how many bytes, 0 for one per event."""
        await self.stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        data = b"".join(json.dumps(event).encode() + b"\n" for event in events)
        step = pieces or max(len(data), 1)
        for at in range(0, len(data), step):
            await self.raw(data[at : at + step])
        if end:
            await self.stream.send_all(b"0\r\n\r\n")

    async def raw(self, chunk: bytes) -> None:
        await self.stream.send_all(b"%x\r\n%s\r\n" % (len(chunk), chunk))

    async def reset(self) -> None:
        """End the connection without an answer."""
        await self.stream.aclose()


Script = Callable[[Exchange], Awaitable[None]]


@asynccontextmanager
async def scripted_api(
    script: Script, authorization: Callable[[], str] = lambda: ""
) -> AsyncIterator[KubeClient]:
    """A client of a server on loopback that answers each request by ``script``."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            buffer = b""
            try:
                while True:
                    while b"\r\n\r\n" not in buffer:
                        data = await stream.receive_some()
                        if not data:
                            return
                        buffer += data
                    head, _, buffer = buffer.partition(b"\r\n\r\n")
                    method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
                    length = 0
                    for line in head.lower().split(b"\r\n"):
                        if line.startswith(b"content-length:"):
                            length = int(line.partition(b":")[2])
                    while len(buffer) < length:
                        buffer += await stream.receive_some()
                    body, buffer = buffer[:length], buffer[length:]
                    await script(Exchange(stream, method, target, body))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # either side may end a connection

    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    host, port = listener.socket.getsockname()[:2]
    client = KubeClient(KubeConfig(host, port, None, "", authorization))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        try:
            yield client
        finally:
            with trio.CancelScope(shield=True):
                await client.forget_idle()
            nursery.cancel_scope.cancel()
