"""The PROXY protocol, version 2: how a tunnel's source is told to a waypoint that wants it so.

One binary header before the first byte of the connection. Two values of our own kind of meshes
travel in it: the source's identity (0xD0) and the hostname that was asked for (0xD1).
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from struct import Struct
from typing import Final

TLV_IDENTITY: Final = 0xD0
TLV_TARGET_HOST: Final = 0xD1
MAX_LENGTH: Final = 4096
"""Bytes after the fixed part that a reader takes; ours need at most a few hundred."""

_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_FIXED: Final = 16
_VERSION_PROXY: Final = 0x21
_VERSION_LOCAL: Final = 0x20
_TCP4: Final = 0x11
_TCP6: Final = 0x21
_PORTS: Final = Struct(">HH")
_LENGTH: Final = Struct(">H")


class ProxyProtocolError(ValueError):
    """Bytes that are no PROXY header, or values that fit in none."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """Where a connection came from, and where it went.

    Attributes:
        source: Address and port of the client; None in a header that only says LOCAL.
        destination: Address and port it asked for; None as above.
        identity: SPIFFE URI of the client, or empty.
        target_host: Hostname it asked for, or empty.
    """

    source: tuple[str, int] | None
    destination: tuple[str, int] | None
    identity: str = ""
    target_host: str = ""


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
    body += _tlv(TLV_IDENTITY, identity) + _tlv(TLV_TARGET_HOST, target_host)
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


def parse_proxy_header(data: bytes) -> tuple[ProxyHeader, int] | None:
    """Read a header from the start of a connection.

    Returns:
        The header and how many bytes it took; None when more bytes are needed.

    Raises:
        ProxyProtocolError: The connection does not start with one.
    """
    if not data.startswith(_SIGNATURE[: len(data)]):
        raise ProxyProtocolError("no PROXY header of version 2")
    if len(data) < _FIXED:
        return None
    (length,) = _LENGTH.unpack_from(data, 14)
    if length > MAX_LENGTH:
        raise ProxyProtocolError(f"PROXY header of {length} bytes")
    stop = _FIXED + length
    if len(data) < stop:
        return None
    version, family = data[12], data[13]
    if version == _VERSION_LOCAL:
        return ProxyHeader(None, None), stop
    if version != _VERSION_PROXY:
        raise ProxyProtocolError(f"PROXY header: version and command {version:#x}")
    if family not in (_TCP4, _TCP6):
        raise ProxyProtocolError(f"PROXY header: family {family:#x} is not TCP")
    size = 4 if family == _TCP4 else 16
    body = data[_FIXED:stop]
    start = 2 * size + 4
    if length < start:
        raise ProxyProtocolError(f"PROXY header: {length} bytes hold no addresses")
    source_port, destination_port = _PORTS.unpack_from(body, 2 * size)
    source = (_text(body[:size]), source_port)
    destination = (_text(body[size : 2 * size]), destination_port)
    identity, target_host = _read_tlvs(body[start:])
    return ProxyHeader(source, destination, identity, target_host), stop


def _text(packed: bytes) -> str:
    address = ip_address(packed)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


def _read_tlvs(rest: bytes) -> tuple[str, str]:
    values = {TLV_IDENTITY: "", TLV_TARGET_HOST: ""}
    pos = 0
    while pos < len(rest):
        if pos + 3 > len(rest):
            raise ProxyProtocolError("PROXY header: a value is cut off")
        kind = rest[pos]
        (length,) = _LENGTH.unpack_from(rest, pos + 1)
        stop = pos + 3 + length
        if stop > len(rest):
            raise ProxyProtocolError("PROXY header: a value is cut off")
        if kind in values:
            try:
                values[kind] = rest[pos + 3 : stop].decode()
            except UnicodeDecodeError as error:
                raise ProxyProtocolError(f"PROXY header: value {kind:#x}: {error}") from error
        pos = stop
    return values[TLV_IDENTITY], values[TLV_TARGET_HOST]
