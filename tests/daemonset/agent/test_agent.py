"""The whole agent in real namespaces, with our own ZDS client below it."""

import os
import select
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from pyroute2 import IPRoute

from daemonset.agent.agent import Agent, AgentConfig
from daemonset.agent.capture import Capture
from daemonset.agent.capture_rules import PROBE_V4, STOP_TABLE, TABLE, CaptureOptions
from daemonset.agent.enrolment import MODE_LABEL
from daemonset.agent.pods import Pod
from daemonset.agent.status import PodState, PodStatus, read_status
from daemonset.agent.stops import Uncaptured
from tests.support.descriptors import no_leak
from tests.support.namespaces import Cluster
from tests.support.namespaces import Pod as PodNamespace
from tests.support.sockets import connect_result
from ztunnel.linux import netns, sockets
from ztunnel.linux import nft_expressions as nft
from ztunnel.linux.netlink import NetlinkError
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.nft_tables import Rule, Table, differences
from ztunnel.linux.nftables import Nftables
from ztunnel.zds.client import ZdsClient
from ztunnel.zds.messages import WorkloadInfo

pytestmark = pytest.mark.root
AMBIENT = {MODE_LABEL: "ambient"}


class Source:
    """A source whose list the test sets."""

    def __init__(self, *pods: Pod) -> None:
        self.send, self._receive = trio.open_memory_channel[Sequence[Pod]](100)
        self.set(*pods)

    def set(self, *pods: Pod) -> None:
        self.send.send_nowait(pods)

    async def pods(self) -> AsyncGenerator[Sequence[Pod], None]:
        async for pods in self._receive:
            yield pods


class Ztunnel:
    """Listens where ztunnel does, inside each pod that it is told of."""

    def __init__(self) -> None:
        self.refuse: set[str] = set()
        self.listeners: dict[str, socket.socket] = {}
        self.calls: list[str] = []
        self.hold: trio.Event | None = None
        """New pods wait for it."""
        self.mark = 0

    async def add(self, uid: str, info: WorkloadInfo, netns_fd: int) -> None:
        self.calls.append(f"add {uid}")
        if uid in self.refuse:
            raise ValueError("as the test wants it")
        if self.hold is not None:
            await self.hold.wait()
        with NetworkNamespace(os.dup(netns_fd)) as namespace:
            listener = sockets.listen_tcp("::", 15001, mark=self.mark, namespace=namespace)
        if uid in self.listeners:  # the next agent tells of it anew
            self.listeners[uid].close()
        self.listeners[uid] = listener

    async def delete(self, uid: str) -> None:
        self.calls.append(f"delete {uid}")
        listener = self.listeners.pop(uid, None)
        if listener is not None:
            listener.close()

    def close(self) -> None:
        for listener in self.listeners.values():
            listener.close()


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    with no_leak():
        yield


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(3) as made:
        yield made


def pod_of(namespace: PodNamespace, **changes: object) -> Pod:
    pod = Pod(
        uid=f"uid-{namespace.number}",
        name=f"pod-{namespace.number}",
        namespace="shop",
        service_account="shop",
        addresses=(namespace.v4, namespace.v6),
        namespace_labels=AMBIENT,
        netns=f"/proc/{os.getpid()}/fd/{namespace.namespace.fd}",
    )
    return replace(pod, **changes)  # type: ignore[arg-type]


class Node:
    """An agent, its source, and (when started) a ztunnel."""

    def __init__(
        self, agent: Agent, source: Source, nursery: trio.Nursery, config: AgentConfig
    ) -> None:
        self.agent, self.source, self.config = agent, source, config
        self.ztunnel = Ztunnel()
        self.ztunnel.mark = agent.mark
        self._nursery = nursery

    def start_ztunnel(self) -> None:
        self._nursery.start_soon(ZdsClient(self.ztunnel, self.config.zds_path).run)

    def status(self, uid: str) -> PodStatus:
        return {status.uid: status for status in self.agent.status.pods}[uid]

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(30):
            while not condition():
                # Not everything that a test waits for is part of the status.
                with trio.move_on_after(0.05):
                    await self.agent.wait_status_changed()

    async def until_state(self, uid: str, state: PodState) -> PodStatus:
        await self.until(
            lambda: any(
                status.uid == uid and status.state is state for status in self.agent.status.pods
            )
        )
        return self.status(uid)

    async def until_repaired(self, uid: str, times: int) -> None:
        await self.until(lambda: self.status(uid).repairs == times)


