"""A small HTTP/1.1 server for the administrative ports.

It holds no connection that says nothing, reads no more than a few KiB from anybody, and an error
in a handler is an answer, never the end of the server.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Final

import trio

from ztunnel.telemetry.http_message import (
    HEAD_LIMIT,
    HttpError,
    Request,
    Response,
    parse_request,
    render_response,
)

Handler = Callable[[Request], Awaitable[Response]]

HEAD_TIMEOUT: Final = 2.0
IDLE_TIMEOUT: Final = 60.0
SEND_TIMEOUT: Final = 60.0
MAX_CONNECTIONS: Final = 256
_ACCEPT_PAUSE: Final = 0.1
_LINGER: Final = 1.0
_OUT_OF_RESOURCES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

log = logging.getLogger("ztunnel.telemetry.http")


async def open_listeners(
    hosts: Sequence[str], port: int, backlog: int = 128
) -> list[trio.SocketListener]:
    """Listeners on each of ``hosts``. ``::`` also takes IPv4, and nothing but that where the kernel
    has no IPv6. Addresses that this machine does not have are left out, as long as one is left.

    Raises:
        OSError: no address can be listened on, or a port is taken.
    """
    listeners: list[trio.SocketListener] = []
    missing: OSError | None = None
    waiting = list(hosts)
    while waiting:
        host = waiting.pop(0)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            sock = trio.socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:
                raise
            missing = error
            if host == "::":
                waiting.insert(0, "0.0.0.0")
            continue
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
            await sock.bind((host, port))
            sock.listen(backlog)
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRNOTAVAIL:
                missing = error
                continue
            for listener in listeners:
                await listener.aclose()
            raise OSError(error.errno, f"cannot listen on {host} port {port}: {error}") from error
        except trio.Cancelled:
            for opened in (sock, *(listener.socket for listener in listeners)):
                opened.close()
            raise
        listeners.append(trio.SocketListener(sock))
    if not listeners:
        raise missing if missing is not None else ValueError("no address to listen on")
    return listeners


class HttpServer:
    """Serves ``handler`` on ``listeners`` until :meth:`stop` or cancellation.

    Args:
        loopback_names_only: refuse requests whose Host is not a name of this machine's loopback,
            so that a web page cannot reach the port through a name of its own (DNS rebinding).
    """

    def __init__(
        self,
        listeners: Sequence[trio.SocketListener],
        handler: Handler,
        loopback_names_only: bool = False,
    ) -> None:
        self._listeners = listeners
        self._handler = handler
        self._loopback_names_only = loopback_names_only
        self._connections = 0
        self._stopping = False
        # Waits that end nothing but themselves when the server is to stop.
        self._idle: set[trio.CancelScope] = set()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """What the server listens on."""
        names = [listener.socket.getsockname() for listener in self._listeners]
        return [(name[0], name[1]) for name in names]

    def stop(self) -> None:
        """Ends :meth:`serve` once the requests that are being answered have their answer."""
        self._stopping = True
        for scope in list(self._idle):
            scope.cancel()

    async def serve(self) -> None:
        """Serves; closes the listeners in the end."""
        try:
            async with trio.open_nursery() as nursery:
                for listener in self._listeners:
                    nursery.start_soon(self._accept, listener, nursery)
        finally:
            for listener in self._listeners:
                listener.socket.close()

    async def _accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        while not self._stopping:
            with trio.CancelScope() as scope:
                self._idle.add(scope)
                try:
                    stream = await listener.accept()
                except OSError as error:
                    if error.errno in _OUT_OF_RESOURCES:
                        log.error("cannot accept a connection: %s", error)
                        await trio.sleep(_ACCEPT_PAUSE)
                    else:
                        log.debug("a connection was gone before it was accepted: %s", error)
                    continue
                finally:
                    self._idle.discard(scope)
                if self._connections >= MAX_CONNECTIONS:
                    log.warning("more than %d connections, one refused", MAX_CONNECTIONS)
                    stream.socket.close()
                    continue
                self._connections += 1
                nursery.start_soon(self._connection, stream)

    async def _connection(self, stream: trio.SocketStream) -> None:
        try:
            rest = b""
            patience = HEAD_TIMEOUT
            while not self._stopping:
                further = await self._exchange(stream, rest, patience)
                if further is None:
                    break
                rest, patience = further, IDLE_TIMEOUT
        except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            log.debug("connection ended: %r", error)
        finally:
            self._connections -= 1
            stream.socket.close()

    async def _exchange(
        self, stream: trio.SocketStream, rest: bytes, patience: float
    ) -> bytes | None:
        """One request and its answer. The bytes read too far, or None at the end."""
        method = ""
        try:
            received = await self._head(stream, rest, patience)
            if received is None:
                return None
            head, rest = received
            request = parse_request(head)
            method = request.method
            with trio.fail_after(HEAD_TIMEOUT):
                while len(rest) < request.content_length:
                    chunk = await stream.receive_some(4096)
                    if not chunk:
                        return None
                    rest += chunk
            rest = rest[request.content_length :]
            response = await self._answer(request)
            persistent = request.persistent and not self._stopping
        except HttpError as error:
            response = Response(f"{error}\n".encode(), error.status)
            persistent = False
        with trio.fail_after(SEND_TIMEOUT):
            await stream.send_all(render_response(response, method == "HEAD", persistent))
        if persistent:
            return rest
        await stream.send_eof()
        # Closing with bytes unread would reset the connection and take the answer with it.
        with trio.move_on_after(_LINGER):
            while await stream.receive_some(4096):
                pass
        return None

    async def _head(
        self, stream: trio.SocketStream, data: bytes, patience: float
    ) -> tuple[bytes, bytes] | None:
        """A request's head and what follows it; None where the peer sends no further one."""
        if not data:
            with trio.move_on_after(patience) as scope:
                self._idle.add(scope)
                try:
                    data = await stream.receive_some(4096)
                finally:
                    self._idle.discard(scope)
            if not data:
                return None
        with trio.move_on_after(HEAD_TIMEOUT):
            while True:
                # RFC 9112 section 2.2: an empty line before a request is to be ignored.
                while data.startswith(b"\r\n"):
                    data = data[2:]
                head, end, rest = data.partition(b"\r\n\r\n")
                if end and len(head) <= HEAD_LIMIT:
                    return head, rest
                if len(data) > HEAD_LIMIT:
                    raise HttpError(
                        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"more than {HEAD_LIMIT} bytes"
                    )
                chunk = await stream.receive_some(4096)
                if not chunk:
                    return None
                data += chunk
        raise HttpError(HTTPStatus.REQUEST_TIMEOUT, f"no whole request within {HEAD_TIMEOUT} s")

    async def _answer(self, request: Request) -> Response:
        if self._loopback_names_only and not _is_loopback(request.headers.get("host", "")):
            return Response(b"answers only to localhost\n", HTTPStatus.FORBIDDEN)
        try:
            return await self._handler(request)
        except HttpError as error:
            return Response(f"{error}\n".encode(), error.status)
        except Exception:
            log.exception("cannot answer %s %s", request.method, request.path)
            return Response(b"internal error, see the log\n", HTTPStatus.INTERNAL_SERVER_ERROR)


def _is_loopback(host: str) -> bool:
    """Whether a Host header is a loopback name, with or without a port. HTTP/1.0 may lack it."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    return name.lower() in ("", "localhost", "127.0.0.1", "[::1]")
