"""Capture in real namespaces: the test plays ztunnel, an application and the outside world."""

import errno
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from pyroute2 import IPRoute

from daemonset.agent.capture import MIGRATE, Capture, CaptureError
from daemonset.agent.capture_rules import (
    ANSWERS,
    PROBE_V4,
    PROBE_V6,
    TABLE,
    CaptureOptions,
    capture_table,
)
from tests.support.namespaces import Cluster, Pod
from tests.support.sockets import connect_result
from ztunnel.linux import netns, sockets
from ztunnel.linux import nft_expressions as nft
from ztunnel.linux.conntrack import forget_direct_connections
from ztunnel.linux.netlink import NetlinkError
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.nft_tables import Chain, Rule, Table
from ztunnel.linux.nftables import Nftables
from ztunnel.linux.routing import Routing

pytestmark = pytest.mark.root

MARK = 0xA1B2C3D4
OPTIONS = CaptureOptions(MARK)
FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
MARKS = pytest.mark.parametrize("options", [OPTIONS, CaptureOptions.istio()])


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(2) as made:
        yield made


def accept(listener: socket.socket, timeout: float = 5) -> socket.socket:
    assert select.select([listener], [], [], timeout)[0], "nobody has connected"
    return listener.accept()[0]


def refused(destination: sockets.SocketAddress, pod: Pod, mark: int | None = None) -> bool:
    """Whether a connection is refused; it must be one or the other, not nothing."""
    try:
        client = sockets.start_connect(destination, mark=mark, namespace=pod.namespace)
    except OSError as error:
        if error.errno == errno.ENETUNREACH:
            return True
        raise
    with client:
        assert select.select([], [client], [], 5)[1], "neither accepted nor refused"
        try:
            connect_result(client)
        except ConnectionRefusedError:
            return True
    return False


def exchange(one: socket.socket, other: socket.socket) -> None:
    for sender, receiver in ((one, other), (other, one)):
        sender.send(b"hello")
        assert select.select([receiver], [], [], 5)[0], "nothing arrives"
        assert receiver.recv(10) == b"hello"


def ends_unheard(client: socket.socket, served: socket.socket) -> None:
    """A connection in the clear: what is sent now does not arrive, and ends it."""
    with pytest.raises(ConnectionError):
        client.send(b"in the clear")  # a late acknowledgement may have ended it already
        assert select.select([client], [], [], 5)[0]
        client.recv(10)
    assert not select.select([served], [], [], 0.1)[0]


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


def test_connections_from_before_do_not_go_on_in_the_clear(cluster: Cluster) -> None:
    pod, other = cluster.pods
    with (
        sockets.listen_tcp("::", 80, namespace=other.namespace) as server,
        sockets.start_connect((other.v4, 80), namespace=pod.namespace) as client,
        accept(server) as served,
    ):
        exchange(client, served)
        Capture(pod.namespace, OPTIONS).apply()
        # Neither waits for the other: who only listens is told as well.
        for end, error in ((client, ConnectionAbortedError), (served, ConnectionResetError)):
            assert select.select([end], [], [], 5)[0]
            with pytest.raises(error):
                end.recv(10)
        with pytest.raises(OSError):
            client.send(b"in the clear")


