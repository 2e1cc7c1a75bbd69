"""The network of a cluster: nodes on a bridge, in namespaces without names; dual stack.

Addresses are like kind's: the bridge 10.123.0.1, node N 10.123.0.(10+N), its pods 10.244.N.0/24;
fd00:123::1, fd00:123::(10+N) and fd00:244:N::/64; Services in 10.96.0.0/16 and fd00:96::/112.

IPv4 comes first on nodes of odd number, IPv6 on the others: a pod is probed at its first address.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from pyroute2 import IPRoute

from ztunnel.linux import netns
from ztunnel.linux.netns import NetworkNamespace

HOST_V4, HOST_V6 = "10.123.0.1", "fd00:123::1"
API_PORT = 6443
SERVICES_V4, SERVICES_V6 = "10.96.0.0/16", "fd00:96::/112"
PODS_V4, PODS_V6 = "10.244.0.0/16", "fd00:244::/32"
BRIDGE = "nodes"
_NODAD = 2  # IFA_F_NODAD: usable at once, and not when a work queue has looked for duplicates


@dataclass(frozen=True, slots=True)
class NodeAddresses:
    """Those of one node, by its number from 1."""

    number: int

    @property
    def v4(self) -> str:
        return f"10.123.0.{10 + self.number}"

    @property
    def v6(self) -> str:
        return f"fd00:123::{10 + self.number}"

    @property
    def both(self) -> tuple[str, str]:
        """With the one first whose family its pods have first."""
        return (self.v4, self.v6) if self.number % 2 else (self.v6, self.v4)

    @property
    def pods_v4(self) -> str:
        return f"10.244.{self.number}.0/24"

    @property
    def pods_v6(self) -> str:
        return f"fd00:244:{self.number}::/64"

    @property
    def link(self) -> str:
        """At the bridge."""
        return f"node{self.number}"


def _prepare() -> None:
    netns.bring_up("lo")
    netns.set_sysctl("net.ipv4.ip_forward", 1)
    netns.set_sysctl("net.ipv6.conf.all.forwarding", 1)
    netns.set_sysctl("net.ipv6.conf.default.accept_dad", 0)


def _give(ip: IPRoute, index: int, v4: str, v6: str) -> None:
    ip.link("set", index=index, state="up")
    ip.addr("add", index=index, address=v4, prefixlen=24)
    ip.addr("add", index=index, address=v6, prefixlen=64, flags=_NODAD)


def _route_to(ip: IPRoute, node: NodeAddresses) -> None:
    ip.route("add", dst=node.pods_v4, gateway=node.v4)
    ip.route("add", dst=node.pods_v6, gateway=node.v6, family=socket.AF_INET6)


def make_host(nodes: list[NodeAddresses]) -> NetworkNamespace:
    """Where the control plane runs, with the bridge. Raises OSError, NetlinkError."""
    made = netns.create()
    with made.enter(), IPRoute() as ip:
        _prepare()
        ip.link("add", ifname=BRIDGE, kind="bridge")
        _give(ip, ip.link_lookup(ifname=BRIDGE)[0], HOST_V4, HOST_V6)
        for node in nodes:
            _route_to(ip, node)
        # ClusterIPs from here (webhooks): the kube-proxy of the first node translates them.
        ip.route("add", dst=SERVICES_V4, gateway=nodes[0].v4)
    return made


def attach_node(
    host: NetworkNamespace, node: NodeAddresses, nodes: list[NodeAddresses]
) -> NetworkNamespace:
    """A node's namespace, as it is when the node is switched on. Raises OSError, NetlinkError."""
    made = netns.create()
    with host.enter(), IPRoute() as ip:
        peer = {"ifname": "eth0", "net_ns_fd": made.fd}
        ip.link("add", ifname=node.link, kind="veth", peer=peer)
        bridge = ip.link_lookup(ifname=BRIDGE)[0]
        ip.link("set", index=ip.link_lookup(ifname=node.link)[0], master=bridge, state="up")
    with made.enter(), IPRoute() as ip:
        _prepare()
        _give(ip, ip.link_lookup(ifname="eth0")[0], node.v4, node.v6)
        ip.route("add", dst="default", gateway=HOST_V4)
        ip.route("add", dst="default", gateway=HOST_V6, family=socket.AF_INET6)
        for other in nodes:
            if other != node:
                _route_to(ip, other)
    return made


def detach_node(host: NetworkNamespace, node: NodeAddresses) -> None:
    """Pull the plug: the link goes now, and not when the last process of the node has ended."""
    with host.enter(), IPRoute() as ip:
        for index in ip.link_lookup(ifname=node.link):
            ip.link("del", index=index)
