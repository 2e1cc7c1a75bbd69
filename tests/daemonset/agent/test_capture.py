"""What is captured, in real namespaces: tests play ztunnel, application and outside world."""

import select
import socket
from collections.abc import Iterator

import pytest
from pyroute2 import IPRoute

from daemonset.agent.capture import Capture
from daemonset.agent.capture_rules import (
    ANSWERS,
    PROBE_V4,
    PROBE_V6,
    CaptureOptions,
)
from tests.support.capture import (
    FAMILIES,
    MARK,
    MARKS,
    OPTIONS,
    accept,
    exchange,
    refused,
)
from tests.support.namespaces import Cluster
from ztunnel.linux import sockets

pytestmark = pytest.mark.root


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(2) as made:
        yield made


@FAMILIES
@MARKS
def test_what_the_pod_sends_comes_to_15001_with_its_destination(
    cluster: Cluster, family: int, options: CaptureOptions
) -> None:
    pod, other = cluster.pods
    Capture(pod.namespace, options).apply()
    away = "2001:db8::5" if family == socket.AF_INET6 else "192.0.2.5"
    with (
        sockets.listen_tcp("::", 15001, mark=options.mark, namespace=pod.namespace) as proxy,
        sockets.listen_tcp("::", 80, namespace=other.namespace) as server,
    ):
        for destination in ((other.address(family), 80), (away, 4433)):
            with (
                sockets.start_connect(destination, namespace=pod.namespace) as client,
                accept(proxy) as served,
            ):
                assert sockets.original_destination(served) == destination
                assert sockets.peer_of(served)[0] == pod.address(family)
                exchange(client, served)
        # What ztunnel itself sends goes where it is meant to go.
        upstream = (other.address(family), 80)
        with (
            sockets.start_connect(upstream, mark=options.mark, namespace=pod.namespace) as client,
            accept(server) as served,
        ):
            assert sockets.peer_of(served)[0] == pod.address(family)
            exchange(client, served)


@FAMILIES
def test_without_ztunnel_connections_are_refused(cluster: Cluster, family: int) -> None:
    pod, other = cluster.pods
    Capture(pod.namespace, OPTIONS).apply()
    with (
        sockets.listen_tcp("::", 80, namespace=other.namespace),
        sockets.listen_tcp("::", 80, namespace=pod.namespace),
    ):
        assert refused((other.address(family), 80), pod)
        assert refused((pod.address(family), 80), other)


@FAMILIES
@MARKS
def test_what_comes_in_goes_to_15006_but_for_15008(
    cluster: Cluster, family: int, options: CaptureOptions
) -> None:
    pod, other = cluster.pods
    Capture(pod.namespace, options).apply()
    with (
        sockets.listen_tcp("::", 15006, mark=options.mark, namespace=pod.namespace) as plain,
        sockets.listen_tcp("::", 15008, mark=options.mark, namespace=pod.namespace) as hbone,
        sockets.listen_tcp("::", 80, namespace=pod.namespace) as app,
    ):
        destination = (pod.address(family), 80)
        with (
            sockets.start_connect(destination, namespace=other.namespace) as client,
            accept(plain) as served,
        ):
            assert sockets.original_destination(served) == destination
            assert sockets.peer_of(served)[0] == other.address(family)
            exchange(client, served)
        tunnel = (pod.address(family), 15008)
        with (
            sockets.start_connect(tunnel, namespace=other.namespace) as client,
            accept(hbone) as served,
        ):
            assert sockets.local_of(served) == tunnel
            exchange(client, served)
        assert not select.select([app], [], [], 0)[0]


@FAMILIES
@MARKS
def test_the_application_sees_its_client_and_its_answers_come_back(
    cluster: Cluster, family: int, options: CaptureOptions
) -> None:
    """ztunnel connects in the client's name; the client is on the other side of the host."""
    pod, other = cluster.pods
    Capture(pod.namespace, options).apply()
    with (
        sockets.listen_tcp("::", 80, namespace=pod.namespace) as app,
        sockets.start_connect(
            (pod.address(family), 80),
            mark=options.mark,
            source=other.address(family),
            namespace=pod.namespace,
        ) as upstream,
        accept(app) as served,
    ):
        assert sockets.peer_of(served)[0] == other.address(family)
        exchange(upstream, served)