def test_where_connections_cannot_be_aborted_they_end_when_they_are_used(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise NetlinkError(errno.EOPNOTSUPP, 0, "not in this kernel")

    monkeypatch.setattr("daemonset.agent.capture.end_connections", refused)
    pod, other = cluster.pods
    with (
        sockets.listen_tcp("::", 80, namespace=other.namespace) as server,
        sockets.start_connect((other.v4, 80), namespace=pod.namespace) as client,
        accept(server) as served,
    ):
        exchange(client, served)
        Capture(pod.namespace, OPTIONS).apply()
        ends_unheard(client, served)


class Killed(BaseException):
    """As by SIGKILL: nothing that comes after it is done."""


@pytest.mark.parametrize("suspect", [False, True])
def test_what_a_killed_agent_has_left_in_the_clear_is_ended_by_the_next(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, suspect: bool
) -> None:
    """The rules are there, and connections from before them have not been ended yet."""

    def killed(*_: object, **__: object) -> None:
        raise Killed

    pod, other = cluster.pods
    capture = Capture(pod.namespace, OPTIONS)
    if suspect:  # somebody has taken the rules away, and it was about to repair them
        capture.apply()
        with Nftables(pod.namespace) as nftables:
            nftables.replace(_without_a_rule(OPTIONS))
    with (
        sockets.listen_tcp("::", 80, namespace=other.namespace) as server,
        sockets.start_connect((other.v4, 80), namespace=pod.namespace) as client,
        accept(server) as served,
    ):
        exchange(client, served)
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(Capture, "_end_connections", killed)
            capture.repair() if suspect else capture.apply()
        assert capture.check() == []
        Capture(pod.namespace, OPTIONS).apply()
        ends_unheard(client, served)
    with Nftables(pod.namespace) as nftables:
        assert nftables.table_names() == [TABLE]


_FOR_EVER = """
import sys
from daemonset.agent.capture import Capture
from daemonset.agent.capture_rules import CaptureOptions
from ztunnel.linux.netns import NetworkNamespace

with NetworkNamespace(int(sys.argv[1])) as namespace:
    capture = Capture(namespace, CaptureOptions(int(sys.argv[2])))
    while True:
        for step in (capture.apply, capture.release, capture.stop, capture.resume, capture.remove):
            step()
            print(step.__name__, flush=True)
"""


@pytest.mark.parametrize("milliseconds", [0, 1, 2, 3, 5, 8])
def test_an_agent_that_is_killed_at_any_moment_is_made_up_for(
    cluster: Cluster, milliseconds: int
) -> None:
    pod = cluster.pods[0]
    number = pod.namespace.fd
    command = [sys.executable, "-c", _FOR_EVER, str(number), str(MARK)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[number]) as agent:
        assert agent.stdout is not None
        for _ in range(7 + milliseconds):  # somewhere in its second or third round
            assert agent.stdout.readline()
        time.sleep(milliseconds / 1000)
        agent.kill()
    capture = Capture(pod.namespace, OPTIONS)
    capture.apply()
    capture.resume()
    assert capture.check() == []
    with Nftables(pod.namespace) as nftables:
        assert nftables.table_names() == [TABLE]
    capture.remove()
    assert not capture.is_present()
    with Routing(pod.namespace) as routing:
        assert len(routing.missing(ANSWERS, socket.AF_INET)) == 2
        assert len(routing.missing(ANSWERS, socket.AF_INET6)) == 2


def test_what_the_pod_says_to_itself_goes_on(cluster: Cluster) -> None:
    pod = cluster.pods[0]
    for address in (pod.v4, "127.0.0.1", "::1"):
        with (
            sockets.listen_tcp("::", 80, namespace=pod.namespace) as server,
            sockets.start_connect((address, 80), namespace=pod.namespace) as client,
            accept(server) as served,
        ):
            exchange(client, served)
            capture = Capture(pod.namespace, OPTIONS)
            capture.apply()
            exchange(client, served)
            capture.remove()


def test_tracked_connections_from_before_end_as_well(cluster: Cluster) -> None:
    """Something else in the pod already used connection tracking."""
    pod = cluster.pods[0]
    tracking = Rule((*nft.connection_mark(0, 0xFFFFFFFF), nft.counter()))
    with Nftables(pod.namespace) as nftables:
        nftables.replace(
            Table("foreign", (Chain("c", (tracking,), "output", "nat", -90),)),
        )
    test_connections_from_before_do_not_go_on_in_the_clear(cluster)
    with Nftables(pod.namespace) as nftables:
        assert nftables.table_names() == ["foreign", TABLE]


@pytest.mark.parametrize("released", [False, True])
def test_what_is_captured_while_capture_is_put_in_place_lives_on(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, released: bool
) -> None:
    """Rules first, then the end of connections from before: some are made in between."""
    pod, other = cluster.pods
    made: list[socket.socket] = []

    def connect_meanwhile(*_: object) -> None:
        client = sockets.start_connect((other.v4, 80), namespace=pod.namespace)
        made.extend((client, accept(proxy)))
        upstream = sockets.start_connect(
            (pod.v4, 80), mark=MARK, source=other.v4, namespace=pod.namespace
        )
        made.extend((accept(app), upstream))
        exchange(upstream, made[2])

    def forget(namespace: NetworkNamespace, spared_mark: int) -> None:
        connect_meanwhile()
        forget_direct_connections(namespace, spared_mark)

    capture = Capture(pod.namespace, OPTIONS)
    if released:
        capture.apply()
        capture.release()
    monkeypatch.setattr("daemonset.agent.capture.forget_direct_connections", forget)
    with (
        sockets.listen_tcp("::", 15001, mark=MARK, namespace=pod.namespace) as proxy,
        sockets.listen_tcp("::", 80, namespace=pod.namespace) as app,
    ):
        capture.apply()
        assert len(made) == 4
        # The far end speaks first: it is not known by its own address.
        for client, served in (made[:2], made[2:]):
            exchange(served, client)
    for sock in made:
        sock.close()


def test_applying_again_and_other_options_leave_connections_alone(cluster: Cluster) -> None:
    pod, other = cluster.pods
    capture = Capture(pod.namespace, OPTIONS)
    capture.apply()
    with (
        sockets.listen_tcp("::", 15001, mark=MARK, namespace=pod.namespace) as proxy,
        sockets.start_connect((other.v4, 80), namespace=pod.namespace) as client,
        accept(proxy) as served,
    ):
        capture.apply()
        exchange(client, served)
        Capture(pod.namespace, CaptureOptions(MARK, dns=False)).apply()
        exchange(client, served)


def test_release_keeps_connections_and_takes_in_no_more(cluster: Cluster) -> None:
    pod, other = cluster.pods
    capture = Capture(pod.namespace, OPTIONS)
    capture.apply()
    with (
        sockets.listen_tcp("::", 15001, mark=MARK, namespace=pod.namespace) as proxy,
        sockets.listen_tcp("::", 80, namespace=other.namespace) as server,
        sockets.start_connect((other.v4, 80), namespace=pod.namespace) as client,
        accept(proxy) as served,
    ):
        capture.release()
        exchange(client, served)
        with (
            sockets.start_connect((other.v4, 80), namespace=pod.namespace) as direct,
            accept(server) as at_server,
        ):
            exchange(direct, at_server)
            # Changed one's mind: what was made in the clear meanwhile ends.
            capture.apply()
            ends_unheard(direct, at_server)


@pytest.mark.parametrize("restarted", [False, True])
def test_removal_leaves_the_namespace_as_it_was(cluster: Cluster, restarted: bool) -> None:
    pod, other = cluster.pods
    capture = Capture(pod.namespace, OPTIONS)
    with pod.namespace.enter():
        before = netns.sysctl(MIGRATE)
    capture.apply()
    with pod.namespace.enter():
        assert netns.sysctl(MIGRATE) == "1"
    if restarted:
        capture = Capture(pod.namespace, OPTIONS)
        capture.apply()
    assert capture.is_present()
    capture.remove()
    capture.remove()
    assert not capture.is_present()
    with pod.namespace.enter():
        assert netns.sysctl(MIGRATE) == before
    with Routing(pod.namespace) as routing:
        assert len(routing.missing(ANSWERS, socket.AF_INET)) == 2
        assert len(routing.missing(ANSWERS, socket.AF_INET6)) == 2
    with (
        sockets.listen_tcp("::", 80, namespace=other.namespace) as server,
        sockets.start_connect((other.v4, 80), namespace=pod.namespace) as client,
        accept(server) as served,
    ):
        exchange(client, served)


def _without_a_rule(options: CaptureOptions) -> Table:
    chains = tuple(
        Chain(chain.name, chain.rules[:-1], chain.hook, chain.kind, chain.priority)
        if chain.name == "outbound"
        else chain
        for chain in capture_table(options).chains
    )
    return Table(TABLE, chains)


def test_a_rule_that_somebody_deleted_is_noticed_and_repaired(cluster: Cluster) -> None:
    pod, other = cluster.pods
    capture = Capture(pod.namespace, OPTIONS)
    capture.apply()
    assert capture.check() == []
    with Nftables(pod.namespace) as nftables, Routing(pod.namespace) as routing:
        nftables.replace(_without_a_rule(OPTIONS))
        routing.remove(ANSWERS, socket.AF_INET)
        wrong = [
            "rule of chain outbound is gone or changed: what the pod sends",
            "the IPv4 rule for mark 0x111 is gone",
            "the IPv4 local route of table 100 is gone",
        ]
        assert capture.check() == wrong
        with (
            sockets.listen_tcp("::", 80, namespace=other.namespace) as server,
            sockets.start_connect((other.v4, 80), namespace=pod.namespace) as leaked,
            accept(server) as served,
        ):
            exchange(leaked, served)
            assert capture.repair() == wrong
            assert capture.check() == []
            ends_unheard(leaked, served)
        nftables.delete(TABLE)
        assert capture.repair() == [f"table {TABLE} is gone"]
        assert capture.repair() == []


def test_a_pod_without_ipv6_gets_no_ipv6_routing(cluster: Cluster) -> None:
    pod = cluster.pods[0]
    with pod.namespace.enter():
        netns.set_sysctl("net.ipv6.conf.all.disable_ipv6", 1)
    capture = Capture(pod.namespace, OPTIONS)
    capture.apply()
    assert capture.check() == []
    with Routing(pod.namespace) as routing:
        assert routing.missing(ANSWERS, socket.AF_INET) == []
        assert len(routing.missing(ANSWERS, socket.AF_INET6)) == 2
    capture.remove()


@FAMILIES
def test_stop_cuts_the_pod_off_but_for_loopback(cluster: Cluster, family: int) -> None:
    pod, other = cluster.pods
    capture = Capture(pod.namespace, OPTIONS)
    assert capture.stop() == "nothing gets in or out"
    assert capture.is_present()
    with (
        sockets.listen_tcp("::", 80, namespace=other.namespace) as server,
        sockets.listen_tcp("::", 80, namespace=pod.namespace) as app,
        sockets.start_connect((other.address(family), 80), namespace=pod.namespace) as out,
        sockets.start_connect((pod.address(family), 80), namespace=other.namespace) as coming,
        sockets.start_connect((pod.address(family), 80), namespace=pod.namespace),
    ):
        accept(app).close()
        assert select.select([server, app, out, coming], [out, coming], [], 0.1) == ([], [], [])
        capture.resume()
        assert not capture.is_present()
        accept(server, 3).close()
        accept(app, 3).close()


class _RefusingNftables(Nftables):
    def replace(self, *tables: Table) -> None:
        raise NetlinkError(12, 0, "as a test wants it")


def test_when_nftables_refuse_routing_stops_the_pod(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod, other = cluster.pods
    capture = Capture(pod.namespace, OPTIONS)
    monkeypatch.setattr("daemonset.agent.capture.Nftables", _RefusingNftables)
    with pytest.raises(CaptureError, match=r"cannot capture: .*Cannot allocate memory"):
        capture.apply()
    assert "a routing rule" in capture.stop()
    with pytest.raises(PermissionError):
        sockets.start_connect((other.v4, 80), namespace=pod.namespace)
    monkeypatch.undo()
    capture.apply()
    capture.resume()
    assert refused((other.v4, 80), pod)


class _ForgettingNftables(Nftables):
    def replace(self, *tables: Table) -> None:
        super().replace(_without_a_rule(OPTIONS))


def test_applied_but_not_kept_is_an_error(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemonset.agent.capture.Nftables", _ForgettingNftables)
    with pytest.raises(CaptureError, match="did not keep what was applied: rule of chain outbound"):
        Capture(cluster.pods[0].namespace, OPTIONS).apply()
