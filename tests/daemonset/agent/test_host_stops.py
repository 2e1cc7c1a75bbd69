"""The node's stops, with packets: routed and switched, translated or not."""

import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from daemonset.agent import host_stops
from daemonset.agent.host_stops import TABLE, HostStops, stop_tables
from tests.support.namespaces import HOST_V4, HOST_V6, Cluster
from ztunnel.linux import netns, sockets
from ztunnel.linux import nft_expressions as nft
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.nft_tables import BRIDGE, Chain, Rule, Table, differences
from ztunnel.linux.nftables import Nftables

pytestmark = pytest.mark.root
FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
PORT = 7
_NODAD = 2  # IFA_F_NODAD
_BRIDGE_FILTERS = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(3) as made:
        yield made


def passes(
    sender: NetworkNamespace,
    to: tuple[str, int],
    receiver: NetworkNamespace,
    *,
    within: float = 5.0,
) -> str:
    """Who has sent what arrives ("" when nothing does); neighbours may have to be found first."""
    family = socket.AF_INET6 if ":" in to[0] else socket.AF_INET
    with (
        sockets.udp("::", PORT, namespace=receiver) as listener,
        sender.socket(family, socket.SOCK_DGRAM) as client,
    ):
        end = time.monotonic() + within
        while time.monotonic() < end:
            try:
                client.sendto(b"x", to)
            except PermissionError:
                return ""  # the rule is on the sender's own way out
            if select.select([listener], [], [], min(within, 0.1))[0]:
                source: tuple[str, int] = listener.recvfrom(10)[1]
                return source[0].removeprefix("::ffff:")
    return ""


def is_stopped(sender: NetworkNamespace, to: tuple[str, int], receiver: NetworkNamespace) -> bool:
    return passes(sender, to, receiver, within=0.15) == ""


@FAMILIES
def test_nothing_from_the_pod_or_to_it_passes_and_everybody_else_does(
    cluster: Cluster, family: int
) -> None:
    pod, other, third = cluster.pods
    host = HOST_V6 if family == socket.AF_INET6 else HOST_V4
    stops = HostStops(cluster.host)
    ways = (
        (pod.namespace, (other.address(family), PORT), other.namespace),
        (other.namespace, (pod.address(family), PORT), pod.namespace),
        (pod.namespace, (host, PORT), cluster.host),
        (cluster.host, (pod.address(family), PORT), pod.namespace),
    )
    for way in ways:
        assert passes(*way)
    assert stops.write({pod.v4: "a", pod.v6: "a"}) == ""
    for way in ways:
        assert is_stopped(*way)
    assert passes(third.namespace, (other.address(family), PORT), other.namespace)
    assert passes(cluster.host, (other.address(family), PORT), other.namespace)
    stops.write({})
    for way in ways:
        assert passes(*way)
    assert not stops.is_present()


def test_translated_packets_are_recognised(cluster: Cluster) -> None:
    """A Service in front of the pod, and the node's own address behind what the pod sends."""
    pod, other, _ = cluster.pods
    service = Rule(
        (
            *nft.protocol(socket.IPPROTO_UDP),
            *nft.destination("10.96.0.1"),
            *nft.destination_nat(pod.v4, PORT),
        )
    )
    masquerade = Rule((*nft.source(pod.v4), nft.masquerade()))
    chains = (
        Chain("services", (service,), "prerouting", "nat", -100),
        Chain("sources", (masquerade,), "postrouting", "nat", 100),
    )
    with Nftables(cluster.host) as nftables:
        nftables.replace(Table("proxy", chains))
    stops = HostStops(cluster.host)
    to_service = (other.namespace, ("10.96.0.1", PORT), pod.namespace)
    from_pod = (pod.namespace, (other.v4, PORT), other.namespace)
    assert passes(*to_service) == other.v4
    assert passes(*from_pod) == HOST_V4
    stops.write({pod.v4: "a"})
    assert is_stopped(*to_service)
    assert is_stopped(*from_pod)


def test_a_connection_from_before_ends(cluster: Cluster) -> None:
    pod, other, _ = cluster.pods
    with (
        sockets.listen_tcp("::", 80, namespace=other.namespace) as listener,
        sockets.start_connect((other.v4, 80), namespace=pod.namespace) as client,
    ):
        assert select.select([listener], [], [], 5)[0]
        with listener.accept()[0] as served:
            assert select.select([], [client], [], 5)[1]
            HostStops(cluster.host).write({pod.v4: "a"})
            client.send(b"in the clear")
            served.send(b"in the clear")
            assert not select.select([client, served], [], [], 0.3)[0]


