import select
import socket
from collections.abc import Iterator

import pytest

from tests.support.namespaces import Cluster
from ztunnel.linux import sockets
from ztunnel.linux.sock_diag import count_marked, end_connections

pytestmark = pytest.mark.root


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(2) as made:
        yield made


@pytest.mark.parametrize("version", [4, 6])
def test_both_sides_of_a_connection_are_told_at_once(cluster: Cluster, version: int) -> None:
    pod, other = cluster.pods
    address = other.v4 if version == 4 else other.v6
    with (
        sockets.listen_tcp("::", 80, namespace=other.namespace) as server,
        sockets.start_connect((address, 80), namespace=pod.namespace) as client,
    ):
        assert select.select([server], [], [], 5)[0]
        served, _ = server.accept()
        with served:
            assert select.select([], [client], [], 5)[1]
            # The server's own end, which is an IPv6 socket for both, and a port that is spared.
            assert end_connections(other.namespace, (80,)) == 0
            assert end_connections(other.namespace) == 1
            assert end_connections(other.namespace) == 0
            for end in (client, served):
                assert select.select([end], [], [], 5)[0]
                assert end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
        # Who listens goes on.
        with sockets.start_connect((address, 80), namespace=pod.namespace):
            assert select.select([server], [], [], 5)[0]


@pytest.mark.parametrize("version", [4, 6])
def test_connections_are_counted_by_their_mark(cluster: Cluster, version: int) -> None:
    pod, other = cluster.pods
    address = other.v4 if version == 4 else other.v6
    with (
        sockets.listen_tcp("::", 80, mark=0x539, namespace=other.namespace) as server,
        sockets.start_connect((address, 80), mark=0x1539, namespace=pod.namespace) as client,
    ):
        assert select.select([server], [], [], 5)[0]
        assert count_marked(other.namespace, 0x539, 0xFFFFFFFF) == 1, "also before it is accepted"
        served, _ = server.accept()
        with served:
            assert count_marked(pod.namespace, 0x539, 0xFFF) == 1
            assert count_marked(pod.namespace, 0x539, 0xFFFFFFFF) == 0
            assert count_marked(pod.namespace, 0x539, 0xFFF, (80,)) == 0
            assert count_marked(other.namespace, 0x539, 0xFFF, (80,)) == 0
            client.close()
            assert select.select([served], [], [], 5)[0]
        assert count_marked(other.namespace, 0x539, 0xFFFFFFFF) == 0
