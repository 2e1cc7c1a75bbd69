"""What must be understood of HTTP/1.1 to talk to an API server (RFC 9112). Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_HEAD_BYTES = 64 * 1024
_STATUS_LINE = re.compile(r"HTTP/1\.1 ([1-9][0-9]{2})( .*)?")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(;.*)?")
_LENGTH = re.compile(r"[0-9]{1,18}")


class HttpError(Exception):
    """An answer that is no HTTP/1.1, or more of it than is allowed."""


@dataclass(frozen=True, slots=True)
class Head:
    """``headers`` by lower-case name; of several with one name the values are joined."""

    status: int
    headers: dict[str, str]

    @property
    def chunked(self) -> bool:
        return self.headers.get("transfer-encoding", "").lower() == "chunked"

    @property
    def length(self) -> int | None:
        """Of the body, where it is not chunked. Raises HttpError: it is no number."""
        if self.status in (204, 304):
            return 0
        text = self.headers.get("content-length")
        if text is None:
            return None
        if not _LENGTH.fullmatch(text):
            raise HttpError(f"Content-Length is {text!r}")
        return int(text)

    @property
    def ends_connection(self) -> bool:
        return "close" in self.headers.get("connection", "").lower()


def parse_head(data: bytes) -> Head:
    """Everything up to the empty line, without it. Raises HttpError."""
    first, *lines = data.decode("latin-1").split("\r\n")
    match = _STATUS_LINE.fullmatch(first)
    if match is None:
        raise HttpError(f"not a status line: {first[:80]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise HttpError(f"not a header: {line[:80]!r}")
        key = name.lower()
        value = value.strip()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    if "transfer-encoding" in headers and headers["transfer-encoding"].lower() != "chunked":
        raise HttpError(f"Transfer-Encoding is {headers['transfer-encoding']!r}")
    return Head(int(match[1]), headers)


def parse_chunk_size(line: bytes) -> int:
    """The size that a chunk's first line gives (RFC 9112 7.1). Raises HttpError."""
    match = _CHUNK_SIZE.fullmatch(line)
    if match is None:
        raise HttpError(f"not the size of a chunk: {line[:40]!r}")
    return int(match[1], 16)


def format_head(method: str, target: str, headers: dict[str, str]) -> bytes:
    """A request's head. Raises ValueError: something in it is not printable ASCII."""
    lines = [f"{method} {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if any(letter < " " or letter > "~" for line in lines for letter in line):
        raise ValueError(f"not plain ASCII in the request for {target[:80]!r}")
    return "\r\n".join([*lines, "", ""]).encode()
