"""The PROXY protocol, version 2: how a tunnel's source is told to a waypoint that wants it so.

One binary header before the first byte of the connection. Two values of our own kind of meshes
travel in it: the source's identity (0xD0) and the hostname that was asked for (0xD1).
"""

from ipaddress import IPv4Address, IPv6Address, ip_address
from struct import Struct
from typing import Final

_IDENTITY: Final = 0xD0
_TARGET_HOST: Final = 0xD1

_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_VERSION_PROXY: Final = 0x21
_TCP4: Final = 0x11
_TCP6: Final = 0x21
_PORTS: Final = Struct(">HH")
_LENGTH: Final = Struct(">H")


class ProxyProtocolError(ValueError):
    """Values that fit in no PROXY header."""


def build_proxy_header(
    source: tuple[str, int],
    destination: tuple[str, int],
    identity: str = "",
    target_host: str = "",
) -> bytes:
    """The header for a TCP connection.

    Addresses of two families are both written as IPv6, the IPv4 one mapped.

    Raises:
        ProxyProtocolError: An address, a port or a text that fits in no header.
    """
    try:
        client = ip_address(source[0])
        server = ip_address(destination[0])
        ports = _PORTS.pack(source[1], destination[1])
    except Exception as error:
        raise ProxyProtocolError(f"PROXY header {source} -> {destination}: {error}") from error
    family = _TCP4
    if isinstance(client, IPv6Address) or isinstance(server, IPv6Address):
        family = _TCP6
        client, server = _as_ipv6(client), _as_ipv6(server)
    body = client.packed + server.packed + ports
    body += _tlv(_IDENTITY, identity) + _tlv(_TARGET_HOST, target_host)
    return _SIGNATURE + bytes((_VERSION_PROXY, family)) + _LENGTH.pack(len(body)) + body


def _as_ipv6(address: IPv4Address | IPv6Address) -> IPv6Address:
    if isinstance(address, IPv6Address):
        return address
    return IPv6Address(b"\x00" * 10 + b"\xff\xff" + address.packed)


def _tlv(kind: int, text: str) -> bytes:
    value = text.encode()
    if len(value) > 1024:
        raise ProxyProtocolError(f"PROXY header: a value of {len(value)} bytes")
    return bytes((kind,)) + _LENGTH.pack(len(value)) + value if value else b""
