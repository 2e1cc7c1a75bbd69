"""Requests to an API server that answers as told."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from daemonset.kube import client as client_module
from daemonset.kube.client import ApiError, ApiUnavailableError, KubeClient
from daemonset.kube.config import KubeConfig
from daemonset.kube.http_connection import HttpConnection, HttpError
from tests.support.kube.scripted_api import Exchange, scripted_api


async def test_a_connection_serves_one_call_after_the_other() -> None:
    streams: set[object] = set()

    async def script(exchange: Exchange) -> None:
        streams.add(exchange.stream)
        await exchange.answer({"path": exchange.path, "query": exchange.query})

    async with scripted_api(script) as client:
        for number in range(3):
            answer = await client.call("GET", f"/api/{number}", {"a": "b c&d"})
            assert answer == {"path": f"/api/{number}", "query": {"a": "b c&d"}}
    assert len(streams) == 1


async def test_a_connection_that_the_server_has_ended_meanwhile_is_replaced() -> None:
    calls = 0

    async def script(exchange: Exchange) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            await exchange.reset()
        else:
            await exchange.answer({"call": calls})

    async with scripted_api(script) as client:
        assert await client.call("GET", "/api") == {"call": 1}
        assert await client.call("POST", "/api", body={}) == {"call": 3}


async def test_a_new_connection_without_an_answer_is_an_error() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.reset()

    async with scripted_api(script) as client:
        with pytest.raises(ApiUnavailableError, match="ended before an answer"):
            await client.call("GET", "/api")


async def test_a_refusal_says_why() -> None:
    async def script(exchange: Exchange) -> None:
        status = {"kind": "Status", "reason": "TooManyRequests", "message": "slow down"}
        await exchange.answer(status, 429, "Retry-After: 7\r\n")

    async with scripted_api(script) as client:
        with pytest.raises(ApiError, match="429 TooManyRequests: slow down") as failure:
            await client.call("GET", "/api")
    assert (failure.value.status, failure.value.retry_after) == (429, 7.0)


async def test_a_server_that_stays_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "CALL_SECONDS", 0.1)

    async def script(_: Exchange) -> None:
        await trio.sleep_forever()

    async with scripted_api(script) as client:
        with pytest.raises(ApiUnavailableError, match="no answer"):
            await client.call("GET", "/api")


async def test_a_watch_that_does_not_begin_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "CALL_SECONDS", 0.1)

    async def script(_: Exchange) -> None:
        await trio.sleep_forever()

    async with scripted_api(script) as client:
        with pytest.raises(ApiUnavailableError, match="no watch"):
            async with client.stream("/api", {"watch": "1"}):
                pytest.fail("it has not begun")


async def test_nobody_listens() -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    client = KubeClient(KubeConfig("127.0.0.1", port, None, "", lambda: ""))
    with pytest.raises(ApiUnavailableError, match=f"cannot connect to 127.0.0.1:{port}"):
        await client.call("GET", "/api")


async def test_who_we_are_cannot_be_told() -> None:
    def no_token() -> str:
        raise OSError("the token is gone")

    async def script(exchange: Exchange) -> None:
        await exchange.answer({})

    async with scripted_api(script, no_token) as client:
        with pytest.raises(ApiUnavailableError, match="the token is gone"):
            await client.call("GET", "/api")


class Canned:
    """A stream that has an answer ready, in pieces."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self._data = data
        self._sizes = sizes
        self.sent = b""

    async def send_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.sent += data

    async def receive_some(self, limit: int) -> bytes:
        await trio.lowlevel.checkpoint()
        size = self._sizes.pop() if self._sizes else limit
        piece, self._data = self._data[:size], self._data[size:]
        return piece


def ask(data: bytes, sizes: list[int]) -> tuple[int, bytes, bool]:
    """Status, body, and may the connection be used again?"""

    async def run() -> tuple[int, bytes, bool]:
        stream: Any = Canned(data, sizes)
        connection = HttpConnection(stream)
        head = await connection.request("GET", "/", {"Host": "a"}, b"")
        body = await connection.read_all(10_000)
        return head.status, body, connection.reusable

    return trio.run(run)


sizes = st.lists(st.integers(1, 20), max_size=40)


@given(chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=6), sizes=sizes)
def test_bodies_in_chunks_of_any_size_and_pieces_of_any_size(
    chunks: list[bytes], sizes: list[int]
) -> None:
    head = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    data = b"".join(b"%X;x=y\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    end = b"0\r\nTrailer: a\r\n\r\n"
    assert ask(head + data + end, sizes) == (200, b"".join(chunks), True)


@given(body=st.binary(max_size=60), sizes=sizes)
def test_bodies_with_a_length_and_up_to_the_end(body: bytes, sizes: list[int]) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert ask(head + body, list(sizes)) == (200, body, True)
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
    assert ask(head + body, list(sizes)) == (200, body, False)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000,
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 20\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded: line\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x10\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 20 + b"\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10001\r\n\r\n" + b"a" * 10_001,
    ],
)
def test_answers_that_are_cut_off_or_wrong(data: bytes) -> None:
    with pytest.raises(HttpError):
        ask(data, [])


@given(data=st.binary(max_size=120), sizes=sizes)
def test_any_bytes_are_an_answer_or_an_error(data: bytes, sizes: list[int]) -> None:
    try:
        status, _, _ = ask(b"HTTP/1.1 200 OK\r\n" + data, sizes)
        assert status == 200
    except HttpError:
        pass


def test_what_a_head_says() -> None:
    async def run() -> None:
        stream: Any = Canned(b"HTTP/1.1 204 No Content\r\nVia: a\r\nvia:  b \r\nX:\r\n\r\n", [])
        connection = HttpConnection(stream)
        head = await connection.request("GET", "/", {"Host": "a"}, b"")
        assert head.status == 204
        assert head.headers == {"via": "a, b", "x": ""}
        assert await connection.read_all(10) == b""
        assert connection.reusable

    trio.run(run)


@pytest.mark.parametrize("text", ["a\r\nEvil: b", "a\nb", "a\x00", "ä"])
def test_nothing_can_be_smuggled_into_a_request(text: str) -> None:
    async def run(target: str, value: str) -> None:
        sent: Any = Canned(b"", [])
        with pytest.raises((HttpError, ValueError)):
            await HttpConnection(sent).request("GET", target, {"Host": "a", "X": value}, b"")
        assert not sent.sent

    trio.run(run, "/", text)
    trio.run(run, f"/{text}", "x")
