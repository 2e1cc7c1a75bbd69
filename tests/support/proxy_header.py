"""Reads PROXY headers (version 2) as a waypoint does."""

from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_FIXED = 16
_IDENTITY, _TARGET_HOST = 0xD0, 0xD1


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What one says; IPv4 addresses that are mapped into IPv6 are IPv4 again."""

    source: tuple[str, int]
    destination: tuple[str, int]
    identity: str = ""
    target_host: str = ""


def parse_proxy_header(data: bytes) -> tuple[ProxyHeader, int] | None:
    """The header and how many bytes it took; None when more bytes are needed."""
    assert data.startswith(_SIGNATURE[: len(data)])
    stop = _FIXED + int.from_bytes(data[14:_FIXED], "big")
    if len(data) < max(_FIXED, stop):
        return None
    assert data[12] == 0x21  # version 2, PROXY
    size = {0x11: 4, 0x21: 16}[data[13]]  # TCP over IPv4, over IPv6
    hosts = [_text(data[at : at + size]) for at in (_FIXED, _FIXED + size)]
    at = _FIXED + 2 * size
    ports = [int.from_bytes(data[at : at + 2], "big"), int.from_bytes(data[at + 2 : at + 4], "big")]
    at += 4
    values = {}
    while at < stop:
        end = at + 3 + int.from_bytes(data[at + 1 : at + 3], "big")
        assert end <= stop
        values[data[at]] = data[at + 3 : end].decode()
        at = end
    source, destination = zip(hosts, ports, strict=True)
    said = (values.pop(_IDENTITY, ""), values.pop(_TARGET_HOST, ""))
    assert not values
    return ProxyHeader(source, destination, *said), stop


def _text(packed: bytes) -> str:
    address = ip_address(packed)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)
