"""Connections that there are when capture begins, changes and ends."""

import errno
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from daemonset.agent.capture import MIGRATE, Capture
from daemonset.agent.capture_rules import (
    ANSWERS,
    TABLE,
    CaptureOptions,
)
from tests.support.capture import (
    MARK,
    OPTIONS,
    accept,
    ends_unheard,
    exchange,
    in_conversation,
    without_a_rule,
)
from tests.support.namespaces import Cluster
from ztunnel.linux import netns, sockets
from ztunnel.linux import nft_expressions as nft
from ztunnel.linux.conntrack import forget_direct_connections
from ztunnel.linux.netlink import NetlinkError
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.nft_tables import Chain, Rule, Table
from ztunnel.linux.nftables import Nftables
from ztunnel.linux.routing import Routing

pytestmark = pytest.mark.root


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(2) as made:
        yield made


def test_connections_from_before_do_not_go_on_in_the_clear(cluster: Cluster) -> None:
    pod, other = cluster.pods
    with in_conversation(pod, other) as (client, served):
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
    with in_conversation(pod, other) as (client, served):
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
            nftables.replace(without_a_rule(OPTIONS))
    with in_conversation(pod, other) as (client, served):
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
    with in_conversation(pod, other):
        pass  # a new one is as it was before