@FAMILIES
@MARKS
def test_a_connection_in_a_clients_name_may_have_the_port_of_one_of_its_own(
    cluster: Cluster, family: int, options: CaptureOptions
) -> None:
    """A client without a tunnel, and ztunnel in its name: same addresses, ports chosen apart."""
    pod, other = cluster.pods
    Capture(pod.namespace, options).apply()
    with (
        sockets.listen_tcp("::", 15006, mark=options.mark, namespace=pod.namespace) as plain,
        sockets.listen_tcp("::", 80, namespace=pod.namespace) as app,
        sockets.start_connect((pod.address(family), 80), namespace=other.namespace) as client,
        accept(plain) as captured,
        pod.namespace.socket(family, socket.SOCK_STREAM) as upstream,
    ):
        exchange(client, captured)
        sockets.set_mark(upstream, options.mark)
        sockets.set_transparent(upstream)
        upstream.bind(sockets.local_of(client))
        upstream.settimeout(5)
        upstream.connect((pod.address(family), 80))
        with accept(app) as served:
            assert sockets.peer_of(served) == sockets.local_of(client)
            exchange(upstream, served)
            exchange(client, captured)
        assert not select.select([plain], [], [], 0)[0]


@FAMILIES
def test_the_pod_talks_to_itself_undisturbed(cluster: Cluster, family: int) -> None:
    pod = cluster.pods[0]
    Capture(pod.namespace, OPTIONS).apply()
    loopback = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    with sockets.listen_tcp("::", 80, namespace=pod.namespace) as app:
        for address in (loopback, pod.address(family)):
            with (
                sockets.start_connect((address, 80), namespace=pod.namespace) as client,
                accept(app) as served,
            ):
                exchange(client, served)


@FAMILIES
@pytest.mark.parametrize("mark", [ANSWERS.mark, 0x539, MARK & 0xFFF, 1])
def test_no_other_mark_gets_a_pod_out(cluster: Cluster, family: int, mark: int) -> None:
    """A container with NET_RAW may mark its packets as it likes."""
    pod, other = cluster.pods
    Capture(pod.namespace, OPTIONS).apply()
    with sockets.listen_tcp("::", 80, namespace=other.namespace) as server:
        assert refused((other.address(family), 80), pod, mark)
        assert not select.select([server], [], [], 0)[0]


def test_the_mark_cannot_be_overheard(cluster: Cluster) -> None:
    """A raw socket is told the mark of what it receives (SO_RCVMARK = 75), on loopback too."""
    pod = cluster.pods[0]
    Capture(pod.namespace, OPTIONS).apply()
    with (
        pod.namespace.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw,
        sockets.listen_tcp("::", 80, namespace=pod.namespace),
        sockets.start_connect((pod.v4, 80), mark=MARK, namespace=pod.namespace),
    ):
        raw.setsockopt(socket.SOL_SOCKET, 75, 1)
        with sockets.start_connect((pod.v4, 80), mark=MARK, namespace=pod.namespace) as client:
            select.select([], [client], [], 5)
        seen = set()
        while select.select([raw], [], [], 0)[0]:
            _, ancillary, _, _ = raw.recvmsg(2000, 200)
            seen |= {value for _, kind, value in ancillary if kind == sockets.SO_MARK}
        assert seen, "the kernel tells no marks: the test proves nothing"
        assert MARK.to_bytes(4, "little") not in seen


@FAMILIES
def test_probes_of_the_node_pass(cluster: Cluster, family: int) -> None:
    pod = cluster.pods[0]
    probe = PROBE_V6 if family == socket.AF_INET6 else PROBE_V4
    Capture(pod.namespace, OPTIONS).apply()
    with (
        sockets.listen_tcp("::", 80, namespace=pod.namespace) as app,
        # The host answers for the probe's address with a transparent socket's help.
        cluster.host.socket(family, socket.SOCK_STREAM) as client,
    ):
        _own_address(cluster, probe)
        client.bind((probe, 0))
        client.setblocking(False)
        client.connect_ex((pod.address(family), 80))
        with accept(app) as served:
            assert sockets.peer_of(served)[0] == probe
            exchange(client, served)


def _own_address(cluster: Cluster, address: str) -> None:
    with cluster.host.enter(), IPRoute() as ip:
        length = 128 if ":" in address else 32
        ip.addr("add", index=1, address=address, prefixlen=length, flags=2)


