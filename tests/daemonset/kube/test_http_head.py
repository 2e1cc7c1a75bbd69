"""Heads of HTTP/1.1."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemonset.kube.http_head import HttpError, format_head, parse_chunk_size, parse_head


def test_a_head() -> None:
    head = parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nVia: a\r\nvia:  b \r\nX:")
    assert head.status == 200
    assert head.headers == {"content-length": "12", "via": "a, b", "x": ""}
    assert (head.length, head.chunked, head.ends_connection) == (12, False, False)


def test_how_a_body_is_framed() -> None:
    assert parse_head(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked").chunked
    assert parse_head(b"HTTP/1.1 204 No Content").length == 0
    assert parse_head(b"HTTP/1.1 200").length is None
    assert parse_head(b"HTTP/1.1 200 OK\r\nConnection: close").ends_connection


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/2 200",
        b"HTTP/1.1 20",
        b"HTTP/1.1 200 OK\r\nno colon",
        b"HTTP/1.1 200 OK\r\n folded: line",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
    ],
)
def test_what_is_no_head(data: bytes) -> None:
    with pytest.raises(HttpError):
        parse_head(data)


@pytest.mark.parametrize("text", ["-1", "1, 1", "0x10", "9" * 20])
def test_a_length_that_is_none(text: str) -> None:
    head = parse_head(f"HTTP/1.1 200 OK\r\nContent-Length: {text}".encode())
    with pytest.raises(HttpError):
        _ = head.length


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_head_or_refused(data: bytes) -> None:
    try:
        head = parse_head(b"HTTP/1.1 200 OK\r\n" + data)
        assert head.status == 200
        assert head.length is None or head.length >= 0
    except HttpError:
        pass


@given(size=st.integers(0, 2**32 - 1))
def test_sizes_of_chunks(size: int) -> None:
    assert parse_chunk_size(f"{size:x}".encode()) == size
    assert parse_chunk_size(f"{size:X} ; name=value".encode()) == size


@given(line=st.binary(max_size=12))
def test_any_line_is_a_size_or_refused(line: bytes) -> None:
    try:
        assert 0 <= parse_chunk_size(line) < 2**32
    except HttpError:
        pass


def test_a_request() -> None:
    assert format_head("GET", "/api", {"Host": "a"}) == b"GET /api HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("text", ["a\r\nEvil: b", "a\nb", "a\x00", "ä"])
def test_nothing_can_be_smuggled_into_a_request(text: str) -> None:
    with pytest.raises(ValueError):
        format_head("GET", "/", {"Authorization": text})
    with pytest.raises(ValueError):
        format_head("GET", f"/{text}", {})
