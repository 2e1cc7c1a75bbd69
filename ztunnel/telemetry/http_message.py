"""HTTP/1.1 requests and responses (RFC 9112) as small as an administrative port needs them.

Strict, because what a lenient reader accepts two readers understand differently: no bare LF, no
folded headers, no transfer codings, no absolute targets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

HEAD_LIMIT: Final = 8192
BODY_LIMIT: Final = 8192

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE: Final = re.compile(rb"(" + _TOKEN + rb") (/[\x21-\x7e]*) HTTP/1\.([01])")
_HEADER: Final = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([\x20-\x7e\x80-\xff\t]*)")
_LENGTH: Final = re.compile(r"[0-9]{1,9}", re.ASCII)


class HttpError(Exception):
    """A request that is answered with ``status`` and after which the connection is closed."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """A request without its body. Header names are in lower case; of a repeated header, the
    values are joined by commas."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    persistent: bool = True
    content_length: int = 0


@dataclass(frozen=True, slots=True)
class Response:
    """An answer. ``headers`` are further ones; length, type and connection need not be there."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


def parse_request(head: bytes) -> Request:
    """Reads a request's head, without the empty line that ends it.

    Raises:
        HttpError: 400 for what is malformed, 413 for a body that is too long, 501 for a transfer
            coding, 505 for another version.
    """
    line, *fields = head.split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        if re.fullmatch(_TOKEN + rb" \S+ HTTP/[0-9]\.[0-9]", line) and b" HTTP/1." not in line:
            raise HttpError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "only HTTP/1 is spoken here")
        raise HttpError(HTTPStatus.BAD_REQUEST, "malformed request line")
    headers: dict[str, str] = {}
    for text in fields:
        header = _HEADER.fullmatch(text)
        if header is None:
            raise HttpError(HTTPStatus.BAD_REQUEST, "malformed header")
        name = header[1].decode("ascii").lower()
        value = header[2].decode("latin-1").rstrip(" \t")
        if name in headers and name in ("host", "content-length"):
            raise HttpError(HTTPStatus.BAD_REQUEST, f"more than one {name} header")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    minor = match[3]
    if minor == b"1" and "host" not in headers:
        raise HttpError(HTTPStatus.BAD_REQUEST, "no Host header")  # RFC 9112 section 3.2
    if "transfer-encoding" in headers:
        raise HttpError(HTTPStatus.NOT_IMPLEMENTED, "no transfer coding is understood here")
    path, query = _target(match[2].decode("ascii"))
    return Request(
        method=match[1].decode("ascii"),
        path=path,
        query=query,
        headers=headers,
        persistent=_persistent(minor == b"1", headers.get("connection", "")),
        content_length=_length(headers.get("content-length")),
    )


def render_response(response: Response, head_only: bool, persistent: bool) -> bytes:
    """The bytes of an answer; without its body where ``head_only`` (the answer to HEAD)."""
    lines = [
        f"HTTP/1.1 {response.status.value} {response.status.phrase}",
        f"content-type: {response.content_type}",
        f"content-length: {len(response.body)}",
        *(f"{name}: {value}" for name, value in response.headers.items()),
    ]
    if not persistent:
        lines.append("connection: close")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    return head if head_only else head + response.body


def _target(target: str) -> tuple[str, dict[str, str]]:
    try:
        # Without the leading host, "//x" would be taken for one.
        parts = urlsplit(f"http://host{target}")
        query = dict(parse_qsl(parts.query, keep_blank_values=True, max_num_fields=64))
        return unquote(parts.path, errors="strict"), query
    except ValueError:
        raise HttpError(HTTPStatus.BAD_REQUEST, "malformed target") from None


def _persistent(http_1_1: bool, connection: str) -> bool:
    options = {option.strip().lower() for option in connection.split(",")}
    return "close" not in options and (http_1_1 or "keep-alive" in options)


def _length(text: str | None) -> int:
    if text is None:
        return 0
    if not _LENGTH.fullmatch(text):
        raise HttpError(HTTPStatus.BAD_REQUEST, "malformed Content-Length")
    length = int(text)
    if length > BODY_LIMIT:
        raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {BODY_LIMIT} bytes")
    return length
