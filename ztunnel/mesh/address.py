"""IP addresses as canonical text, and as numbers where networks are compared.

Canonical text is what inet_ntop writes, with v4-mapped IPv6 turned into IPv4, so that the
text the kernel gives and the text the control plane gives are equal as dictionary keys.
"""

from __future__ import annotations

import ipaddress

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
SocketAddress = tuple[str, int]

_MAPPED_PREFIX = b"\x00" * 10 + b"\xff\xff"
_MAPPED_BITS = 0xFFFF << 32


def ip_from_bytes(raw: bytes) -> str:
    """Canonical text of an address of 4 or 16 bytes in network order.

    Raises:
        ValueError: another length.
    """
    if len(raw) == 4:
        return f"{raw[0]}.{raw[1]}.{raw[2]}.{raw[3]}"
    if len(raw) != 16:
        raise ValueError(f"an address of {len(raw)} bytes (4 or 16 expected)")
    if raw.startswith(_MAPPED_PREFIX):
        return ip_from_bytes(raw[12:])
    if not any(raw[:12]) and any(raw[12:14]):
        # inet_ntop keeps the dotted form for the old IPv4-compatible addresses.
        return "::" + ip_from_bytes(raw[12:])
    return str(ipaddress.IPv6Address(raw))


def canonical_ip(text: str) -> str:
    """Canonical form of an address written by a person.

    Raises:
        ValueError: not an IP address, or one with a zone ("%eth0").
    """
    if "%" in text:
        raise ValueError(f"{text!r} has a zone, which means nothing in a mesh")
    return ip_from_bytes(ipaddress.ip_address(text).packed)


def ip_bits(ip: str) -> int:
    """The address as a number; canonical text expected.

    Raises:
        ValueError: not an IP address.
    """
    if ":" in ip:
        return int(ipaddress.IPv6Address(ip))
    first, second, third, fourth = ip.split(".")
    return int(first) << 24 | int(second) << 16 | int(third) << 8 | int(fourth)


def is_ipv6(ip: str) -> bool:
    """Whether canonical text is an IPv6 address."""
    return ":" in ip


def is_loopback(ip: str) -> bool:
    """Whether a connection to `ip` stays in the pod: loopback, or the unspecified address."""
    return ip.startswith("127.") or ip in ("::1", "0.0.0.0", "::")


def network_from_bytes(raw: bytes, length: int) -> IPNetwork:
    """A network of `length` leading bits; bits behind them are cleared.

    Raises:
        ValueError: the address is unreadable or the length too long for its family.
    """
    if len(raw) not in (4, 16):
        raise ValueError(f"an address of {len(raw)} bytes (4 or 16 expected)")
    if not 0 <= length <= len(raw) * 8:
        raise ValueError(f"a prefix of {length} bits in an address of {len(raw) * 8}")
    if len(raw) == 4:
        return ipaddress.IPv4Network((raw, length), strict=False)
    return _unmapped(ipaddress.IPv6Network((raw, length), strict=False))


def parse_network(text: str) -> IPNetwork:
    """A network such as "10.0.0.0/8", or an address, which is a network of one.

    Raises:
        ValueError: unreadable.
    """
    if "%" in text:
        raise ValueError(f"{text!r} has a zone, which means nothing in a mesh")
    network = ipaddress.ip_network(text, strict=False)
    return network if isinstance(network, ipaddress.IPv4Network) else _unmapped(network)


def _unmapped(network: ipaddress.IPv6Network) -> IPNetwork:
    bits = int(network.network_address)
    if network.prefixlen >= 96 and bits >> 32 == _MAPPED_BITS >> 32:
        return ipaddress.IPv4Network((bits & 0xFFFFFFFF, network.prefixlen - 96))
    return network


def format_address(address: SocketAddress) -> str:
    """`ip:port`, with IPv6 in brackets (RFC 3986 section 3.2.2)."""
    ip, port = address
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
