import select
import socket
from collections.abc import Iterator

import pytest

from daemonset.agent import host
from daemonset.agent.capture import Capture
from daemonset.agent.capture_rules import PROBE_V4, PROBE_V6, CaptureOptions
from daemonset.agent.host import HostProbes, host_table
from tests.support.namespaces import HOST_V4, HOST_V6, Cluster
from ztunnel.linux import nft_expressions as nft
from ztunnel.linux import sockets
from ztunnel.linux.nft_tables import Chain, Rule, Table, address_bytes, differences
from ztunnel.linux.nftables import Nftables

pytestmark = pytest.mark.root

FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
MARK = 0xA1B2C3D4


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(2) as made:
        yield made


@pytest.fixture
def probes(cluster: Cluster) -> HostProbes:
    made = HostProbes(cluster.host)
    made.start()
    return made


def masquerade() -> Table:
    """What network plugins do: forwarded traffic gets the node's address on the pod network."""
    rule = Rule((nft.masquerade(),))
    return Table("plugin", (Chain("postrouting", (rule,), "postrouting", "nat", 100),))


def peer(listener: socket.socket) -> str:
    assert select.select([listener], [], [], 5)[0], "nobody has connected"
    with listener.accept()[0] as served:
        served.send(b"x")
        return sockets.peer_of(served)[0]


@FAMILIES
@pytest.mark.parametrize("masquerading", [False, True])
def test_a_process_of_the_host_passes_and_what_is_forwarded_is_captured(
    cluster: Cluster, probes: HostProbes, family: int, masquerading: bool
) -> None:
    pod, other = cluster.pods
    address = pod.address(family)
    probe = PROBE_V6 if family == socket.AF_INET6 else PROBE_V4
    from_host = HOST_V6 if family == socket.AF_INET6 else HOST_V4
    if masquerading:
        with Nftables(cluster.host) as nftables:
            nftables.replace(masquerade())
    Capture(pod.namespace, CaptureOptions(MARK)).apply()
    with (
        sockets.listen_tcp("::", 80, namespace=pod.namespace) as app,
        sockets.listen_tcp("::", 15006, mark=MARK, namespace=pod.namespace) as proxy,
    ):
        # Before the pod is enrolled on the host, even the host is captured.
        with sockets.start_connect((address, 80), namespace=cluster.host):
            assert peer(proxy) == from_host
        probes.add("uid-1", [pod.v4, pod.v6])
        with sockets.start_connect((address, 80), namespace=cluster.host) as client:
            assert peer(app) == probe
            assert select.select([client], [], [], 5)[0]
            assert client.recv(1) == b"x"
        with sockets.start_connect((address, 80), namespace=other.namespace):
            assert peer(proxy) == (from_host if masquerading else other.address(family))
        assert not select.select([app], [], [], 0)[0]
        # A pod that is not enrolled sees the host as it is.
        with (
            sockets.listen_tcp("::", 80, namespace=other.namespace) as outsider,
            sockets.start_connect((other.address(family), 80), namespace=cluster.host),
        ):
            assert peer(outsider) == from_host
        probes.remove("uid-1")
        with sockets.start_connect((address, 80), namespace=cluster.host):
            assert peer(proxy) == from_host


def test_a_forwarded_connection_to_a_node_port_is_captured(
    cluster: Cluster, probes: HostProbes
) -> None:
    """It is translated by the host, and comes from the host's address: only its socket tells."""
    pod, other = cluster.pods
    probes.add("uid-1", [pod.v4])
    Capture(pod.namespace, CaptureOptions(MARK)).apply()
    node_port = Rule(
        (
            *nft.protocol(socket.IPPROTO_TCP),
            *nft.destination(HOST_V4),
            *nft.destination_port(30080),
            *nft.destination_nat(pod.v4, 80),
        )
    )
    with Nftables(cluster.host) as nftables:
        chain = Chain("prerouting", (node_port,), "prerouting", "nat", -100)
        nftables.replace(Table("proxy", (chain,)), masquerade())
    with (
        sockets.listen_tcp("::", 15006, mark=MARK, namespace=pod.namespace) as proxy,
        sockets.start_connect((HOST_V4, 30080), namespace=other.namespace),
    ):
        assert peer(proxy) == HOST_V4


