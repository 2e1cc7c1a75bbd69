"""A pair of virtual links between two namespaces (linux/if_link.h, linux/veth.h)."""

import ipaddress
import socket
import struct

from ztunnel.linux import netns
from ztunnel.linux.netlink import NLM_F_CREATE, NLM_F_EXCL, NetlinkSocket, attribute, text
from ztunnel.linux.netns import NetworkNamespace

_NETLINK_ROUTE = 0
_NEW_LINK, _NEW_ADDRESS = 16, 20
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg
_NAME = "probe0"


def join_namespaces(
    near: NetworkNamespace, far: NetworkNamespace, addresses: tuple[str, str]
) -> None:
    """Puts a link between two namespaces that have none, and an address on each of its ends.

    Args:
        addresses: with prefix lengths ("192.0.2.1/24").

    Raises:
        OSError: this kernel, or this process's rights, do not allow it.
    """
    link = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    peer = link + text(3, _NAME) + attribute(28, struct.pack("=I", far.fd))
    kind = attribute(18, text(1, "veth") + attribute(2, attribute(1, peer)))
    with NetlinkSocket(_NETLINK_ROUTE, near) as netlink:
        netlink.request(_NEW_LINK, NLM_F_CREATE | NLM_F_EXCL, link + text(3, _NAME) + kind)
    for namespace, address in zip((near, far), addresses, strict=True):
        interface = ipaddress.ip_interface(address)
        with namespace.enter():
            index = socket.if_nametoindex(_NAME)
            netns.bring_up("lo")
            netns.bring_up(_NAME)
        family = socket.AF_INET6 if interface.version == 6 else socket.AF_INET
        body = _ADDRESS.pack(family, interface.network.prefixlen, 0, 0, index)
        body += attribute(2, interface.packed) + attribute(1, interface.packed)
        with NetlinkSocket(_NETLINK_ROUTE, namespace) as netlink:
            netlink.request(_NEW_ADDRESS, NLM_F_CREATE | NLM_F_EXCL, body)
