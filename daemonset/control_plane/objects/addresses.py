"""IP addresses and networks as objects write them."""

from __future__ import annotations

import ipaddress
import re

from daemonset.control_plane.objects.section import ObjectError

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_NETWORK = re.compile(r"[0-9A-Fa-f.:]+(/(0|[1-9][0-9]{0,2}))?")


def canonical_ip(text: str) -> str | None:
    """The canonical text of an IP address (v4-mapped IPv6 as IPv4), or None if it is none."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return None
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
    return str(address)


def read_ip(text: str, field: str, line: int) -> str:
    """An address that must be one.

    Raises:
        ObjectError: it is not an IP address.
    """
    address = canonical_ip(text)
    if address is None:
        raise ObjectError(field, f"is not an IP address: {text!r}", line)
    return address


def read_network(text: str, field: str, line: int) -> IPNetwork:
    """An address or a CIDR block; bits behind the prefix are cut, as Go's ParseCIDR does.

    Raises:
        ObjectError: it is neither; or it has a zone or a netmask, which Python knows and others
            who read the same object do not.
    """
    problem = f"is neither an IP address nor a CIDR block: {text!r}"
    if not _NETWORK.fullmatch(text):
        raise ObjectError(field, problem, line)
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ObjectError(field, problem, line) from None
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped:
        raise ObjectError(field, f"write the IPv4 form of {text!r}", line)
    return network
