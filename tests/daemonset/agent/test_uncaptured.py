"""Pods of the mesh that cannot be captured: stopped on the node, for as long as that is theirs."""

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from daemonset.agent import host_stops, stop_keeper
from daemonset.agent.agent_metrics import AgentMetrics
from daemonset.agent.capture import Capture
from daemonset.agent.capture_rules import STOP_TABLE
from daemonset.agent.host_stops import HostStops
from daemonset.agent.pods import Pod
from daemonset.agent.status import PodState
from daemonset.agent.stops import Uncaptured
from tests.daemonset.agent.test_agent import Node, _Refusing, node, pod_of, tables
from tests.daemonset.agent.test_host_stops import PORT, is_stopped, passes
from tests.support.namespaces import HOST_V4, Cluster
from tests.support.namespaces import Pod as PodNamespace
from ztunnel.linux.netlink import NetlinkError
from ztunnel.linux.nft_tables import BRIDGE, INET, Table
from ztunnel.linux.nftables import Nftables
from ztunnel.linux.routing import Routing

pytestmark = pytest.mark.root
PERMIT = Uncaptured.PERMIT


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(3) as made:
        yield made


def lost(namespace: PodNamespace, **changes: object) -> Pod:
    """A pod whose namespace is nowhere to be found."""
    return pod_of(namespace, netns="/nowhere", **changes)


def talks(source: PodNamespace, to: PodNamespace) -> bool:
    return all(
        passes(source.namespace, (address, PORT), to.namespace) for address in (to.v4, to.v6)
    )


def silent(source: PodNamespace, to: PodNamespace) -> bool:
    return all(
        is_stopped(source.namespace, (address, PORT), to.namespace) for address in (to.v4, to.v6)
    )


def metrics(this: Node) -> str:
    made = AgentMetrics(lambda: this.agent.status, dict, lambda: True)
    return made.render().decode()


async def test_a_pod_is_stopped_on_the_node_until_it_is_captured(
    cluster: Cluster, tmp_path: Path
) -> None:
    one, other, third = cluster.pods
    async with node(cluster, tmp_path, lost(one), started=False) as this:
        status = await this.until_state("uid-0", PodState.STOPPED)
        assert status.reason.startswith(
            "the node lets nothing pass from it or to it, by its addresses: cannot open the network"
            " namespace of shop/pod-0: "
        )
        assert silent(one, other)
        assert silent(other, one)
        assert talks(third, other)
        expected = 'mesh_bypass_possible{namespace="shop",pod="pod-0",reason="the node lets nothing'
        assert expected in metrics(this)
        assert 'traffic="stopped"} 1.0' in metrics(this)
        # Without ztunnel it is refused, which is as good; UDP is not captured.
        this.source.set(pod_of(one))
        await this.until_state("uid-0", PodState.PENDING)
        assert tables(cluster.host) == ["ambientd-host"]
        assert talks(one, other)
        assert "mesh_bypass_possible{" not in metrics(this)


@pytest.mark.parametrize(
    "after",
    [
        (),
        ({"phase": "Succeeded"},),
        ({"namespace_labels": {}},),
        ({"addresses": ("10.1.0.200",)},),
        ({}, {"uid": "next", "namespace_labels": {}}),
        ({}, {"uid": "next", "namespace_labels": {}, "addresses": ("10.1.0.10", "fd01::a")}),
    ],
    ids=["deleted", "ended", "not in the mesh", "moved", "reused", "reused, written anew"],
)
async def test_an_address_passes_as_soon_as_it_is_not_that_pods_any_more(
    cluster: Cluster, tmp_path: Path, after: tuple[dict[str, object], ...]
) -> None:
    one, other, _ = cluster.pods
    async with node(cluster, tmp_path, lost(one)) as this:
        await this.until_state("uid-0", PodState.STOPPED)
        assert silent(one, other)
        this.source.set(*(lost(one, **changes) for changes in after))
        await this.until(lambda: one.v4 not in stopped(cluster))
        assert talks(one, other)
        assert talks(other, one)
        if len(after) > 1:
            status = await this.until_state("uid-0", PodState.FAILED)
            assert "10.1.0.10 is that of the pod shop/pod-0 too" in status.reason
            # Only the pod that cannot be captured is left: it has the address again.
            this.source.set(lost(one))
            await this.until_state("uid-0", PodState.STOPPED)
            assert silent(one, other)


def stopped(cluster: Cluster) -> set[str]:
    """Addresses, by what the kernel has."""
    with Nftables(cluster.host) as nftables:
        found = nftables.read(host_stops.TABLE)
    if found is None:
        return set()
    return {str(ip_address(each.key)) for entry in found.sets for each in entry.elements}


async def test_the_stop_outlives_the_agent_and_the_next_one_clears_what_is_stale(
    cluster: Cluster, tmp_path: Path
) -> None:
    """An agent undoes nothing when it is ended, by whatever: the next one takes over."""
    one, other, third = cluster.pods
    async with node(cluster, tmp_path, lost(one), lost(other)) as this:
        for uid in ("uid-0", "uid-1"):
            await this.until_state(uid, PodState.STOPPED)
    assert silent(one, third)
    assert silent(other, third)
    # The second pod has gone while nobody looked, and its address is another pod's.
    reused = pod_of(other, uid="next", namespace_labels={})
    async with node(cluster, tmp_path, lost(one), reused) as this:
        # By the time that ztunnel may connect all is as it should be.
        await this.until(lambda: stopped(cluster) == {one.v4, one.v6})
        assert talks(other, third)
        assert silent(one, third)
        await this.until_state("uid-0", PodState.STOPPED)
    async with node(cluster, tmp_path, pod_of(one), reused) as this:
        await this.until_state("uid-0", PodState.ENROLLED)
        assert talks(one, third)
    HostStops(cluster.host).write({one.v4: "gone"})
    async with node(cluster, tmp_path) as this:
        await this.until(lambda: not HostStops(cluster.host).is_present())