class Bridged:
    """Pods on one bridge of a node, whose frames the node's own filters do not see."""

    def __init__(self) -> None:
        self.host = netns.create()
        self.pods = [netns.create() for _ in range(3)]
        with self.host.enter(), IPRoute() as ip:
            if _BRIDGE_FILTERS.exists():
                for name in ("iptables", "ip6tables"):
                    netns.set_sysctl(f"net.bridge.bridge-nf-call-{name}", 0)
            ip.link("add", ifname="br0", kind="bridge")
            bridge = ip.link_lookup(ifname="br0")[0]
            ip.link("set", index=bridge, state="up")
            for number, pod in enumerate(self.pods):
                peer = {"ifname": "eth0", "net_ns_fd": pod.fd}
                ip.link("add", ifname=f"pod{number}", kind="veth", peer=peer)
                port = ip.link_lookup(ifname=f"pod{number}")[0]
                ip.link("set", index=port, master=bridge, state="up")
                with pod.enter(), IPRoute() as inside:
                    index = inside.link_lookup(ifname="eth0")[0]
                    inside.link("set", index=index, state="up")
                    v4, v6 = self.address(number, socket.AF_INET), self.address(number, 10)
                    inside.addr("add", index=index, address=v4, prefixlen=24)
                    inside.addr("add", index=index, address=v6, prefixlen=64, flags=_NODAD)

    @staticmethod
    def address(number: int, family: int) -> str:
        return f"fd02::{number + 10:x}" if family == socket.AF_INET6 else f"10.2.0.{number + 10}"

    def close(self) -> None:
        for namespace in (*self.pods, self.host):
            namespace.close()


@FAMILIES
def test_what_a_bridge_switches_itself_is_stopped(family: int) -> None:
    bridged = Bridged()
    try:
        pod, other, third = bridged.pods
        there, back = ((bridged.address(number, family), PORT) for number in (1, 0))
        stops = HostStops(bridged.host)
        assert passes(pod, there, other)
        assert passes(other, back, pod)
        assert stops.write({back[0]: "a"}) == ""
        assert is_stopped(pod, there, other)
        assert is_stopped(other, back, pod)
        assert passes(third, there, other)
        with Nftables(bridged.host) as nftables:
            # It is the bridge's own table that does it.
            nftables.delete(TABLE, family=BRIDGE)
        assert passes(pod, there, other)
        stops.write({back[0]: "a"})
        assert is_stopped(pod, there, other)
        stops.remove()
        assert passes(pod, there, other)
    finally:
        bridged.close()


def test_the_tables_read_back_and_what_somebody_changed_is_found(cluster: Cluster) -> None:
    stops = HostStops(cluster.host)
    meant = {"10.1.0.9": "a", "fd01::9": "a", "10.1.0.8": "b"}
    assert stops.wrong({}) == []
    assert stops.uids() == set()
    stops.write(meant)
    assert stops.is_present()
    assert stops.wrong(meant) == []
    assert stops.uids() == {"a", "b"}
    assert HostStops(cluster.host).uids() == {"a", "b"}  # the next agent
    assert (
        stops.wrong({"10.1.0.9": "a"})
        == [f"addresses of table {TABLE} are not as they should be"] * 2
    )
    assert stops.wrong({}) == [f"table {TABLE} is not to be there"]
    with Nftables(cluster.host) as nftables:
        for table in stop_tables(meant):
            found = nftables.read(table.name, table.family)
            assert differences(table, found) == []
            assert found is not None
            assert {each.timeout for entry in found.sets for each in entry.elements} == {1800_000}
        nftables.delete(TABLE)
        assert stops.wrong(meant) == [f"table {TABLE} is gone"]
        # Nobody else's tables go with ours.
        nftables.replace(Table("theirs", ()))
        stops.write({})
        assert nftables.table_names() == ["theirs"]
        assert nftables.table_names(BRIDGE) == []


def test_without_an_agent_a_stop_lapses(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gets the address next is not to pay for it for ever."""
    pod, other, _ = cluster.pods
    monkeypatch.setattr(host_stops, "LEASE", 3.0)
    HostStops(cluster.host).write({pod.v4: "a"})
    assert is_stopped(pod.namespace, (other.v4, PORT), other.namespace)
    assert passes(pod.namespace, (other.v4, PORT), other.namespace, within=10)


def test_the_nodes_own_addresses_are_known(cluster: Cluster) -> None:
    """Also those of the namespace that the agent runs in."""
    agent = netns.create()
    try:
        with agent.enter(), IPRoute() as ip:
            netns.bring_up("lo")
            ip.addr("add", index=1, address="10.1.0.77", prefixlen=32)
        with agent.enter():
            found = HostStops(cluster.host).own_addresses()
        assert {HOST_V4, HOST_V6, "10.1.0.77"} <= found
    finally:
        agent.close()
