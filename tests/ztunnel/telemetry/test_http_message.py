from __future__ import annotations

from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.telemetry.http_message import (
    HttpError,
    Request,
    Response,
    parse_request,
    render_response,
)


def test_a_request() -> None:
    head = (
        b"POST /logging?level=access%3Dwarn&reset HTTP/1.1\r\nHost: localhost:15000\r\n"
        b"Content-Length: 3\r\nAccept: a\r\naccept:\tb \r\nConnection: close"
    )
    assert parse_request(head) == Request(
        "POST",
        "/logging",
        {"level": "access=warn", "reset": ""},
        {
            "host": "localhost:15000",
            "content-length": "3",
            "accept": "a, b",
            "connection": "close",
        },
        persistent=False,
        content_length=3,
    )


@pytest.mark.parametrize(
    ("version", "connection", "persistent"),
    [("1.1", "", True), ("1.1", "Close", False), ("1.0", "", False), ("1.0", "keep-alive", True)],
)
def test_persistence(version: str, connection: str, persistent: bool) -> None:
    head = f"GET / HTTP/{version}\r\nHost: x\r\nConnection: {connection}"
    assert parse_request(head.encode()).persistent is persistent


def test_a_target_that_looks_like_an_authority_is_a_path() -> None:
    assert parse_request(b"GET //evil/%2e HTTP/1.0").path == "//evil/."


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"", 400),
        (b"GET", 400),
        (b"GET /", 400),
        (b"GET / HTTP/1.1", 400),
        (b"GET  / HTTP/1.1\r\nHost: x", 400),
        (b"GET / HTTP/1.1 \r\nHost: x", 400),
        (b"GET http://x/ HTTP/1.1\r\nHost: x", 400),
        (b"GET /\x00 HTTP/1.1\r\nHost: x", 400),
        (b"GET /%ff HTTP/1.1\r\nHost: x", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y", 400),
        (b"GET / HTTP/1.1\r\nHost : x", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded", 400),
        (b"GET / HTTP/1.1\r\nHost: x\nA: b", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: +1", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999", 413),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked", 501),
        (b"GET / HTTP/2.0\r\nHost: x", 505),
        (b"PRI * HTTP/2.0", 505),
        (b"GET /?" + b"&a" * 100 + b" HTTP/1.1\r\nHost: x", 400),
    ],
)
def test_what_is_refused(head: bytes, status: int) -> None:
    with pytest.raises(HttpError) as caught:
        parse_request(head)
    assert caught.value.status == status


@given(st.binary(max_size=200))
def test_any_head_is_a_request_or_an_error(head: bytes) -> None:
    for data in (head, b"GET / HTTP/1.1\r\nHost: x\r\n" + head, b"GET /" + head + b" HTTP/1.0"):
        try:
            request = parse_request(data)
        except HttpError:
            continue
        assert request.path.startswith("/")


def test_responses() -> None:
    response = Response(b"hi\n", HTTPStatus.NOT_FOUND, headers={"allow": "GET"})
    whole = render_response(response, head_only=False, persistent=True)
    assert whole == (
        b"HTTP/1.1 404 Not Found\r\ncontent-type: text/plain; charset=utf-8\r\n"
        b"content-length: 3\r\nallow: GET\r\n\r\nhi\n"
    )
    head = render_response(response, head_only=True, persistent=False)
    assert head == whole.removesuffix(b"\r\n\r\nhi\n") + b"\r\nconnection: close\r\n\r\n"
