"""The ``forwarded`` header (RFC 7239): who opened the connection inside a tunnel, and to what name.

``for="10.0.0.1:1234";host=web.shop.svc.cluster.local``. The host chooses which service a connection
is *reported* under; it decides nothing.
"""

import re
from dataclasses import dataclass
from typing import Final

from ztunnel.hbone.authority import format_authority

MAX_LENGTH: Final = 2048

# One parameter: a token, then a token or a quoted string (RFC 7239 section 4). Peers leave host
# values unquoted also where the grammar wants quotes (a port makes it "host:port").
_PARAMETER: Final = re.compile(
    r"""[ \t]*([!#$%&'*+\-.^_`|~0-9A-Za-z]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s";,]*))[ \t]*"""
)
_ESCAPED: Final = re.compile(r"\\(.)")
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


@dataclass(frozen=True, slots=True)
class Forwarded:
    """The first element of the header; empty text where it says nothing."""

    source: str = ""
    host: str = ""


def format_forwarded(address: str, port: int, host: str = "") -> str:
    """The header's value for one connection.

    Args:
        address: The client's address, canonical text.
        port: The client's port.
        host: The service that was addressed, if one was.
    """
    value = f'for="{format_authority(address, port)}"'
    if host:
        value += f";host={host}" if _TOKEN.fullmatch(host) else f';host="{_quote(host)}"'
    return value


def _quote(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def parse_forwarded(text: str) -> Forwarded:
    """Read the first element; whatever is unreadable ends it, and what came before counts."""
    source = ""
    host = ""
    if len(text) > MAX_LENGTH or not text.isascii():
        return Forwarded()
    pos = 0
    while True:
        match = _PARAMETER.match(text, pos)
        if match is None:
            break
        name = match[1].lower()
        value = match[3] if match[2] is None else _ESCAPED.sub(r"\1", match[2])
        if name == "for" and not source:
            source = value
        elif name == "host" and not host:
            host = value
        pos = match.end()
        if text[pos : pos + 1] != ";":
            break
        pos += 1
    return Forwarded(source, host)


def forwarded_host(text: str) -> str:
    """Only the host of :func:`parse_forwarded`: most connections are for none."""
    return parse_forwarded(text).host if "host" in text.lower() else ""