async def test_the_permissive_form(cluster: Cluster, tmp_path: Path) -> None:
    one, other, _ = cluster.pods
    async with node(cluster, tmp_path, lost(one)) as this:
        await this.until_state("uid-0", PodState.STOPPED)
    async with node(cluster, tmp_path, lost(one), uncaptured=PERMIT) as this:
        status = await this.until_state("uid-0", PodState.FAILED)
        assert status.may_bypass
        assert status.reason.startswith(
            "its traffic goes on (AMBIENT_UNCAPTURED is permit): cannot open the network namespace"
        )
        await this.until(lambda: not HostStops(cluster.host).is_present())
        assert talks(one, other)
        assert 'traffic="passes"} 1.0' in metrics(this)


async def test_the_permissive_form_in_the_pods_own_namespace(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other, _ = cluster.pods
    monkeypatch.setattr("daemonset.agent.capture.Nftables", _Refusing)
    async with node(cluster, tmp_path, pod_of(one)) as this:
        await this.until_state("uid-0", PodState.STOPPED)
        assert tables(one.namespace) == [STOP_TABLE]
    async with node(cluster, tmp_path, pod_of(one), uncaptured=PERMIT) as this:
        status = await this.until_state("uid-0", PodState.FAILED)
        assert "AMBIENT_UNCAPTURED is permit" in status.reason
        assert tables(one.namespace) == []
        assert talks(one, other)
        monkeypatch.undo()
        await this.until_state("uid-0", PodState.ENROLLED)


async def test_a_namespace_that_can_be_entered_and_does_not_obey(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Useless(Nftables):
        def replace(self, *given: Table) -> None:
            raise NetlinkError(12, 0, "as the test wants it")

    def no_routing_either(self: Routing, family: int) -> None:
        raise NetlinkError(12, 0, "this neither")

    one, other, _ = cluster.pods
    monkeypatch.setattr("daemonset.agent.capture.Nftables", Useless)
    monkeypatch.setattr("daemonset.agent.capture.Routing.stop", no_routing_either)
    async with node(cluster, tmp_path, pod_of(one)) as this:
        status = await this.until_state("uid-0", PodState.STOPPED)
        assert "cannot stop the pod's traffic" in status.reason
        assert silent(one, other)
        monkeypatch.undo()
        await this.until_state("uid-0", PodState.ENROLLED)
        assert talks(one, other)


async def test_a_defect_stops_the_pod_that_it_concerns(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other, _ = cluster.pods

    def broken(self: Capture) -> None:
        raise ZeroDivisionError("as the test wants it")

    monkeypatch.setattr(Capture, "apply", broken)
    async with node(cluster, tmp_path, pod_of(one)) as this:
        status = await this.until_state("uid-0", PodState.STOPPED)
        assert "ZeroDivisionError: as the test wants it" in status.reason
        assert silent(one, other)


async def test_the_node_does_not_stop_itself(cluster: Cluster, tmp_path: Path) -> None:
    one, _, third = cluster.pods
    impostor = lost(one, addresses=(HOST_V4, one.v4))
    async with node(cluster, tmp_path, impostor) as this:
        status = await this.until_state("uid-0", PodState.FAILED)
        assert status.reason.endswith(f"either: {HOST_V4} is the node's own")
        assert passes(third.namespace, (HOST_V4, PORT), cluster.host)
        assert is_stopped(one.namespace, (third.v4, PORT), third.namespace)


async def test_stops_that_somebody_takes_away_come_back(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop_keeper, "CHECK_INTERVAL", 0.05)
    one, other, _ = cluster.pods
    async with node(cluster, tmp_path, lost(one)) as this:
        await this.until_state("uid-0", PodState.STOPPED)
        meant = {one.v4: "uid-0", one.v6: "uid-0"}
        for family in (INET, BRIDGE):
            with Nftables(cluster.host) as nftables:
                nftables.delete(host_stops.TABLE, family=family)
            await this.until(lambda: not HostStops(cluster.host).wrong(meant))
            assert silent(one, other)


async def test_nothing_of_it_is_left_when_the_mesh_leaves_the_node(
    cluster: Cluster, tmp_path: Path
) -> None:
    one, other, _ = cluster.pods
    async with node(cluster, tmp_path, lost(one)) as this:
        await this.until_state("uid-0", PodState.STOPPED)
        assert this.agent.leftovers() == ["the node's own rules", "what the node stops"]
        await this.agent.dissolve()
        assert this.agent.leftovers() == []
        assert tables(cluster.host) == []
        assert talks(one, other)
    HostStops(cluster.host).write({one.v4: "uid-0"})
    # And an agent that finds the mesh withdrawn.
    async with node(cluster, tmp_path, replace(lost(one), namespace_labels={})) as this:
        await this.until(lambda: not HostStops(cluster.host).is_present())
