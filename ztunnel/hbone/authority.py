"""The authority of a CONNECT: where the tunnel leads (RFC 9113 section 8.5, RFC 3986 section 3.2).

``10.0.0.1:8080``, ``[2001:db8::1]:8080`` or ``web.shop.svc.cluster.local:8080``.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

_LONGEST: Final = 255 + 6
_HOSTNAME: Final = re.compile(
    r"(?!-)[a-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[a-z0-9_-]{1,63}(?<!-))*\.?", re.IGNORECASE
)
# The last label of a name is not a number (RFC 3696 section 2): "10.0.0.256" is a broken address
# and must not be asked of a DNS server.
_NUMBER: Final = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)", re.IGNORECASE)


class AuthorityError(ValueError):
    """An authority that cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Authority:
    """Host and port.

    Attributes:
        host: An address in canonical text (v4-mapped v6 is turned into v4), or a lower-case
            hostname without a final dot.
        port: 1 to 65535.
        is_ip: ``host`` is an address.
        text: Both, as they are written.
    """

    host: str
    port: int
    is_ip: bool
    text: str = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", format_authority(self.host, self.port))

    def __str__(self) -> str:
        return self.text


@lru_cache(maxsize=1024)
def parse_authority(text: str) -> Authority:
    """Read an authority.

    Raises:
        AuthorityError: It is none. User information, missing ports and zone ids are errors.
    """
    if len(text) > _LONGEST:
        raise AuthorityError(f"authority of {len(text)} characters")
    host, colon, digits = text.rpartition(":")
    if not colon or not host:
        raise AuthorityError(f"authority {text!r} has no port")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 5):
        raise AuthorityError(f"authority {text!r}: the port is not a number")
    port = int(digits)
    if not 0 < port <= 65535:
        raise AuthorityError(f"authority {text!r}: port {port} is out of range")
    if host[0] == "[":
        if host[-1] != "]":
            raise AuthorityError(f"authority {text!r}: the bracket is not closed")
        return Authority(_ipv6(host[1:-1], text), port, True)
    if ":" in host:
        raise AuthorityError(f"authority {text!r}: an IPv6 address needs brackets")
    if not _HOSTNAME.fullmatch(host):
        raise AuthorityError(f"authority {text!r}: not a host")
    name = host.rstrip(".").lower()
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        try:
            return Authority(str(IPv4Address(host)), port, True)
        except AddressValueError as error:
            raise AuthorityError(f"authority {text!r}: {error}") from None
    return Authority(name, port, False)


def _ipv6(host: str, text: str) -> str:
    try:
        address = IPv6Address(host)
    except AddressValueError as error:
        raise AuthorityError(f"authority {text!r}: {error}") from None
    if address.scope_id is not None:
        raise AuthorityError(f"authority {text!r}: a zone has no meaning to another machine")
    mapped = address.ipv4_mapped
    return str(address) if mapped is None else str(mapped)


def format_authority(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
