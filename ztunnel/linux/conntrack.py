"""Connection tracking of a namespace (linux/netfilter/nfnetlink_conntrack.h)."""

import struct
from typing import Final

from ztunnel.linux.netlink import NetlinkSocket, attribute
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.nftables import NETLINK_NETFILTER

_CTNETLINK_DELETE: Final = 1 << 8 | 2
_STATUS, _MARK, _MARK_MASK, _STATUS_MASK = 3, 8, 21, 26  # CTA_…
_REDIRECTED: Final = 1 << 5  # IPS_DST_NAT
_WORD: Final = struct.Struct("!I")


def forget_direct_connections(
    namespace: NetworkNamespace | None = None, spared_mark: int = 0
) -> None:
    """Drop every tracked connection of the namespace that is not redirected.

    The next packet of each counts as the first of a connection, so that rules for new connections
    apply to it. One that is redirected already must not be forgotten: should the redirected end
    speak next, nobody would know any more in whose name.

    Args:
        spared_mark: connections with any of these bits in their mark are left alone.

    Raises:
        NetlinkError: EINVAL where the kernel has no conntrack netlink.
    """
    # A kernel that does not know the filter on the status (before 5.16) forgets all.
    filters = attribute(_STATUS, _WORD.pack(0)) + attribute(_STATUS_MASK, _WORD.pack(_REDIRECTED))
    if spared_mark:
        filters += attribute(_MARK, _WORD.pack(0)) + attribute(_MARK_MASK, _WORD.pack(spared_mark))
    with NetlinkSocket(NETLINK_NETFILTER, namespace) as netlink:
        netlink.request(_CTNETLINK_DELETE, 0, struct.pack("!BBH", 0, 0, 0) + filters)
