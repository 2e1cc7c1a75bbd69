"""Build the links, addresses and routes of a plan, as a cluster with kind's CNI would have them.

One bridge joins the nodes. Each pod hangs on its node by a veth pair of its own with host routes
only: the pod's address has no neighbours, its gateway is the first address of the node's range, and
the node routes each pod's address to its veth and other nodes' ranges to those nodes.
"""

import ipaddress
import socket
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from daemonset.local.namespaces import Keeper, Namespace, NamespaceError
from daemonset.local.topology import Address, Network, NodePlan, PodPlan, Topology
from ztunnel.linux.netns import set_sysctl

T = TypeVar("T")

BRIDGE = "ambient0"
UNDERLAY = "ambient-underlay"

_NO_DAD = 0x02  # IFA_F_NODAD: the address is ours, and must work at once
_ON_LINK = 0x04  # RTNH_F_ONLINK: the gateway needs no route of its own
_UNREACHABLE = "unreachable"

_EVERYWHERE = {
    # What the machine happens to prefer would leak into measurements: new namespaces inherit it.
    "net.ipv4.tcp_congestion_control": "reno",
    "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.default.rp_filter": "0",
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv6.conf.default.accept_dad": "0",
    "net.ipv6.conf.default.accept_ra": "0",
}
_ON_NODES = {"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"}


_LINK_GATEWAYS: Mapping[int, Address] = {
    4: ipaddress.IPv4Address("169.254.1.1"),
    6: ipaddress.IPv6Address("fe80::1"),
}
"""For a pod whose address is of a family in which its node has no range."""


class MeshNetwork:
    """The namespaces of one mesh and the links between them. Closing the keeper removes it all."""

    def __init__(self, keeper: Keeper, topology: Topology) -> None:
        self.keeper = keeper
        self.topology = topology
        self.nodes: dict[str, Namespace] = {}
        self.pods: dict[str, Namespace] = {}
        self.underlay: Namespace | None = None

    def build(self) -> None:
        """Make everything in the topology. Raises NamespaceError when the kernel refuses."""
        self.build_nodes()
        for pod in self.topology.pods.values():
            self.add_pod(pod)

    def build_nodes(self) -> None:
        """Make the bridge and the nodes. Raises NamespaceError when the kernel refuses."""
        self.underlay = self._make(UNDERLAY, "ambient", {}, forwards=True)
        self._call(self.underlay, self._build_bridge)
        for node in self.topology.nodes.values():
            self.nodes[node.name] = self._make(node.netns, node.name, {}, forwards=True)
            self._attach_node(node)
        for node in self.topology.nodes.values():
            self._call(self.nodes[node.name], partial(self._route_to_others, node))
        self._call(self.underlay, partial(self._route_to_others, None))

    def add_pod(self, pod: PodPlan, files: Mapping[str, Path] | None = None) -> Namespace:
        """Make a pod's namespaces and attach them to its node. Raises NamespaceError."""
        node = self.nodes[pod.node]
        if pod.host_network:
            self.pods[pod.key] = node
            return node
        made = self._make(pod.netns, pod.name, files or {}, forwards=False)
        self.pods[pod.key] = made
        gateways: dict[int, Address] = {
            g.version: g for g in self.topology.nodes[pod.node].gateways()
        }
        for address in pod.addresses:
            gateways.setdefault(address.version, _LINK_GATEWAYS[address.version])
        self._call(node, lambda: _attach_pod(pod, made.network.fd, gateways))
        self._call(made, lambda: _configure_pod(pod, gateways))
        return made

    def remove_pod(self, pod: PodPlan) -> None:
        """Cut the pod's veth and forget its namespaces; its processes are the caller's to end."""
        namespace = self.pods.pop(pod.key)
        if pod.host_network:
            return

        def cut() -> None:
            with IPRoute() as route:
                for index in route.link_lookup(ifname=pod.link):
                    route.link("del", index=index)

        self._call(self.nodes[pod.node], cut)
        self.keeper.drop(namespace)

    def _make(
        self, name: str, hostname: str, files: Mapping[str, Path], *, forwards: bool
    ) -> Namespace:
        # What forwards is a node (or the bridge between them), where agents look namespaces up.
        made = self.keeper.make(name, hostname=hostname, files=files, shared_mounts=forwards)
        self._call(made, lambda: _prepare(forwards=forwards))
        return made

    def _call(self, namespace: Namespace, function: Callable[[], T]) -> T:
        try:
            return self.keeper.call(namespace, function)
        except (OSError, NetlinkError) as error:
            raise NamespaceError(f"{namespace.name}: {error}") from error

    def _build_bridge(self) -> None:
        with IPRoute() as route:
            route.link("add", ifname=BRIDGE, kind="bridge")
            bridge = _index(route, BRIDGE)
            route.link("set", index=bridge, state="up")
            for address in self.topology.underlay:
                _add_address(route, bridge, address)
            for family in (socket.AF_INET, socket.AF_INET6):
                # There is no way out of the mesh: say so at once rather than after a time-out.
                anywhere = "0.0.0.0/0" if family == socket.AF_INET else "::/0"
                route.route("add", family=family, dst=anywhere, type=_UNREACHABLE)

    def _attach_node(self, node: NodePlan) -> None:
        underlay, namespace = self.underlay, self.nodes[node.name]
        assert underlay is not None

        def plug() -> None:
            with IPRoute() as route:
                peer = {"ifname": "eth0", "net_ns_fd": namespace.network.fd}
                route.link("add", ifname=node.link, kind="veth", peer=peer)
                index = _index(route, node.link)
                route.link("set", index=index, master=_index(route, BRIDGE))
                route.link("set", index=index, state="up")

        def configure() -> None:
            with IPRoute() as route:
                index = _index(route, "eth0")
                for address in node.addresses:
                    _add_address(route, index, address)
                route.link("set", index=index, state="up")

        self._call(underlay, plug)
        self._call(namespace, configure)

    def _route_to_others(self, own: NodePlan | None) -> None:
        """Routes to the other nodes and their pods; *own* is None for the underlay itself."""
        with IPRoute() as route:
            index = _index(route, BRIDGE if own is None else "eth0")
            for other in self.topology.nodes.values():
                if other is own:
                    continue
                for address in other.addresses:
                    _add_route(route, address, index)
                for pod_range in other.pod_ranges:
                    via = next(a for a in other.addresses if a.version == pod_range.version)
                    _add_route(route, pod_range, index, via)
            if own is not None:
                for address in self.topology.underlay:
                    if any(mine.version == address.version for mine in own.addresses):
                        _add_route(route, address, index)
                        everything = "0.0.0.0/0" if address.version == 4 else "::/0"
                        _add_route(route, ipaddress.ip_network(everything), index, address)


