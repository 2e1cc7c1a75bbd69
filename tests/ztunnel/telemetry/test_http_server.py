from __future__ import annotations

import errno
import gc
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from ztunnel.telemetry import http_server
from ztunnel.telemetry.http_message import Request, Response
from ztunnel.telemetry.http_server import HttpServer, open_listeners
from ztunnel.telemetry.readiness import Readiness

REQUEST_PARTS = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n",
        b"Host: x\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"Content-Length: 3\r\n",
        b"HEAD / HTTP/1.0\r\n\r\n",
    ]
)


async def echo(request: Request) -> Response:
    if request.path == "/broken":
        raise RuntimeError("oh")
    return Response(f"{request.method} {request.path}\n".encode())


@asynccontextmanager
async def serving(
    handler: http_server.Handler = echo, loopback_names_only: bool = False
) -> AsyncIterator[HttpServer]:
    listeners = await open_listeners(["127.0.0.1"], 0)
    server = HttpServer(listeners, handler, loopback_names_only)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve)
            yield server
            server.stop()


async def connect(server: HttpServer) -> trio.SocketStream:
    return await trio.open_tcp_stream(*server.addresses[0])


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([chunk async for chunk in stream])


async def ask(server: HttpServer, request: bytes) -> bytes:
    async with await connect(server) as stream:
        await stream.send_all(request)
        return await read_all(stream)


async def test_requests_on_one_connection_byte_by_byte_and_at_once() -> None:
    async with serving() as server, await connect(server) as stream:
        for byte in b"\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n":
            await stream.send_all(bytes([byte]))
        assert (await stream.receive_some()).endswith(b"\r\n\r\nGET /a\n")
        await stream.send_all(
            b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"
            b"HEAD /c HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        answers = await read_all(stream)
        assert answers.count(b"HTTP/1.1 200 OK") == 2
        assert b"POST /b\n" in answers
        assert answers.endswith(b"content-length: 8\r\nconnection: close\r\n\r\n")


async def test_a_client_may_close_its_sending_side_first() -> None:
    async with serving() as server, await connect(server) as stream:
        await stream.send_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
        await stream.send_eof()
        assert (await read_all(stream)).endswith(b"GET /a\n")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=60) | REQUEST_PARTS, max_size=6))
async def test_whatever_is_sent_the_server_goes_on(chunks: list[bytes]) -> None:
    async with serving() as server:
        async with await connect(server) as stream:
            try:
                for chunk in chunks:
                    await stream.send_all(chunk)
                await stream.send_eof()
                await read_all(stream)
            except trio.BrokenResourceError:
                # Refused and closed before we had said everything.
                assert chunks
        assert (await ask(server, b"GET / HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_errors_are_answers_and_the_server_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as server:
        broken = await ask(server, b"GET /broken HTTP/1.0\r\n\r\n")
        assert broken.startswith(b"HTTP/1.1 500 ")
        assert "RuntimeError: oh" in caplog.text
        assert (await ask(server, b"\x16\x03\x01\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        long = b"GET / HTTP/1.1\r\nA: " + b"x" * 20_000
        assert (await ask(server, long)).startswith(b"HTTP/1.1 431 ")
        assert (await ask(server, b"GET / HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_only_loopback_names() -> None:
    async with serving(loopback_names_only=True) as server:
        for host, status in [
            (b"localhost:15000", b"200"),
            (b"127.0.0.1", b"200"),
            (b"[::1]:15000", b"200"),
            (b"[::1]", b"200"),
            (b"evil.example:15000", b"403"),
            (b"localhost.evil.example", b"403"),
        ]:
            request = b"GET / HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n"
            assert (await ask(server, request)).startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"GET / HT", b"HTTP/1.1 408 "),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n1", b""),
    ],
)
async def test_silence_ends_the_connection(
    sent: bytes, answer: bytes, mock_clock: trio.testing.MockClock
) -> None:
    async with serving() as server, await connect(server) as stream:
        await stream.send_all(sent)
        await trio.testing.wait_all_tasks_blocked(0.05)
        mock_clock.jump(http_server.HEAD_TIMEOUT)
        assert (await read_all(stream))[:13] == answer


async def test_too_many_connections_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 1)
    async with serving() as server, await connect(server) as first:
        await first.send_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await first.receive_some()
        async with await connect(server) as second:
            assert await second.receive_some() == b""
        await first.send_all(b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await first.receive_some()).endswith(b"GET /b\n")


async def test_stopping_finishes_the_answer_that_is_being_made() -> None:
    asked, go = trio.Event(), trio.Event()

    async def slow(request: Request) -> Response:
        asked.set()
        await go.wait()
        return Response(b"done\n")

    async with (
        serving(slow) as server,
        await connect(server) as idle,
        await connect(server) as stream,
    ):
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await asked.wait()
        server.stop()
        assert await read_all(idle) == b""
        go.set()
        answer = await read_all(stream)
        assert b"connection: close" in answer
        assert answer.endswith(b"done\n")


async def test_listeners(monkeypatch: pytest.MonkeyPatch) -> None:
    (both,) = await open_listeners(["::"], 0)
    port = both.socket.getsockname()[1]
    for host in ("127.0.0.1", "::1"):
        await (await trio.open_tcp_stream(host, port)).aclose()
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {port}"):
        await open_listeners(["127.0.0.1"], port)
    await both.aclose()
    # 192.0.2.1 (RFC 5737) is nobody's address.
    (one,) = await open_listeners(["127.0.0.1", "192.0.2.1"], 0)
    assert one.socket.family == socket.AF_INET
    await one.aclose()
    with pytest.raises(OSError):
        await open_listeners(["192.0.2.1"], 0)


async def test_listeners_everywhere_where_the_kernel_has_no_ipv6(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = trio.socket.socket

    def without(family: int, kind: int) -> trio.socket.SocketType:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, kind)

    monkeypatch.setattr(trio.socket, "socket", without)
    (one,) = await open_listeners(["::"], 0)
    assert one.socket.getsockname()[0] == "0.0.0.0"
    await one.aclose()
    with pytest.raises(OSError, match="Address family"):
        await open_listeners(["::1"], 0)


async def test_readiness() -> None:
    readiness = Readiness("proxy", "dns proxy")
    async with serving(readiness.handler()) as server:

        async def get(method: bytes, path: bytes) -> bytes:
            return await ask(server, method + b" " + path + b" HTTP/1.0\r\n\r\n")

        pending = await get(b"GET", b"/healthz/ready")
        assert pending.startswith(b"HTTP/1.1 500 ")
        assert pending.endswith(b"not ready, pending: dns proxy, proxy\n")
        readiness.done("proxy")
        readiness.done("proxy")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(readiness.ready)
            await trio.testing.wait_all_tasks_blocked()
            readiness.done("dns proxy")
        assert (await get(b"GET", b"/healthz/ready")).endswith(b"\r\n\r\nready\n")
        assert (await get(b"HEAD", b"/healthz/ready")).startswith(b"HTTP/1.1 200 ")
        refused = await get(b"POST", b"/healthz/ready")
        assert refused.startswith(b"HTTP/1.1 405 ")
        assert b"allow: GET, HEAD\r\n" in refused
        assert (await get(b"GET", b"/")).startswith(b"HTTP/1.1 404 ")
        readiness.wait_for("proxy")
        assert readiness.pending == ["proxy"]


async def test_listeners_that_nobody_waits_for_any_more_are_closed() -> None:
    with trio.move_on_after(0) as scope:
        await open_listeners(["127.0.0.1"], 0)
    assert scope.cancelled_caught
    gc.collect()  # one that is open complains now