@asynccontextmanager
async def node(
    cluster: Cluster,
    tmp_path: Path,
    *pods: Pod,
    started: bool = True,
    uncaptured: Uncaptured = Uncaptured.STOP,
) -> AsyncIterator[Node]:
    config = AgentConfig(
        tmp_path,
        tmp_path / "zds.sock",
        host_netns=f"/proc/{os.getpid()}/fd/{cluster.host.fd}",
        uncaptured=uncaptured,
    )
    agent, source = Agent(config), Source(*pods)
    async with trio.open_nursery() as nursery:
        made = Node(agent, source, nursery, config)
        await nursery.start(agent.run, source)
        if started:
            made.start_ztunnel()
        yield made
        nursery.cancel_scope.cancel()
    made.ztunnel.close()


def tables(namespace: NetworkNamespace) -> list[str]:
    with Nftables(namespace) as nftables:
        return nftables.table_names()


def reached(listener: socket.socket, client: sockets.SocketAddress, source: PodNamespace) -> str:
    """Who a listener sees when `source` connects to `client`."""
    with sockets.start_connect(client, namespace=source.namespace):
        assert select.select([listener], [], [], 30)[0], "nobody has connected"
        with listener.accept()[0] as served:
            return sockets.peer_of(served)[0]


async def test_a_running_pod_comes_and_goes_by_its_label(cluster: Cluster, tmp_path: Path) -> None:
    one, other, _ = cluster.pods
    outside = pod_of(one, namespace_labels={})
    with sockets.listen_tcp("::", 80, namespace=other.namespace) as server:
        async with node(cluster, tmp_path, outside) as this:
            status = await this.until_state("uid-0", PodState.NOT_IN_MESH)
            assert status.reason == "neither its labels nor its namespace's ask for it"
            assert reached(server, (other.v4, 80), one) == one.v4
            for _ in range(2):
                this.source.set(pod_of(one))
                await this.until_state("uid-0", PodState.ENROLLED)
                assert reached(this.ztunnel.listeners["uid-0"], (other.v4, 80), one) == one.v4
                this.source.set(outside)
                await this.until_state("uid-0", PodState.NOT_IN_MESH)
                assert this.ztunnel.listeners == {}
                assert reached(server, (other.v4, 80), one) == one.v4
                assert tables(one.namespace) == []
            assert this.ztunnel.calls == ["add uid-0", "delete uid-0"] * 2


async def test_what_is_left_on_a_node_is_looked_for_there(cluster: Cluster, tmp_path: Path) -> None:
    one, other, _ = cluster.pods
    outside = pod_of(other, namespace_labels={})
    async with node(cluster, tmp_path, pod_of(one), outside) as this:
        await this.until_state("uid-0", PodState.ENROLLED)
        left = await trio.to_thread.run_sync(this.agent.leftovers)
        assert left == ["the node's own rules", "pod shop/pod-0: rules"]
        with trio.fail_after(30):
            await this.agent.dissolve()
        assert await trio.to_thread.run_sync(this.agent.leftovers) == []
        # Not what was done counts, but what is there.
        Capture(other.namespace, CaptureOptions(this.agent.mark)).apply()
        left = await trio.to_thread.run_sync(this.agent.leftovers)
        assert left == ["pod shop/pod-1: rules"]


async def test_a_pod_that_leaves_gets_its_connections_closed_not_lost(
    cluster: Cluster, tmp_path: Path
) -> None:
    one, other, _ = cluster.pods
    async with node(cluster, tmp_path, pod_of(one)) as this:
        await this.until_state("uid-0", PodState.ENROLLED)
        listener = this.ztunnel.listeners["uid-0"]
        with sockets.start_connect((other.v4, 80), namespace=one.namespace) as client:
            assert select.select([listener], [], [], 30)[0]
            this.source.set(pod_of(one, namespace_labels={}))
            await this.until_state("uid-0", PodState.NOT_IN_MESH)
            # ztunnel reset it when it closed its listener, and the application was told.
            assert select.select([client], [], [], 5)[0]
            with pytest.raises(ConnectionResetError):
                client.recv(1)


