"""Requests to the Kubernetes API."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

import trio

from daemonset.kube.config import KubeConfig
from daemonset.kube.http_connection import Head, HttpConnection, HttpError

Json = dict[str, Any]

CALL_SECONDS = 30.0
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
_MAX_ANSWER_BYTES = 256 * 1024 * 1024
_IDLE_CONNECTIONS = 4
_BROKEN = (OSError, ValueError, HttpError, trio.BrokenResourceError, trio.ClosedResourceError)


class ApiUnavailableError(Exception):
    """No answer: the network, TLS, or a server that ends connections. Trying again may help."""


class ApiError(Exception):
    """The API server's refusal: a Status object.

    Attributes:
        status: of HTTP. reason: a word, as "AlreadyExists". retry_after: seconds, or 0.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.retry_after = retry_after


class KubeClient:
    """Talks to one API server; for any number of tasks of one trio thread."""

    def __init__(self, config: KubeConfig) -> None:
        self._config = config
        self._idle: list[HttpConnection] = []

    def __str__(self) -> str:
        return str(self._config)

    async def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        content_type: str = "application/json",
    ) -> Json:
        """One request and its answer.

        Raises:
            ApiError: the API server refuses.
            ApiUnavailableError: it does not answer within ``CALL_SECONDS``.
        """
        data = b"" if body is None else json.dumps(body).encode()
        headers = {"Content-Type": content_type} if body is not None else {}
        target = _target(path, query)
        with trio.move_on_after(CALL_SECONDS):
            while self._idle:
                # The server may have ended it since: then a new one must do, as nothing of the
                # request was answered. Requests that create things are safe to repeat here: the
                # name is in them.
                try:
                    return await self._exchange(self._idle.pop(), method, target, headers, data)
                except ApiUnavailableError:
                    await self.forget_idle()
            connection = await self.connect()
            return await self._exchange(connection, method, target, headers, data)
        raise ApiUnavailableError(f"no answer from {self} within {CALL_SECONDS:.0f} s: {path}")

    def stream(self, path: str, query: Mapping[str, str]) -> JsonStream:
        """A watch; use as an async context manager."""
        return JsonStream(self, _target(path, query))

    async def connect(self) -> HttpConnection:
        """A new connection. Raises ApiUnavailableError."""
        config = self._config
        try:
            stream = await trio.open_tcp_stream(config.host, config.port)
            _keep_alive(stream)
            if config.tls is None:
                return HttpConnection(stream)
            secure = trio.SSLStream(
                stream,
                config.tls,
                server_hostname=config.tls_name or config.host,
                https_compatible=True,
            )
            try:
                await secure.do_handshake()
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
            return HttpConnection(secure)
        except (*_BROKEN, ssl.SSLError) as error:
            reason = error.__cause__ or error
            raise ApiUnavailableError(f"cannot connect to {self}: {reason}") from None

    async def send(
        self,
        connection: HttpConnection,
        method: str,
        target: str,
        headers: dict[str, str],
        body: bytes,
    ) -> Head:
        """Send a request that names us; its head. Raises ApiUnavailableError."""
        headers = {
            "Host": self._config.host,
            "User-Agent": "ambientd",
            "Accept": "application/json",
            **headers,
        }
        try:
            # May read a file or run a program.
            authorization = await trio.to_thread.run_sync(self._config.authorization)
            if authorization:
                headers["Authorization"] = authorization
            return await connection.request(method, self._config.prefix + target, headers, body)
        except _BROKEN as error:
            raise ApiUnavailableError(f"{self}: {error or type(error).__name__}") from None

    async def forget_idle(self) -> None:
        """Close the connections that wait for another request."""
        while self._idle:
            await self._idle.pop().aclose()

    async def _exchange(
        self,
        connection: HttpConnection,
        method: str,
        target: str,
        headers: dict[str, str],
        body: bytes,
    ) -> Json:
        kept = False
        try:
            head = await self.send(connection, method, target, headers, body)
            try:
                data = await connection.read_all(_MAX_ANSWER_BYTES)
            except _BROKEN as error:
                raise ApiUnavailableError(f"{self}: {error or type(error).__name__}") from None
            if connection.reusable and len(self._idle) < _IDLE_CONNECTIONS:
                self._idle.append(connection)
                kept = True
            return _result(head, data)
        finally:
            if not kept:
                await connection.aclose()


class JsonStream:
    """The answer to a watch: one JSON object after the other.

    Raises from ``async with`` and ``next``: ApiError, ApiUnavailableError.
    """

    def __init__(self, client: KubeClient, target: str) -> None:
        self._client = client
        self._target = target
        self._connection: HttpConnection | None = None
        self._buffer = bytearray()
        self._searched = 0

    async def __aenter__(self) -> JsonStream:
        with trio.move_on_after(CALL_SECONDS):
            await self._open()
        if self._connection is None:
            raise ApiUnavailableError(f"no watch from {self._client} in {CALL_SECONDS:.0f} s")
        return self

    async def _open(self) -> None:
        connection = await self._client.connect()
        try:
            head = await self._client.send(connection, "GET", self._target, {}, b"")
            if head.status != 200:
                try:
                    data = await connection.read_all(_MAX_ANSWER_BYTES)
                except _BROKEN as error:
                    raise ApiUnavailableError(f"{self._client}: {error}") from None
                _result(head, data)
        except BaseException:
            await connection.aclose()
            raise
        self._connection = connection

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._connection is not None:
            await self._connection.aclose()

    async def next(self) -> Json | None:
        """The next object, or None where the server has ended the watch in an orderly way."""
        assert self._connection is not None
        while (at := self._buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(self._buffer)
            try:
                data = await self._connection.read()
            except _BROKEN as error:
                raise ApiUnavailableError(f"{self._client}: {error or 'broken'}") from None
            if not data:
                return None
            self._buffer += data
            if len(self._buffer) > _MAX_ANSWER_BYTES:
                raise ApiUnavailableError(f"{self._client}: an event without an end")
        line = bytes(self._buffer[:at])
        del self._buffer[: at + 1]
        self._searched = 0
        return _decode(line)


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The errors themselves, of a group of groups."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def _target(path: str, query: Mapping[str, str] | None) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _decode(data: bytes) -> Json:
    try:
        value = json.loads(data)
    except ValueError:
        raise ApiUnavailableError(f"not JSON: {data[:80]!r}") from None
    if not isinstance(value, dict):
        raise ApiUnavailableError(f"not a JSON object: {data[:80]!r}")
    return value


def _result(head: Head, data: bytes) -> Json:
    if 200 <= head.status < 300:
        return _decode(data)
    text = data[:500].decode(errors="replace").strip()
    reason = ""
    if head.headers.get("content-type", "").startswith("application/json"):
        status = _decode(data)
        reason, text = str(status.get("reason", "")), str(status.get("message", text))
    wait = head.headers.get("retry-after", "")
    raise ApiError(head.status, reason, text, float(wait) if wait.isdigit() else 0.0)


def _keep_alive(stream: trio.SocketStream) -> None:
    """A server that has vanished is found out within a minute, also by a watch that is silent."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
