"""A pod's start on a node: the CNI plugin's program, the agent, a ztunnel, real namespaces."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from daemonset.agent import starting
from daemonset.agent.agent import Agent, AgentConfig
from daemonset.agent.book_source import BookSource
from daemonset.agent.capture_rules import TABLE
from daemonset.agent.cni_server import CniServer
from daemonset.agent.pod_book import PodBook
from daemonset.agent.proc_netns import ProcResolver
from daemonset.agent.starting import Starting
from daemonset.agent.status import PodState
from tests.daemonset.agent.test_agent import Ztunnel, tables
from tests.daemonset.agent.test_pod_book import AMBIENT, pod
from tests.support.cni import Outcome, call
from tests.support.namespaces import Cluster
from tests.support.namespaces import Pod as PodNamespace
from ztunnel.zds.client import ZdsClient

pytestmark = pytest.mark.root
UID = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(2) as made:
        yield made


class Node:
    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.book = PodBook()
        self.source = BookSource(self.book)
        host = f"/proc/{os.getpid()}/fd/{cluster.host.fd}"
        self.zds = folder / "zds.sock"
        self.agent = Agent(AgentConfig(folder, self.zds, host_netns=host), ProcResolver())
        self.server = CniServer(folder / "cni.sock", Starting(self.source, self.agent).answer)
        self.ztunnel = Ztunnel()
        self.ztunnel.mark = self.agent.mark

    async def call(
        self, command: str, sandbox: PodNamespace, *, address: str = "", **others: Any
    ) -> Outcome:
        addresses = [address] if address else [f"{sandbox.v4}/24", f"{sandbox.v6}/64"]
        configuration = {
            "cniVersion": "1.0.0",
            "name": "test",
            "agentSocket": str(self.server.path),
            "patienceSeconds": 60,
            "prevResult": {"ips": [{"address": each} for each in addresses]},
            **others,
        }
        netns = f"/proc/{os.getpid()}/fd/{sandbox.namespace.fd}"
        return await trio.to_thread.run_sync(partial(call, command, configuration, netns=netns))


@asynccontextmanager
async def node(cluster: Cluster, folder: Path, *, ztunnel: bool = True) -> AsyncIterator[Node]:
    made = Node(cluster, folder)
    made.source.complete()
    async with trio.open_nursery() as nursery:
        await nursery.start(made.agent.run, made.source)
        await nursery.start(made.server.run)
        if ztunnel:
            nursery.start_soon(ZdsClient(made.ztunnel, made.zds).run)
        yield made
        nursery.cancel_scope.cancel()
    made.ztunnel.close()


async def test_a_pod_is_captured_before_it_starts(cluster: Cluster, tmp_path: Path) -> None:
    one, other = cluster.pods
    async with node(cluster, tmp_path) as this:
        # The kubelet has made the sandbox before the watch has told us of the pod.
        outcome: list[Outcome] = []

        async def add() -> None:
            outcome.append(await this.call("ADD", one))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(add)
            await trio.sleep(0.05)
            this.book.put_namespace("shop", AMBIENT)
            this.book.put_pod(pod(UID, name="web"))
            this.source.changed()
        assert outcome[0].status == 0, outcome
        assert TABLE in tables(one.namespace)
        assert list(this.ztunnel.listeners) == [UID]
        assert (await this.call("CHECK", one)).status == 0
        # The same pod, its sandbox made again in another namespace.
        assert (await this.call("ADD", other)).status == 0
        assert TABLE in tables(other.namespace)
        assert this.ztunnel.calls.count(f"add {UID}") == 2


async def test_a_pod_outside_the_mesh_starts_at_once(cluster: Cluster, tmp_path: Path) -> None:
    one, _ = cluster.pods
    async with node(cluster, tmp_path, ztunnel=False) as this:
        this.book.put_namespace("shop", {})
        this.book.put_pod(pod(UID, name="web"))
        this.source.changed()
        assert (await this.call("ADD", one)).status == 0
        assert tables(one.namespace) == []


async def test_without_ztunnel_the_pod_waits_and_says_why(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = cluster.pods
    monkeypatch.setattr(starting, "PATIENCE", 1.0)
    async with node(cluster, tmp_path, ztunnel=False) as this:
        this.book.put_namespace("shop", AMBIENT)
        this.book.put_pod(pod(UID, name="web"))
        this.source.changed()
        outcome = await this.call("ADD", one)
        assert (outcome.status, outcome.json["code"]) == (1, 100)
        assert "no ztunnel is connected" in outcome.json["details"]
        status = this.agent.pod_status(UID)
        assert status is not None
        assert status.state is PodState.PENDING
        assert TABLE in tables(one.namespace), "what it would send is refused already"


async def test_a_namespace_that_is_not_the_pods_is_refused(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = cluster.pods
    monkeypatch.setattr(starting, "PATIENCE", 1.0)
    async with node(cluster, tmp_path) as this:
        this.book.put_namespace("shop", AMBIENT)
        this.book.put_pod(pod(UID, name="web"))
        this.source.changed()
        outcome = await this.call("ADD", one, address=f"{other.v4}/24")
        assert (outcome.status, outcome.json["code"]) == (1, 100)
        assert "is not the namespace of shop/web" in outcome.json["details"]
        assert tables(one.namespace) == []


async def test_a_pod_that_the_api_does_not_know_waits(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "PATIENCE", 0.5)
    async with node(cluster, tmp_path) as this:
        outcome = await this.call("ADD", cluster.pods[0])
        assert (outcome.status, outcome.json["code"]) == (1, 100)
        assert "has not told the node agent of this pod" in outcome.json["details"]


async def test_a_pod_that_is_deleted_while_it_starts_holds_up_nobody(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The kubelet waits for the plugin's answer before it can take the sandbox away again."""
    one, other = cluster.pods
    async with node(cluster, tmp_path) as this:
        this.book.put_namespace("shop", AMBIENT)
        this.book.put_pod(pod(UID, name="web"))
        this.source.changed()
        assert (await this.call("ADD", one)).status == 0
        # Its sandbox is made again, and ztunnel takes its time; then the pod is deleted.
        this.ztunnel.hold = trio.Event()
        this.ztunnel.calls.clear()
        outcome: list[Outcome] = []

        async def add() -> None:
            outcome.append(await this.call("ADD", other))

        with trio.fail_after(starting.PATIENCE - 5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(add)
                while f"add {UID}" not in this.ztunnel.calls:
                    await trio.sleep(0.01)
                this.book.drop_pod(UID)
                this.source.changed()
        assert (outcome[0].status, outcome[0].json["code"]) == (1, 100)
        assert outcome[0].json["details"] == "the pod has been deleted"
        this.ztunnel.hold.set()
        with trio.fail_after(10):
            while this.agent.pod_status(UID) is not None:
                await this.agent.next_change().wait()
        assert this.ztunnel.listeners == {}