async def test_without_ztunnel_a_pod_is_captured_and_refused_until_there_is_one(
    cluster: Cluster, tmp_path: Path
) -> None:
    one, other, _ = cluster.pods
    async with node(cluster, tmp_path, pod_of(one), started=False) as this:
        status = await this.until_state("uid-0", PodState.PENDING)
        assert status.reason == "no ztunnel is connected"
        with (
            sockets.listen_tcp("::", 80, namespace=other.namespace) as server,
            sockets.start_connect((other.v4, 80), namespace=one.namespace) as client,
        ):
            assert select.select([], [client], [], 5)[1]
            with pytest.raises(ConnectionRefusedError):
                connect_result(client)
            assert not select.select([server], [], [], 0)[0]
        this.start_ztunnel()
        await this.until_state("uid-0", PodState.ENROLLED)
        assert this.agent.status.ztunnels == 1


async def test_the_node_may_probe_enrolled_pods_only(cluster: Cluster, tmp_path: Path) -> None:
    one = cluster.pods[0]
    async with node(cluster, tmp_path, pod_of(one)) as this:
        await this.until_state("uid-0", PodState.ENROLLED)
        with sockets.listen_tcp("::", 80, namespace=one.namespace) as app:
            with sockets.start_connect((one.v4, 80), namespace=cluster.host):
                assert select.select([app], [], [], 5)[0]
                with app.accept()[0] as served:
                    assert sockets.peer_of(served)[0] == PROBE_V4
            # Its address changes: the new one may be probed, without a restart of anything.
            with one.namespace.enter(), IPRoute() as ip:
                ip.addr("add", index=ip.link_lookup(ifname="eth0")[0], address="10.1.0.99/32")
            with cluster.host.enter(), IPRoute() as ip:
                link = ip.link_lookup(ifname="pod0")[0]
                ip.route("add", dst="10.1.0.99/32", oif=link, scope=253)
            this.source.set(pod_of(one, addresses=("10.1.0.99",)))
            await this.until(lambda: "10.1.0.99" in this.agent._probes.addresses)
            assert set(this.agent._probes.addresses) == {"10.1.0.99"}
            with sockets.start_connect(("10.1.0.99", 80), namespace=cluster.host):
                assert select.select([app], [], [], 5)[0]
                with app.accept()[0] as served:
                    assert sockets.peer_of(served)[0] == PROBE_V4
        this.source.set()
        await this.until(lambda: this.agent.status.pods == ())
        assert this.agent._probes.addresses == {}


async def test_bad_pods_are_named_and_hold_up_nobody(cluster: Cluster, tmp_path: Path) -> None:
    one, other, third = cluster.pods
    wrong = pod_of(other, netns=pod_of(third).netns)
    missing = pod_of(third, uid="missing", netns=str(tmp_path / "none"))
    host = pod_of(third, uid="host", netns=f"/proc/{os.getpid()}/fd/{cluster.host.fd}")
    unborn = pod_of(third, uid="unborn", addresses=())
    async with node(cluster, tmp_path, wrong, missing, host, unborn, pod_of(one)) as this:
        await this.until_state("uid-0", PodState.ENROLLED)
        status = await this.until_state("uid-1", PodState.STOPPED)
        assert "is not the namespace of shop/pod-1: no interface there has" in status.reason
        status = await this.until_state("missing", PodState.STOPPED)
        assert "No such file" in status.reason
        status = await this.until_state("host", PodState.STOPPED)
        assert "said to live in the node's own network namespace" in status.reason
        status = await this.until_state("unborn", PodState.ENROLLING)
        assert "has no address yet" in status.reason
        assert tables(third.namespace) == []
        assert "ambientd" not in tables(cluster.host)
        # Two pods in one namespace: the second would speak with the first one's identity.
        twin = pod_of(one, uid="twin")
        this.source.set(pod_of(one), twin)
        status = await this.until_state("twin", PodState.FAILED)
        assert status.may_bypass
        assert status.reason == (
            "the namespace of shop/pod-0 is already that of the pod uid-0; it cannot be stopped on"
            " the node either: 10.1.0.10 is that of the pod shop/pod-0 too; fd01::a is that of the"
            " pod shop/pod-0 too"
        )


