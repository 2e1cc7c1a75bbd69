"""One HTTP/1.1 connection: one request after the other."""

from __future__ import annotations

import trio

from daemonset.kube.http_head import (
    MAX_HEAD_BYTES,
    Head,
    HttpError,
    format_head,
    parse_chunk_size,
    parse_head,
)

_READ_BYTES = 64 * 1024


class HttpConnection:
    """A connection over ``stream``; not for two tasks at once.

    After ``request`` the body must be read to its end, or the connection be closed. All methods
    raise HttpError, and trio.BrokenResourceError or trio.ClosedResourceError.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._head: Head | None = None
        self._left: int | None = 0  # bytes of the body or chunk; None: until the connection ends
        self._ended = True

    @property
    def reusable(self) -> bool:
        """May another request follow?"""
        head = self._head
        return self._ended and not self._buffer and (head is None or not head.ends_connection)

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)

    async def request(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Head:
        """Send a request; the head of the answer."""
        if body or method in ("POST", "PUT", "PATCH"):
            headers = {**headers, "Content-Length": str(len(body))}
        await self._stream.send_all(format_head(method, target, headers) + body)
        head = parse_head(await self._until(b"\r\n\r\n"))
        while head.status < 200:
            head = parse_head(await self._until(b"\r\n\r\n"))
        self._head = head
        self._left = 0 if head.chunked else head.length
        self._ended = not head.chunked and self._left == 0
        return head

    async def read(self) -> bytes:
        """Some of the body; empty at its end."""
        if self._ended:
            return b""
        assert self._head is not None
        if self._head.chunked and self._left == 0:
            self._left = parse_chunk_size(await self._until(b"\r\n"))
            if self._left == 0:
                while await self._until(b"\r\n"):
                    pass  # trailers mean nothing to us
                self._ended = True
                return b""
        if not self._buffer and not await self._more():
            if self._left is None:
                self._ended = True
                return b""
            raise HttpError("the connection ended inside a body")
        size = len(self._buffer) if self._left is None else min(self._left, len(self._buffer))
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        if self._left is not None:
            self._left -= size
            if self._left == 0:
                await self._end_of_chunk()
        return data

    async def read_all(self, limit: int) -> bytes:
        """The whole body. Raises HttpError: it is longer than ``limit``."""
        parts: list[bytes] = []
        size = 0
        while data := await self.read():
            size += len(data)
            if size > limit:
                raise HttpError(f"an answer of more than {limit} bytes")
            parts.append(data)
        return b"".join(parts)

    async def _end_of_chunk(self) -> None:
        assert self._head is not None
        if not self._head.chunked:
            self._ended = True
        elif await self._until(b"\r\n"):
            raise HttpError("a chunk is longer than it said")

    async def _until(self, mark: bytes) -> bytes:
        searched = 0
        while (at := self._buffer.find(mark, searched)) < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise HttpError(f"a head of more than {MAX_HEAD_BYTES} bytes")
            searched = max(0, len(self._buffer) - len(mark) + 1)
            if not await self._more():
                raise HttpError("the connection ended before an answer")
        data = bytes(self._buffer[:at])
        del self._buffer[: at + len(mark)]
        return data

    async def _more(self) -> bool:
        data = await self._stream.receive_some(_READ_BYTES)
        self._buffer += data
        return bool(data)