@FAMILIES
def test_dns_is_captured_and_the_proxys_own_questions_are_not(
    cluster: Cluster, family: int
) -> None:
    pod, other = cluster.pods
    Capture(pod.namespace, OPTIONS).apply()
    server_address = (other.address(family), 53)
    loopback = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    with (
        sockets.udp(loopback, 15053, mark=MARK, namespace=pod.namespace) as proxy,
        sockets.udp("::" if family == 10 else "0.0.0.0", 53, namespace=other.namespace) as server,
        pod.namespace.socket(family, socket.SOCK_DGRAM) as app,
        pod.namespace.socket(family, socket.SOCK_DGRAM) as upstream,
    ):
        app.bind((pod.address(family), 40000))
        app.sendto(b"question", server_address)
        assert select.select([proxy], [], [], 5)[0]
        question, asker = proxy.recvfrom(100)
        assert question == b"question"
        # Meanwhile ztunnel asks the same server; then both are answered, each by its own.
        sockets.set_mark(upstream, MARK)
        upstream.sendto(b"upstream question", server_address)
        assert select.select([server], [], [], 5)[0]
        question, proxy_address = server.recvfrom(100)
        assert question == b"upstream question"
        server.sendto(b"upstream answer", proxy_address)
        assert select.select([upstream], [], [], 5)[0]
        assert upstream.recvfrom(100)[0] == b"upstream answer"
        proxy.sendto(b"answer", asker)
        assert select.select([app], [], [], 5)[0]
        answer, answered_by = app.recvfrom(100)
        assert answer == b"answer"
        assert answered_by[:2] == server_address
        assert not select.select([server], [], [], 0)[0]
    with (
        sockets.listen_tcp(loopback, 15053, mark=MARK, namespace=pod.namespace) as proxy_tcp,
        sockets.start_connect(server_address, namespace=pod.namespace),
        accept(proxy_tcp) as served,
    ):
        assert sockets.original_destination(served) == server_address


@FAMILIES
def test_a_port_used_for_dns_before_does_not_lead_the_proxy_to_itself(
    cluster: Cluster, family: int
) -> None:
    """Same addresses, same ports, but tracked apart: else it would be redirected like the first."""
    pod, other = cluster.pods
    Capture(pod.namespace, OPTIONS).apply()
    loopback = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    with (
        sockets.udp(loopback, 15053, mark=MARK, namespace=pod.namespace) as proxy,
        sockets.udp("::" if family == 10 else "0.0.0.0", 53, namespace=other.namespace) as server,
        pod.namespace.socket(family, socket.SOCK_DGRAM) as upstream,
    ):
        with pod.namespace.socket(family, socket.SOCK_DGRAM) as app:
            app.bind((pod.address(family), 40000))
            app.sendto(b"question", (other.address(family), 53))
            assert select.select([proxy], [], [], 5)[0]
        sockets.set_mark(upstream, MARK)
        upstream.bind((pod.address(family), 40000))
        upstream.sendto(b"upstream question", (other.address(family), 53))
        assert select.select([server], [], [], 5)[0]
        _, asker = server.recvfrom(100)
        server.sendto(b"upstream answer", asker)
        assert select.select([upstream], [], [], 5)[0]
        assert upstream.recv(100) == b"upstream answer"


def test_dns_capture_can_be_left_out(cluster: Cluster) -> None:
    pod, other = cluster.pods
    Capture(pod.namespace, CaptureOptions(MARK, dns=False)).apply()
    with (
        sockets.udp("0.0.0.0", 53, namespace=other.namespace) as server,
        pod.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as app,
        sockets.listen_tcp("::", 15001, mark=MARK, namespace=pod.namespace) as proxy,
    ):
        app.sendto(b"question", (other.v4, 53))
        assert select.select([server], [], [], 5)[0]
        with (
            sockets.start_connect((other.v4, 53), namespace=pod.namespace),
            accept(proxy) as served,
        ):
            assert sockets.original_destination(served) == (other.v4, 53)


def test_ingress_mode_takes_outbound_only_and_answers_still_come_back(cluster: Cluster) -> None:
    pod, other = cluster.pods
    Capture(pod.namespace, CaptureOptions(MARK, inbound=False)).apply()
    with (
        sockets.listen_tcp("::", 80, namespace=pod.namespace) as app,
        sockets.listen_tcp("::", 15001, mark=MARK, namespace=pod.namespace) as proxy,
    ):
        with (
            sockets.start_connect((pod.v4, 80), namespace=other.namespace) as client,
            accept(app) as served,
        ):
            exchange(client, served)
        with sockets.start_connect((other.v4, 80), namespace=pod.namespace):
            accept(proxy).close()
        # HBONE to such a pod ends in a connection in the client's name like any other.
        with (
            sockets.start_connect(
                (pod.v4, 80), mark=MARK, source=other.v4, namespace=pod.namespace
            ) as upstream,
            accept(app) as served,
        ):
            exchange(upstream, served)


def test_what_a_guest_sends_is_outbound(cluster: Cluster) -> None:
    pod, other = cluster.pods
    Capture(pod.namespace, CaptureOptions(MARK, reroute_interfaces=("eth0",))).apply()
    with (
        sockets.listen_tcp("::", 15001, mark=MARK, namespace=pod.namespace) as proxy,
        sockets.start_connect((pod.v4, 80), namespace=other.namespace),
        accept(proxy) as served,
    ):
        assert sockets.original_destination(served) == (pod.v4, 80)
