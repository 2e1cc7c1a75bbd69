"""Capture is what it was meant to be, or is repaired, or nothing passes."""

import select
import socket
from collections.abc import Iterator

import pytest

from daemonset.agent.capture import Capture, CaptureError
from daemonset.agent.capture_rules import (
    ANSWERS,
    TABLE,
)
from tests.support.capture import (
    FAMILIES,
    OPTIONS,
    accept,
    ends_unheard,
    exchange,
    refused,
    without_a_rule,
)
from tests.support.namespaces import Cluster
from ztunnel.linux import netns, sockets
from ztunnel.linux.netlink import NetlinkError
from ztunnel.linux.nft_tables import Table
from ztunnel.linux.nftables import Nftables
from ztunnel.linux.routing import Routing

pytestmark = pytest.mark.root


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(2) as made:
        yield made


def test_a_rule_that_somebody_deleted_is_noticed_and_repaired(cluster: Cluster) -> None:
    pod, other = cluster.pods
    capture = Capture(pod.namespace, OPTIONS)
    capture.apply()
    assert capture.check() == []
    with Nftables(pod.namespace) as nftables, Routing(pod.namespace) as routing:
        nftables.replace(without_a_rule(OPTIONS))
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
        super().replace(without_a_rule(OPTIONS))


def test_applied_but_not_kept_is_an_error(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemonset.agent.capture.Nftables", _ForgettingNftables)
    with pytest.raises(CaptureError, match="did not keep what was applied: rule of chain outbound"):
        Capture(cluster.pods[0].namespace, OPTIONS).apply()