async def test_a_pod_that_ztunnel_refuses_is_pending_and_tried_again(
    cluster: Cluster, tmp_path: Path
) -> None:
    one, other, _ = cluster.pods
    async with node(cluster, tmp_path, started=False) as this:
        this.ztunnel.refuse.add("uid-0")
        this.start_ztunnel()
        this.source.set(pod_of(one), pod_of(other))
        await this.until_state("uid-1", PodState.ENROLLED)
        status = await this.until_state("uid-0", PodState.PENDING)
        assert "as the test wants it" in status.reason
        this.ztunnel.refuse.clear()
        await this.until_state("uid-0", PodState.ENROLLED)


async def test_a_new_ztunnel_that_refuses_a_pod_is_noticed(
    cluster: Cluster, tmp_path: Path
) -> None:
    one = cluster.pods[0]
    async with node(cluster, tmp_path, pod_of(one)) as this:
        await this.until_state("uid-0", PodState.ENROLLED)
        second = Ztunnel()
        second.refuse.add("uid-0")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ZdsClient(second, this.config.zds_path).run)
            status = await this.until_state("uid-0", PodState.PENDING)
            assert "as the test wants it" in status.reason
            nursery.cancel_scope.cancel()
        await this.until_state("uid-0", PodState.ENROLLED)


async def test_tampering_is_repaired_at_once_and_reported(cluster: Cluster, tmp_path: Path) -> None:
    one = cluster.pods[0]
    async with node(cluster, tmp_path, pod_of(one)) as this:
        await this.until_state("uid-0", PodState.ENROLLED)
        for number in (1, 2):
            with Nftables(one.namespace) as nftables:
                nftables.delete(TABLE)
            await this.until_repaired("uid-0", number)
            assert this.status("uid-0").last_repair == f"table {TABLE} is gone"
            assert tables(one.namespace) == [TABLE]
        assert this.status("uid-0").state is PodState.ENROLLED


_Edit = Callable[[tuple[Rule, ...]], tuple[Rule, ...]]
_ELSEWHERE = Rule(
    (*nft.protocol(socket.IPPROTO_TCP), nft.counter(), *nft.redirect(9)), "what the pod sends"
)
_LET_OUT = Rule((nft.counter(), nft.accept()), "nobody minds")


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda rules: rules[:-1], "rule of chain outbound is gone or changed: what the pod sends"),
        (
            lambda rules: (*rules[:-1], _ELSEWHERE),
            "rule of chain outbound is gone or changed: what the pod sends",
        ),
        (lambda rules: (_LET_OUT, *rules), "rule of chain outbound is not ours: nobody minds"),
        (lambda rules: rules[::-1], "rules of chain outbound are in another order"),
        (lambda rules: (), "rule of chain outbound is gone or changed: "),
    ],
    ids=["deleted", "changed", "added", "moved", "flushed"],
)
async def test_a_single_rule_that_is_touched_is_repaired(
    cluster: Cluster, tmp_path: Path, edit: _Edit, found: str
) -> None:
    one = cluster.pods[0]
    async with node(cluster, tmp_path, pod_of(one)) as this:
        await this.until_state("uid-0", PodState.ENROLLED)
        with Nftables(one.namespace) as nftables:
            before = nftables.read(TABLE)
            assert before is not None
            chains = tuple(
                replace(chain, rules=edit(chain.rules)) if chain.name == "outbound" else chain
                for chain in before.chains
            )
            nftables.replace(replace(before, chains=chains))
            await this.until_repaired("uid-0", 1)
            assert differences(before, nftables.read(TABLE)) == []
        assert this.status("uid-0").last_repair.startswith(found)
        assert this.status("uid-0").state is PodState.ENROLLED


class _Refusing(Nftables):
    def replace(self, *tables: Table) -> None:
        if TABLE in [table.name for table in tables]:
            raise NetlinkError(12, 0, "as the test wants it")
        super().replace(*tables)