def _prepare(*, forwards: bool) -> None:
    for name, value in {**_EVERYWHERE, **(_ON_NODES if forwards else {})}.items():
        try:
            set_sysctl(name, value)
        except FileNotFoundError:  # a kernel without IPv6
            if ".ipv6." not in name:
                raise
    with IPRoute() as route:
        route.link("set", index=1, state="up")


def _attach_pod(pod: PodPlan, descriptor: int, gateways: Mapping[int, Address]) -> None:
    with IPRoute() as route:
        peer = {"ifname": "eth0", "net_ns_fd": descriptor}
        route.link("add", ifname=pod.link, kind="veth", peer=peer)
        index = _index(route, pod.link)
        route.link("set", index=index, state="up")
        for version in sorted({address.version for address in pod.addresses}):
            _add_address(route, index, gateways[version])
        for address in pod.addresses:
            _add_route(route, address, index)


def _configure_pod(pod: PodPlan, gateways: Mapping[int, Address]) -> None:
    with IPRoute() as route:
        index = _index(route, "eth0")
        for address in pod.addresses:
            _add_address(route, index, address)
        route.link("set", index=index, state="up")
        for version in sorted({address.version for address in pod.addresses}):
            everything = ipaddress.ip_network("0.0.0.0/0" if version == 4 else "::/0")
            _add_route(route, gateways[version], index)
            _add_route(route, everything, index, gateways[version])


def _index(route: IPRoute, name: str) -> int:
    found = route.link_lookup(ifname=name)
    if not found:
        raise OSError(f"there is no interface {name}")
    return int(found[0])


def _add_address(route: IPRoute, index: int, address: Address) -> None:
    flags = {"flags": _NO_DAD} if address.version == 6 else {}
    route.addr("add", index=index, address=str(address), prefixlen=address.max_prefixlen, **flags)


def _add_route(
    route: IPRoute, to: Address | Network, index: int, via: Address | None = None
) -> None:
    family = socket.AF_INET if to.version == 4 else socket.AF_INET6
    destination = str(to) if isinstance(to, Network) else f"{to}/{to.max_prefixlen}"
    if via is None:
        route.route("add", family=family, dst=destination, oif=index, scope=_link_scope(family))
    else:
        gateway = {"gateway": str(via), "flags": _ON_LINK}
        route.route("add", family=family, dst=destination, oif=index, **gateway)


def _link_scope(family: int) -> int:
    return 253 if family == socket.AF_INET else 0  # RT_SCOPE_LINK; IPv6 has no scopes of routes
