"""What a header list may hold (RFC 9113 sections 8.2, 8.3 and 8.5).

Names and values are bytes, as on the wire: a value need not be text in any encoding.
"""

import re
from typing import Final, TypeAlias

from ztunnel.http2.errors import ErrorCode, StreamFault

Header: TypeAlias = tuple[bytes, bytes]
Headers: TypeAlias = list[Header]

# A token (RFC 9110 section 5.6.2) without upper-case letters.
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
# Control characters, or white space at either end (RFC 9113 section 8.2.1, RFC 9110 section 5.5).
_BAD_VALUE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]|\A[ \t]|[ \t]\Z")
# Values of nothing but these need no regular expression, which takes ten times as long.
_VISIBLE: Final = bytes(range(0x21, 0x7F))

# HTTP/1.1's way to talk about the connection has no place here (section 8.2.2): a proxy that
# passed these on to HTTP/1.1 would let a client smuggle requests.
_CONNECTION_SPECIFIC: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_REQUEST_PSEUDO: Final = frozenset((b":method", b":scheme", b":authority", b":path", b":protocol"))
_RESPONSE_PSEUDO: Final = frozenset((b":status",))
_NONE: Final[frozenset[bytes]] = frozenset()
# Names that need no regular expression: those of every tunnel, and some of the most common.
_KNOWN: Final = frozenset(
    (
        b"baggage", b"forwarded", b"traceparent", b"tracestate", b"x-forwarded-network",
        b"date", b"server", b"content-type", b"content-length", b"user-agent", b"accept",
        b"x-request-id", b"x-forwarded-for", b"x-forwarded-proto", b"cookie", b"host",
    )
)  # fmt: skip


def list_size(headers: Headers) -> int:
    """The size that SETTINGS_MAX_HEADER_LIST_SIZE limits: 32 for each field (section 6.5.2)."""
    size = 32 * len(headers)
    for name, value in headers:
        size += len(name) + len(value)
    return size


def _check(headers: Headers, allowed: frozenset[bytes], what: str) -> dict[bytes, bytes]:
    """Every rule that is the same for requests, responses and trailers; the pseudo fields."""
    pseudo: dict[bytes, bytes] = {}
    regular = False
    for name, value in headers:
        if value.translate(None, _VISIBLE) and _BAD_VALUE.search(value) is not None:
            raise malformed(f"{what}: a character in {_show(name)} is not allowed")
        if name[:1] == b":":
            if regular:
                raise malformed(f"{what}: {_show(name)} after a regular field")
            if name not in allowed:
                raise malformed(f"{what}: {_show(name)} is not allowed")
            if name in pseudo:
                raise malformed(f"{what}: {_show(name)} twice")
            pseudo[name] = value
            continue
        regular = True
        if name in _KNOWN:
            continue
        if _NAME.fullmatch(name) is None:
            raise malformed(f"{what}: {_show(name)} is not a field name of HTTP/2")
        if name in _CONNECTION_SPECIFIC:
            raise malformed(f"{what}: {_show(name)} has no place in HTTP/2")
        if name == b"te" and value != b"trailers":
            raise malformed(f"{what}: te is not 'trailers'")
    return pseudo


def check_request(headers: Headers, extended_connect: bool) -> dict[bytes, bytes]:
    """Validate a request's header list.

    Args:
        headers: The list as decoded.
        extended_connect: ``:protocol`` is allowed (RFC 8441).

    Returns:
        The pseudo-header fields.

    Raises:
        StreamFault: The request is malformed (sections 8.1.1, 8.3.1 and 8.5).
    """
    pseudo = _check(headers, _REQUEST_PSEUDO, "request")
    method = pseudo.get(b":method")
    if method is None or _TOKEN.fullmatch(method) is None:
        raise malformed("request: no readable :method")
    if b":protocol" in pseudo and not (extended_connect and method == b"CONNECT"):
        raise malformed("request: :protocol is not allowed")
    if method == b"CONNECT" and b":protocol" not in pseudo:
        if b":scheme" in pseudo or b":path" in pseudo:
            raise malformed("request: CONNECT with :scheme or :path")
        if not pseudo.get(b":authority"):
            raise malformed("request: CONNECT without :authority")
        return pseudo
    if not pseudo.get(b":scheme"):
        raise malformed("request: no :scheme")
    path = pseudo.get(b":path", b"")
    if not path and pseudo[b":scheme"] in (b"http", b"https"):
        raise malformed("request: no :path")
    if path and path[:1] != b"/" and not (path == b"*" and method == b"OPTIONS"):
        raise malformed("request: :path does not start with /")
    return pseudo


_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_STATUS: Final = re.compile(rb"[1-9][0-9][0-9]")
_DIGITS: Final = re.compile(rb"[0-9]{1,18}")


def check_response(headers: Headers) -> int:
    """Validate a response's header list; the status (section 8.3.2).

    Raises:
        StreamFault: The response is malformed.
    """
    status = _check(headers, _RESPONSE_PSEUDO, "response").get(b":status")
    if status is None or _STATUS.fullmatch(status) is None:
        raise malformed("response: no readable :status")
    code = int(status)
    if code == 101:
        raise malformed("response: 101 does not exist in HTTP/2")
    return code


def check_trailers(headers: Headers) -> None:
    """Validate trailers: as all fields, and no pseudo-header (section 8.1).

    Raises:
        StreamFault: They are malformed.
    """
    _check(headers, _NONE, "trailers")


def content_length(headers: Headers) -> int:
    """The ``content-length``, or -1 when there is none.

    Raises:
        StreamFault: It is no number, or two of them differ.
    """
    length = -1
    for name, value in headers:
        if name == b"content-length":
            if _DIGITS.fullmatch(value) is None:
                raise malformed("content-length is not a number")
            number = int(value)
            if length not in (-1, number):
                raise malformed("content-length twice, and not the same")
            length = number
    return length


def malformed(reason: str) -> StreamFault:
    """The fault of a malformed message (section 8.1.1)."""
    return StreamFault(ErrorCode.PROTOCOL_ERROR, reason)


def _show(name: bytes) -> str:
    return repr(name[:64])[1:]
