"""Connection tracking of a namespace (linux/netfilter/nfnetlink_conntrack.h)."""

import struct

from ztunnel.linux.netlink import NetlinkSocket
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.nftables import NETLINK_NETFILTER

_CTNETLINK_DELETE = 1 << 8 | 2


def forget_connections(namespace: NetworkNamespace | None = None) -> None:
    """Drop every tracked connection of the namespace.

    The next packet of each counts as the first of a connection, so that rules for new connections
    apply to it. Raises NetlinkError (EINVAL where the kernel has no conntrack netlink).
    """
    with NetlinkSocket(NETLINK_NETFILTER, namespace) as netlink:
        netlink.request(_CTNETLINK_DELETE, 0, struct.pack("!BBH", 0, 0, 0))
