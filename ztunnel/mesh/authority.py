"""The authority of a CONNECT request: an address or a hostname, and a port (RFC 9110 9.3.6)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from ztunnel.mesh.address import canonical_ip

_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\Z")
_PORT = re.compile(r"[0-9]{1,5}\Z")
_NUMERIC = re.compile(r"[0-9.]+\Z")


class AuthorityError(ValueError):
    """Text that is not `IP:port`, `[IPv6]:port` or `hostname:port`."""


class Authority(NamedTuple):
    """One of `ip` (canonical) and `hostname` (in lower case) is set, the other is ""."""

    ip: str
    hostname: str
    port: int


@lru_cache(maxsize=4096)  # a pod is asked for the same few again and again
def parse_authority(text: str) -> Authority:
    """Read an authority.

    Raises:
        AuthorityError: no port, a port outside 1..65535, or neither address nor hostname.
    """
    host, colon, digits = text.rpartition(":")
    if not colon or _PORT.match(digits) is None or not 0 < (port := int(digits)) <= 65535:
        raise AuthorityError(f"authority {text[:300]!r} does not end in a port")
    try:
        if host.startswith("["):
            if not host.endswith("]") or ":" not in host:
                raise AuthorityError(f"authority {text[:300]!r} has no closing bracket")
            return Authority(canonical_ip(host[1:-1]), "", port)
        if _NUMERIC.match(host) is not None:
            return Authority(canonical_ip(host), "", port)
    except ValueError as error:
        raise AuthorityError(f"authority {text[:300]!r}: {error}") from None
    name = host.removesuffix(".")
    if len(name) > 253 or not all(_LABEL.match(label) for label in name.split(".")):
        raise AuthorityError(f"authority {text[:300]!r} has neither an address nor a hostname")
    return Authority("", name.lower(), port)