@FAMILIES
def test_nobody_else_sends_under_the_probes_address(
    cluster: Cluster, probes: HostProbes, family: int
) -> None:
    pod, other = cluster.pods
    probe = PROBE_V6 if family == socket.AF_INET6 else PROBE_V4
    with (
        sockets.udp("::", 7, namespace=pod.namespace) as listener,
        other.namespace.socket(family, socket.SOCK_DGRAM) as honest,
        other.namespace.socket(family, socket.SOCK_DGRAM) as sender,
    ):
        # The way is known then: no packet waits for a neighbour until the rules are gone.
        honest.sendto(b"honest", (pod.address(family), 7))
        assert select.select([listener], [], [], 5)[0]
        assert listener.recv(100) == b"honest"
        sockets.set_transparent(sender)
        sender.bind((probe, 7))
        sender.sendto(b"disguised", (pod.address(family), 7))
        probes.stop()
        sender.sendto(b"without our rules", (pod.address(family), 7))
        assert select.select([listener], [], [], 5)[0]
        assert listener.recv(100) == b"without our rules"


def held(cluster: Cluster) -> dict[bytes, str]:
    with Nftables(cluster.host) as nftables:
        return {
            element.key: element.comment
            for name in (host.SET_V4, host.SET_V6)
            for element in nftables.elements(host.TABLE, name)
        }


def test_addresses_belong_to_uids(cluster: Cluster, probes: HostProbes) -> None:
    probes.add("a", ["10.1.0.1", "fd01::1"])
    probes.add("a", ["10.1.0.1", "fd01::1"])
    assert held(cluster) == {address_bytes("10.1.0.1"): "a", address_bytes("fd01::1"): "a"}
    # Its address changes, and the old one is given to the next pod before this one is removed.
    probes.add("a", ["10.1.0.2"])
    probes.add("b", ["10.1.0.1", "10.1.0.2"])
    probes.remove("a")
    assert held(cluster) == {address_bytes("10.1.0.1"): "b", address_bytes("10.1.0.2"): "b"}
    assert probes.addresses == {"10.1.0.1": "b", "10.1.0.2": "b"}
    probes.remove("never was")


def test_probes_go_on_while_the_next_agent_looks_at_the_pods(
    cluster: Cluster, probes: HostProbes
) -> None:
    probes.add("a", ["10.1.0.1", "fd01::1"])
    probes.add("b", ["10.1.0.2"])
    probes.add("c", ["10.1.0.3"])
    after = HostProbes(cluster.host)
    after.start()
    assert len(held(cluster)) == 4
    after.add("b", ["10.1.0.3"])  # it was c's until a moment ago
    after.keep_only({"a", "b"})
    assert held(cluster) == {
        address_bytes("10.1.0.1"): "a",
        address_bytes("fd01::1"): "a",
        address_bytes("10.1.0.3"): "b",
    }
    assert after.repair() == []


def test_what_somebody_changed_is_repaired(cluster: Cluster, probes: HostProbes) -> None:
    probes.add("a", ["10.1.0.1"])
    assert probes.repair() == []
    with Nftables(cluster.host) as nftables:
        [element] = nftables.elements(host.TABLE, host.SET_V4)
        nftables.replace_elements(host.TABLE, host.SET_V4, [element], [])
        assert probes.repair() == ["1 probed addresses are not as they should be"]
        nftables.delete(host.TABLE)
        assert probes.repair() == [f"table {host.TABLE} is gone"]
        assert held(cluster) == {address_bytes("10.1.0.1"): "a"}
        # A change while the table is gone puts all of it right.
        nftables.delete(host.TABLE)
        probes.add("b", ["10.1.0.2"])
        assert set(held(cluster).values()) == {"a", "b"}
        probes.stop()
        assert nftables.table_names() == []


def test_the_table_reads_back(cluster: Cluster, probes: HostProbes) -> None:
    with Nftables(cluster.host) as nftables:
        assert differences(host_table(), nftables.read(host.TABLE)) == []