async def test_a_pod_that_cannot_be_captured_is_cut_off_and_recovers(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other, _ = cluster.pods
    monkeypatch.setattr("daemonset.agent.capture.Nftables", _Refusing)
    async with node(cluster, tmp_path, pod_of(one)) as this:
        status = await this.until_state("uid-0", PodState.STOPPED)
        assert status.reason.startswith("nothing gets in or out: cannot capture")
        assert tables(one.namespace) == [STOP_TABLE]
        with (
            sockets.listen_tcp("::", 80, namespace=other.namespace) as server,
            sockets.start_connect((other.v4, 80), namespace=one.namespace),
        ):
            assert not select.select([server], [], [], 0.1)[0]
        monkeypatch.undo()
        await this.until_state("uid-0", PodState.ENROLLED)
        assert tables(one.namespace) == [TABLE]


async def test_a_defect_concerns_one_pod_only(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other, _ = cluster.pods
    apply = Capture.apply

    def broken(self: Capture) -> None:
        if self.options.dns:
            raise ZeroDivisionError("as the test wants it")
        apply(self)

    monkeypatch.setattr(Capture, "apply", broken)
    fine = pod_of(other, annotations={"ambient.istio.io/dns-capture": "false"})
    async with node(cluster, tmp_path, pod_of(one), fine) as this:
        await this.until_state("uid-1", PodState.ENROLLED)
        await this.until(lambda: "ZeroDivisionError" in this.status("uid-0").reason)


async def test_an_agent_that_restarts_disturbs_nobody(cluster: Cluster, tmp_path: Path) -> None:
    one, other, third = cluster.pods
    everybody = [pod_of(one), pod_of(other)]
    ztunnel = Ztunnel()
    async with trio.open_nursery() as ztunnels:
        async with node(cluster, tmp_path, *everybody, started=False) as this:
            ztunnel.mark = this.agent.mark
            ztunnels.start_soon(ZdsClient(ztunnel, this.config.zds_path).run)
            for uid in ("uid-0", "uid-1"):
                await this.until_state(uid, PodState.ENROLLED)
        assert tables(one.namespace) == [TABLE]
        listener = ztunnel.listeners["uid-0"]
        with (
            sockets.start_connect((third.v4, 80), namespace=one.namespace) as client,
            listener.accept()[0] as served,
        ):
            ztunnel.calls.clear()
            # While it was away one has left the mesh.
            everybody[1] = pod_of(other, namespace_labels={})
            async with node(cluster, tmp_path, *everybody, started=False) as this:
                assert this.agent.mark == ztunnel.mark
                await this.until_state("uid-0", PodState.ENROLLED)
                await this.until_state("uid-1", PodState.NOT_IN_MESH)
                assert tables(other.namespace) == []
                client.send(b"still there")
                assert select.select([served], [], [], 5)[0]
                assert served.recv(20) == b"still there"
                await this.until(lambda: ztunnel.calls == ["delete uid-1"])
        ztunnels.cancel_scope.cancel()
    ztunnel.close()


async def test_probes_pass_while_agents_change_and_ztunnel_is_away(
    cluster: Cluster, tmp_path: Path
) -> None:
    """A pod whose probes fail for seconds is taken out of its Services, or restarted."""
    one = cluster.pods[0]
    with sockets.listen_tcp("::", 80, namespace=one.namespace) as app:

        def is_probed() -> bool:
            with sockets.start_connect((one.v4, 80), namespace=cluster.host):
                if not select.select([app], [], [], 5)[0]:
                    return False
                with app.accept()[0] as served:
                    return sockets.peer_of(served)[0] == PROBE_V4

        async with node(cluster, tmp_path, pod_of(one), started=False) as this:
            await this.until_state("uid-0", PodState.PENDING)  # without ztunnel
            assert is_probed()
            this.start_ztunnel()
            await this.until_state("uid-0", PodState.ENROLLED)
        assert is_probed()
        async with node(cluster, tmp_path, started=False) as this:  # nobody is in the mesh now
            assert this.agent._probes.addresses == {}
        async with node(cluster, tmp_path, pod_of(one)) as this:
            await this.until_state("uid-0", PodState.ENROLLED)
        assert is_probed()


async def test_a_pod_with_a_new_namespace_is_a_new_pod(cluster: Cluster, tmp_path: Path) -> None:
    one, other, _ = cluster.pods
    async with node(cluster, tmp_path, pod_of(one)) as this:
        await this.until_state("uid-0", PodState.ENROLLED)
        moved = pod_of(other, uid="uid-0")
        this.source.set(moved)
        await this.until(lambda: set(this.agent._probes.addresses) == set(moved.addresses))
        assert tables(other.namespace) == [TABLE]
        assert this.ztunnel.calls == ["add uid-0", "delete uid-0", "add uid-0"]


async def test_what_ends_or_is_deleted_is_let_go(cluster: Cluster, tmp_path: Path) -> None:
    one, other, _ = cluster.pods
    async with node(cluster, tmp_path, pod_of(one), pod_of(other)) as this:
        for uid in ("uid-0", "uid-1"):
            await this.until_state(uid, PodState.ENROLLED)
        this.source.set(pod_of(one, phase="Succeeded", addresses=()))
        status = await this.until_state("uid-0", PodState.NOT_IN_MESH)
        assert status.reason == "it has ended (Succeeded)"
        await this.until(lambda: len(this.agent.status.pods) == 1)
        assert this.ztunnel.listeners == {}
        assert this.agent._probes.addresses == {}
        # And a pod of that name comes again.
        this.source.set(pod_of(one, uid="again"))
        await this.until_state("again", PodState.ENROLLED)


async def test_a_pod_that_is_deleted_in_the_middle_of_being_enrolled_leaves_nothing(
    cluster: Cluster, tmp_path: Path
) -> None:
    one, other, _ = cluster.pods
    async with node(cluster, tmp_path, pod_of(other)) as this:
        await this.until_state("uid-1", PodState.ENROLLED)
        this.ztunnel.hold = trio.Event()
        this.source.set(pod_of(other), pod_of(one))
        await this.until(lambda: "add uid-0" in this.ztunnel.calls)
        this.source.set(pod_of(other))
        this.ztunnel.hold.set()
        await this.until(lambda: [status.uid for status in this.agent.status.pods] == ["uid-1"])
        assert this.ztunnel.calls == ["add uid-1", "add uid-0", "delete uid-0"]
        assert list(this.ztunnel.listeners) == ["uid-1"]
        assert this.agent._probes.addresses == dict.fromkeys(pod_of(other).addresses, "uid-1")
        assert this.agent._services.claims == {other.namespace.identity: "uid-1"}
        assert tables(other.namespace) == [TABLE]


async def test_the_status_can_be_read_from_outside(cluster: Cluster, tmp_path: Path) -> None:
    annotations = {"ambient.istio.io/dns-capture": "perhaps"}
    pod = pod_of(cluster.pods[0], annotations=annotations)
    async with node(cluster, tmp_path, pod, pod) as this:
        await this.until_state("uid-0", PodState.ENROLLED)
        with trio.fail_after(30):
            while read_status(tmp_path) != this.agent.status:
                await trio.sleep(0.02)
        status = read_status(tmp_path)
        assert (status.ztunnels, status.synchronised, status.host_rules) == (1, True, "")
        [found] = status.pods
        assert found.warnings == (
            "annotation ambient.istio.io/dns-capture is 'perhaps', neither true nor false; ignored",
        )
    (tmp_path / "agent-status.json").write_text("{}")
    with pytest.raises(ValueError, match="no status of a node agent"):
        read_status(tmp_path)


async def test_the_mark_of_istio(cluster: Cluster, tmp_path: Path) -> None:
    config = AgentConfig(tmp_path, tmp_path / "zds.sock", istio_mark=True)
    agent = Agent(config)
    agent._host.close()
    assert agent.mark == 1337
    assert CaptureOptions.istio().mask == 0xFFF
    assert not (tmp_path / "packet-mark").exists()


def test_the_host_is_the_namespace_that_the_agent_runs_in(tmp_path: Path) -> None:
    agent = Agent(AgentConfig(tmp_path, tmp_path / "zds.sock"))
    with NetworkNamespace.current() as here, netns.create() as other:
        assert agent._host.identity == here.identity
        assert agent._host.identity != other.identity
    agent._host.close()
