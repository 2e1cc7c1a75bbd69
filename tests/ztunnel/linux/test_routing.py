import errno
import socket
from collections.abc import Iterator

import pytest

from tests.support.namespaces import Cluster
from ztunnel.linux import netns
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.routing import MarkedIsLocal, Routing

pytestmark = pytest.mark.root

FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])


@pytest.fixture
def namespace() -> Iterator[NetworkNamespace]:
    with netns.create() as made:
        with made.enter():
            netns.bring_up("lo")
        yield made


@FAMILIES
@pytest.mark.parametrize("wanted", [MarkedIsLocal(), MarkedIsLocal(0x7, 0xFF, 1000, 5)])
def test_adding_and_removing_are_idempotent(
    namespace: NetworkNamespace, family: int, wanted: MarkedIsLocal
) -> None:
    with Routing(namespace) as routing:
        assert len(routing.missing(wanted, family)) == 2
        routing.add(wanted, family)
        routing.add(wanted, family)
        assert routing.missing(wanted, family) == []
        routing.remove(wanted, family)
        assert len(routing.missing(wanted, family)) == 2
        routing.remove(wanted, family)


@FAMILIES
def test_what_is_missing_is_named(namespace: NetworkNamespace, family: int) -> None:
    version = "IPv4" if family == socket.AF_INET else "IPv6"
    with Routing(namespace) as routing:
        assert routing.missing(MarkedIsLocal(), family) == [
            f"the {version} rule for mark 0x111 is gone",
            f"the {version} local route of table 100 is gone",
        ]


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_stop_lets_nothing_out(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with Cluster(1) as cluster:
        pod = cluster.pods[0]

        def connect(to: str) -> int:
            with pod.namespace.socket(family, socket.SOCK_DGRAM) as sock:
                return sock.connect_ex((to, 80))

        with Routing(pod.namespace) as routing:
            assert connect(address) == 0
            routing.stop(family)
            routing.stop(family)
            assert connect(address) == errno.EACCES
            assert connect(pod.address(family)) == 0
            routing.resume(family)
            assert connect(address) == 0
            routing.resume(family)


def test_addresses_are_those_of_the_namespace() -> None:
    with Cluster(1) as cluster, Routing(cluster.pods[0].namespace) as routing:
        found = routing.addresses()
        assert found >= {"127.0.0.1", "::1", cluster.pods[0].v4, cluster.pods[0].v6}
        assert all(
            address.startswith("fe80:")
            for address in found - {"127.0.0.1", "::1", cluster.pods[0].v4, cluster.pods[0].v6}
        )
