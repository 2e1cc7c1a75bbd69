"""One HTTP/1.1 connection: one request after the other. The protocol itself is h11's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import h11
import trio

MAX_HEAD_BYTES = 64 * 1024
_READ_BYTES = 64 * 1024


class HttpError(Exception):
    """A request or an answer that is no HTTP/1.1, or an answer that is too long or incomplete."""


@dataclass(frozen=True, slots=True)
class Head:
    """``headers`` by lower-case name; of several with one name the values are joined."""

    status: int
    headers: Mapping[str, str]


class HttpConnection:
    """A connection over ``stream``; not for two tasks at once.

    After ``request`` the body must be read to its end, or the connection be closed. All methods
    raise HttpError, and trio.BrokenResourceError or trio.ClosedResourceError.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)

    @property
    def reusable(self) -> bool:
        """May another request follow?"""
        http = self._http
        done = http.our_state is h11.DONE and http.their_state is h11.DONE
        return done and http.trailing_data == (b"", False)

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)

    async def request(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Head:
        """Send a request; the head of the answer."""
        if self.reusable:
            self._http.start_next_cycle()
        if body or method in ("POST", "PUT", "PATCH"):
            headers = {**headers, "Content-Length": str(len(body))}
        try:
            asked = h11.Request(method=method, target=target, headers=list(headers.items()))
            events = [asked, h11.Data(data=body), h11.EndOfMessage()]
            data = b"".join(self._http.send(event) or b"" for event in events)
        except h11.LocalProtocolError as error:
            raise HttpError(f"no request for {target[:80]!r}: {error}") from None
        await self._stream.send_all(data)
        while True:
            event = await self._next()
            if isinstance(event, h11.Response):
                found: dict[str, str] = {}
                for raw_name, raw_value in event.headers:
                    name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
                    found[name] = f"{found[name]}, {value}" if name in found else value
                return Head(event.status_code, found)
            if not isinstance(event, h11.InformationalResponse):
                raise HttpError(f"no answer but {type(event).__name__}")

    async def read(self) -> bytes:
        """Some of the body; empty at its end."""
        while self._http.their_state is h11.SEND_BODY:
            event = await self._next()
            if isinstance(event, h11.Data) and event.data:
                return bytes(event.data)
        return b""

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

    async def _next(self) -> object:
        """What comes next from the server."""
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                data = await self._stream.receive_some(_READ_BYTES)
                if not data and self._http.their_state is h11.SEND_RESPONSE:
                    raise HttpError("the connection ended before an answer")
                self._http.receive_data(bytes(data))
        except h11.RemoteProtocolError as error:
            raise HttpError(f"not HTTP/1.1: {error}") from None
        return event
