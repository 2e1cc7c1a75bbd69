"""The node agent below a real API server; pods are network namespaces that the test made."""

import contextlib
import dataclasses
import http.client
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from daemonset.agent import host, report_writer
from daemonset.agent.agent import AgentConfig
from daemonset.agent.capture_rules import TABLE
from daemonset.agent.cni_install import CniFolders
from daemonset.agent.host_stops import HostStops
from daemonset.agent.node_agent import NodeAgent, NodeAgentConfig
from daemonset.agent.owners import NotAloneError
from daemonset.agent.private_socket import listening
from daemonset.agent.relief import may_end
from daemonset.agent.report import REPORT, WITHDRAW, NodeReport, read_report
from daemonset.agent.status import read_status
from daemonset.agent.stops import Uncaptured
from daemonset.kube.client import KubeClient
from daemonset.kube.config import from_kubeconfig
from tests.daemonset.agent.test_agent import Ztunnel, tables
from tests.daemonset.agent.test_proc_netns import Proc
from tests.support.cni import Outcome, call
from tests.support.kube.cluster import Cluster as Api
from tests.support.kube.cluster import free_ports
from tests.support.namespaces import Cluster
from tests.support.namespaces import Pod as PodNamespace
from ztunnel.linux.nft_tables import address_bytes
from ztunnel.linux.nftables import Nftables
from ztunnel.zds.client import ZdsClient

pytestmark = pytest.mark.root
REDIRECTION = "ambient.istio.io/redirection"
MODE = "istio.io/dataplane-mode"
LOST = "10.9.9.9"
KINDNET = {"cniVersion": "0.4.0", "name": "k", "plugins": [{"type": "ptp"}]}


@pytest.fixture(autouse=True)
def numbers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports do not wait until more pods have come or gone."""
    monkeypatch.setattr(report_writer, "COUNTS_PAUSE", 0.2)


@pytest.fixture
def api(cluster: Api) -> Api:
    return cluster


@pytest.fixture
def network() -> Iterator[Cluster]:
    with Cluster(3) as made:
        yield made


class Node:
    """One node of the API, with an agent whose /proc and file system the test made."""

    def __init__(self, api: Api, network: Cluster, folder: Path, name: str) -> None:
        self.api, self.folder, self.name = api, folder, name
        self.proc = Proc(folder / "proc")
        (folder / "net.d").mkdir(parents=True)
        (folder / "bin").mkdir()
        (folder / "plugin").write_bytes(b"#!/bin/false\n")
        (folder / "net.d/10-k.conflist").write_text(json.dumps(KINDNET))
        self.zds = folder / "zds.sock"
        host = f"/proc/{os.getpid()}/fd/{network.host.fd}"
        self.config = NodeAgentConfig(
            node=name,
            agent=AgentConfig(folder / "run", self.zds, host_netns=host, proc=folder / "proc"),
            cni=CniFolders(folder / "plugin", folder / "bin", folder / "net.d"),
            state_dir=folder / "state",
            excluded_from_plugin=("kube-system", "ambient-system"),
            health_port=0,
            metrics_port=0,
            agent_ns="default",
            daemon_set="ambient-agent",
            pod=f"agent-{name}"[:60].strip("-"),
        )
        self.ztunnel = Ztunnel()
        self.agent: NodeAgent | None = None

    def create(self, name: str, namespace: str, **labels: str) -> dict[str, Any]:
        """A pod that the scheduler has put onto this node."""
        made: dict[str, Any] = self.api.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": namespace, "labels": labels},
                "spec": {"nodeName": self.name, "containers": [{"name": "a", "image": "a"}]},
            }
        )
        return made

    def run(self, pod: dict[str, Any], sandbox: PodNamespace, pid: int) -> None:
        """What the kubelet does: a process, and an address in the status."""
        self.proc.add(pid, pod["metadata"]["uid"], sandbox.namespace, pid)
        addresses = [{"ip": sandbox.v4}, {"ip": sandbox.v6}]
        status = {"phase": "Running", "podIP": sandbox.v4, "podIPs": addresses}
        self.api.set_status(pod, status)

    def is_chained(self) -> bool:
        """Is the plugin there, and the last of the chain?"""
        chain = json.loads((self.folder / "net.d/10-k.conflist").read_text())["plugins"]
        types = [each["type"] for each in chain]
        return types == ["ptp", "ambient-cni"] and (self.folder / "bin/ambient-cni").exists()

    def annotation(self, pod: dict[str, Any]) -> str | None:
        found: dict[str, Any] = self.api.call("GET", self.api.path(pod))
        value: str | None = found["metadata"].get("annotations", {}).get(REDIRECTION)
        return value

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(30):
            while not await trio.to_thread.run_sync(condition):
                await trio.sleep(0.02)

    async def until_annotated(self, pod: dict[str, Any], value: str | None) -> None:
        await self.until(lambda: self.annotation(pod) == value)

    async def add(self, pod: dict[str, Any], sandbox: PodNamespace, patience: int = 60) -> Outcome:
        """What the container runtime does when the pod starts."""
        meta = pod["metadata"]
        configuration = {
            "cniVersion": "0.4.0",
            "name": "k",
            "agentSocket": str(self.folder / "run/cni.sock"),
            "unenrolledNamespacesFile": str(self.folder / "state/unenrolled-namespaces"),
            "patienceSeconds": patience,
            "prevResult": {"ips": [{"address": f"{sandbox.v4}/24"}]},
        }
        arguments = (
            f"K8S_POD_NAMESPACE={meta['namespace']};K8S_POD_NAME={meta['name']};"
            f"K8S_POD_UID={meta['uid']}"
        )
        netns = f"/proc/{os.getpid()}/fd/{sandbox.namespace.fd}"
        return await trio.to_thread.run_sync(
            partial(call, "ADD", configuration, arguments=arguments, netns=netns)
        )


@asynccontextmanager
async def running(node: Node) -> AsyncIterator[trio.Event]:
    """The agent, with a ztunnel below it; ended as SIGTERM ends it."""
    client = KubeClient(from_kubeconfig(str(node.api.kubeconfig), None))
    node.agent = agent = NodeAgent(node.config, client)
    node.ztunnel.mark = agent.mark
    stop, ended = trio.Event(), trio.Event()

    async def run() -> None:
        await agent.run(stop)
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        nursery.start_soon(ZdsClient(node.ztunnel, node.zds).run)
        yield ended
        stop.set()
        with trio.fail_after(30):
            await ended.wait()
        nursery.cancel_scope.cancel()
    await client.forget_idle()


@pytest.fixture
def node(
    api: Api, network: Cluster, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Node]:
    name = request.node.name.replace("_", "-").replace("[", "-").replace("]", "")[-50:].strip("-")
    made = Node(api, network, tmp_path, name)
    yield made
    made.ztunnel.close()
    for each in made.proc.namespaces[:1]:
        each.close()


def addresses(sandbox: PodNamespace) -> tuple[str, str]:
    return sandbox.v4, sandbox.v6


def label(api: Api, namespace: str, value: str | None) -> None:
    set_label(api, namespace, MODE, value)


async def test_running_pods_join_and_leave_by_the_label_of_their_namespace(
    api: Api, node: Node, network: Cluster
) -> None:
    api.namespace("join")
    pod, other = node.create("web", "join"), node.create("out", "join", **{MODE: "none"})
    node.run(pod, network.pods[0], 300)
    node.run(other, network.pods[1], 301)
    async with running(node):
        listed = node.folder / "state/unenrolled-namespaces"
        await node.until(lambda: listed.exists() and "join" in listed.read_text().split())
        assert tables(network.pods[0].namespace) == []
        label(api, "join", "ambient")
        await node.until_annotated(pod, "enabled")
        assert TABLE in tables(network.pods[0].namespace)
        assert list(node.ztunnel.listeners) == [pod["metadata"]["uid"]]
        assert tables(network.pods[1].namespace) == []
        await node.until(lambda: "join" not in listed.read_text().split())
        label(api, "join", None)
        # Others are told first; then the pod leaves.
        await node.until_annotated(pod, None)
        await node.until(lambda: tables(network.pods[0].namespace) == [])
        assert node.ztunnel.listeners == {}


async def test_a_new_pod_is_captured_before_it_starts(
    api: Api, node: Node, network: Cluster
) -> None:
    api.namespace("fresh", **{MODE: "ambient"})
    async with running(node):
        await node.until(node.is_chained)
        pod = node.create("web", "fresh")
        # It has no address in the API, and no process of its own.
        outcome = await node.add(pod, network.pods[0])
        assert outcome.status == 0, outcome
        assert TABLE in tables(network.pods[0].namespace)
        await node.until_annotated(pod, "enabled")
        api.delete(pod)
        await node.until(lambda: node.ztunnel.listeners == {})


async def test_an_agent_that_is_replaced_leaves_everything_in_place(
    api: Api, node: Node, network: Cluster
) -> None:
    api.namespace("kept", **{MODE: "ambient"})
    api.namespace("plain")
    daemon_set(api)
    pod = node.create("web", "kept")
    node.run(pod, network.pods[0], 300)
    async with running(node):
        await node.until_annotated(pod, "enabled")
        await node.until(node.is_chained)
    assert TABLE in tables(network.pods[0].namespace)
    assert node.annotation(pod) == "enabled"
    # Nobody is there now: pods of the mesh wait, others do not.
    assert (await node.add(node.create("next", "kept"), network.pods[1], 0)).json["code"] == 11
    assert (await node.add(node.create("next", "plain"), network.pods[1], 0)).status == 0
    async with running(node):
        await node.until(lambda: len(node.ztunnel.listeners) == 1)
        assert node.annotation(pod) == "enabled"


async def test_what_has_changed_while_no_agent_watched_is_made_up_for(
    api: Api, node: Node, network: Cluster
) -> None:
    """Exactly those who are to be in the mesh are, whatever was missed meanwhile."""
    api.namespace("comes")
    api.namespace("goes", **{MODE: "ambient"})
    api.namespace("stays", **{MODE: "ambient"})
    daemon_set(api)
    comes, goes, stays = pods = [node.create("web", name) for name in ("comes", "goes", "stays")]
    for number, (pod, sandbox) in enumerate(zip(pods, network.pods, strict=True)):
        node.run(pod, sandbox, 300 + number)
    deleted = node.create("deleted", "stays")
    async with running(node):
        await node.until_annotated(goes, "enabled")
        await node.until_annotated(stays, "enabled")
        await node.until(node.is_chained)
    node.ztunnel.close()  # it was started anew as well
    node.ztunnel.listeners.clear()
    label(api, "comes", "ambient")
    label(api, "goes", None)
    api.delete(deleted)
    # Somebody's tool for firewalls, which knows nothing of us.
    for namespace in (network.pods[2].namespace, network.host):
        with Nftables(namespace) as nftables:
            for table in nftables.table_names():
                nftables.delete(table)
    async with running(node):
        await node.until_annotated(comes, "enabled")
        await node.until_annotated(goes, None)
        await node.until_annotated(stays, "enabled")
        uids = {pod["metadata"]["uid"] for pod in (comes, stays)}
        await node.until(lambda: node.ztunnel.listeners.keys() == uids)
        await node.until(lambda: tables(network.pods[1].namespace) == [])
        for sandbox in (network.pods[0], network.pods[2]):
            assert TABLE in tables(sandbox.namespace)
        probed = {address for pod in (0, 2) for address in addresses(network.pods[pod])}
        with Nftables(network.host) as nftables:
            found = [
                element.key
                for name in (host.SET_V4, host.SET_V6)
                for element in nftables.elements(host.TABLE, name)
            ]
        assert set(found) == set(map(address_bytes, probed))
    # Those without a trouble that lasts are not said to have one.
    for name in ("comes", "goes"):
        assert api.call("GET", f"/api/v1/namespaces/{name}/events")["items"] == []


async def test_an_agent_that_is_uninstalled_leaves_nothing(
    api: Api, node: Node, network: Cluster
) -> None:
    api.namespace("over", **{MODE: "ambient"})
    pod = node.create("web", "over")
    node.run(pod, network.pods[0], 300)
    daemon_set(api)
    async with running(node):
        await node.until_annotated(pod, "enabled")
        await node.until(node.is_chained)
        api.call("DELETE", "/apis/apps/v1/namespaces/default/daemonsets/ambient-agent")
    assert tables(network.pods[0].namespace) == []
    assert tables(network.host) == []
    assert not (node.folder / "bin/ambient-cni").exists()
    assert json.loads((node.folder / "net.d/10-k.conflist").read_text()) == KINDNET
    await node.until_annotated(pod, None)


async def test_an_agent_whose_namespace_is_being_deleted_takes_the_mesh_off_at_once(
    api: Api, node: Node, network: Cluster
) -> None:
    """Before anybody tells it to end: its rights and its ztunnel go within moments."""
    api.namespace("doomed", **{MODE: "ambient"})
    api.namespace("agents")
    node.config = dataclasses.replace(node.config, agent_ns="agents", pod="")
    pod, other = node.create("web", "doomed"), node.create("next", "doomed")
    node.run(pod, network.pods[0], 300)
    node.run(other, network.pods[1], 301)
    run_dir = node.config.agent.run_dir
    async with running(node) as ended:
        for each in (pod, other):
            await node.until_annotated(each, "enabled")
        await node.until(node.is_chained)
        assert not read_status(run_dir).leaving
        api.call("DELETE", "/api/v1/namespaces/agents")
        for each in (pod, other):
            await node.until_annotated(each, None)
        await node.until(lambda: tables(network.pods[0].namespace) == [])
        await node.until(lambda: may_end(read_status(run_dir), 0.0))
        assert read_status(run_dir).leaving
        assert tables(network.host) == []
        assert not (node.folder / "bin/ambient-cni").exists()
        assert not ended.is_set()
    assert tables(network.pods[1].namespace) == []


async def test_a_pod_that_cannot_be_captured_is_told_of(
    api: Api, node: Node, network: Cluster
) -> None:
    api.namespace("lost", **{MODE: "ambient"})
    pod = node.create("web", "lost")
    api.set_status(pod, {"phase": "Running", "podIP": LOST, "podIPs": [{"ip": LOST}]})
    async with running(node):
        await node.until(lambda: is_told(api, "lost", "no process of lost/web"))
        assert node.agent is not None
        metrics = node.agent.metrics().decode()
        assert 'mesh_bypass_possible{namespace="lost",pod="web",reason="the node lets n' in metrics
        assert 'traffic="stopped"} 1.0' in metrics
        assert node.annotation(pod) is None
        assert HostStops(network.host).uids() == {pod["metadata"]["uid"]}
        # Its address is given to a pod that is not in the mesh, which the node agent is told of.
        api.namespace("found")
        other = node.create("next", "found")
        api.set_status(other, {"phase": "Running", "podIP": LOST, "podIPs": [{"ip": LOST}]})
        await node.until(lambda: not HostStops(network.host).is_present())
        api.delete(other)
        await node.until(HostStops(network.host).is_present)
        api.delete(pod)
        await node.until(lambda: not HostStops(network.host).is_present())


async def test_a_pod_that_cannot_be_captured_goes_on_where_that_is_permitted(
    api: Api, node: Node, network: Cluster
) -> None:
    api.namespace("open", **{MODE: "ambient"})
    pod = node.create("web", "open")
    api.set_status(pod, {"phase": "Running", "podIP": LOST, "podIPs": [{"ip": LOST}]})
    permitting = dataclasses.replace(node.config.agent, uncaptured=Uncaptured.PERMIT)
    node.config = dataclasses.replace(node.config, agent=permitting)
    async with running(node):
        await node.until(lambda: is_told(api, "open", "AMBIENT_UNCAPTURED is permit"))
        assert node.agent is not None
        assert 'traffic="passes"} 1.0' in node.agent.metrics().decode()
        assert not HostStops(network.host).is_present()


def is_told(api: Api, namespace: str, words: str) -> bool:
    """Whether an event there says so."""
    events = api.call("GET", f"/api/v1/namespaces/{namespace}/events")["items"]
    return any(words in event["message"] for event in events)


def report(api: Api, node: Node) -> NodeReport:
    pod = api.call("GET", f"/api/v1/namespaces/default/pods/{node.config.pod}")
    return read_report(pod["metadata"].get("annotations", {}).get(REPORT, "{}"))


def reported(api: Api, node: Node, wanted: Callable[[NodeReport], bool]) -> bool:
    try:
        return wanted(report(api, node))
    except ValueError:
        return False  # there is none yet


def asked(port: int, path: str) -> tuple[int, str]:
    """Status and body, as a probe of the kubelet gets them; 0 when nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError as error:
            return 0, str(error)


async def test_what_keeps_pods_from_starting_is_no_reason_to_restart_the_agent(
    api: Api, node: Node
) -> None:
    configuration = node.folder / "net.d/10-k.conflist"
    text = configuration.read_text()
    configuration.unlink()
    [port] = free_ports(1)
    node.config = dataclasses.replace(node.config, health_port=port)
    async with running(node):
        await node.until(lambda: "no network configuration" in asked(port, "/readyz")[1])
        for path, status in (("/readyz", 503), ("/healthz", 200)):
            assert (await trio.to_thread.run_sync(asked, port, path))[0] == status
        configuration.write_text(text)
        await node.until(lambda: asked(port, "/readyz") == (200, "ready\n"))


async def test_the_agent_reports_of_its_node_in_its_own_pod(
    api: Api, node: Node, network: Cluster
) -> None:
    api.namespace("told", **{MODE: "ambient"})
    pod = node.create("web", "told")
    node.run(pod, network.pods[0], 300)
    node.create(node.config.pod, "default")
    async with running(node):
        await node.until(lambda: reported(api, node, lambda found: found.pods.get("enrolled") == 1))
        found = report(api, node)
        assert {one.name for one in found.features if one.needed and not one.works} == set()
        assert len(found.features) > 5
        assert found.chain is not None
        assert found.chain.plugins == ("ptp", "ambient-cni")
        assert (found.ztunnels, found.synchronised, found.withdrawn) == (1, True, "")


async def test_a_label_of_the_agents_namespace_takes_the_mesh_off_the_node(
    api: Api, node: Node, network: Cluster
) -> None:
    api.namespace("leaving", **{MODE: "ambient"})
    api.namespace("default")
    pod = node.create("web", "leaving")
    node.run(pod, network.pods[0], 300)
    node.create(node.config.pod, "default")
    try:
        async with running(node) as ended:
            await node.until_annotated(pod, "enabled")
            await node.until(node.is_chained)
            set_label(api, "default", WITHDRAW, "now")
            await node.until(lambda: reported(api, node, lambda found: found.withdrawn == "now"))
            assert report(api, node).left == ()
            assert tables(network.pods[0].namespace) == []
            assert node.annotation(pod) is None
            assert not (node.folder / "bin/ambient-cni").exists()
            assert json.loads((node.folder / "net.d/10-k.conflist").read_text()) == KINDNET
            assert node.ztunnel.listeners == {}
            # New pods start without the mesh, and are left alone.
            other = node.create("next", "leaving")
            node.run(other, network.pods[1], 301)
            await node.until(
                lambda: reported(api, node, lambda found: found.pods.get("not in the mesh") == 3)
            )
            assert tables(network.pods[1].namespace) == []
        # The next agent finds the label before it captures anybody.
        set_label(api, "default", WITHDRAW, "then")
        async with running(node) as ended:
            await node.until(lambda: reported(api, node, lambda found: found.withdrawn == "then"))
            assert tables(network.pods[0].namespace) == []
            assert not (node.folder / "bin/ambient-cni").exists()
            set_label(api, "default", WITHDRAW, None)
            with trio.fail_after(30):
                await ended.wait()
        async with running(node):
            await node.until_annotated(pod, "enabled")
    finally:
        set_label(api, "default", WITHDRAW, None)


async def test_pods_of_another_revision_are_left_alone(
    api: Api, node: Node, network: Cluster
) -> None:
    api.namespace("theirs", **{MODE: "ambient", "istio.io/rev": "canary"})
    pod = node.create("web", "theirs")
    mine = node.create("mine", "theirs", **{"istio.io/rev": "default"})
    node.run(pod, network.pods[0], 300)
    node.run(mine, network.pods[1], 301)
    async with running(node):
        await node.until_annotated(mine, "enabled")
        assert tables(network.pods[0].namespace) == []
        assert node.annotation(pod) is None


async def refusal(node: Node) -> str:
    """What an agent says that does not begin."""
    client = KubeClient(from_kubeconfig(str(node.api.kubeconfig), None))
    try:
        with trio.fail_after(30), pytest.raises(NotAloneError) as caught:
            config = dataclasses.replace(node.config, patience=0.0)
            await NodeAgent(config, client).run(trio.Event())
    finally:
        await client.forget_idle()
    return str(caught.value)


async def test_two_agents_do_not_work_on_one_node(api: Api, node: Node) -> None:
    async with running(node):
        await node.until(lambda: node.zds.exists())
        assert f"pod default/{node.config.pod}" in await refusal(node)


async def test_an_agent_does_not_begin_beside_another_owner_of_the_mesh(
    api: Api, node: Node, network: Cluster
) -> None:
    with listening(node.zds, socket.SOCK_SEQPACKET):
        assert "somebody else serves pods to ztunnel" in await refusal(node)
    api.namespace("istio-system")
    theirs = node.create("istio-cni-node-x", "istio-system")
    theirs["spec"]["volumes"] = [
        {"name": "a", "hostPath": {"path": str(node.zds.parent)}},
        {"name": "b", "hostPath": {"path": "/etc/cni/net.d"}},
    ]
    api.delete(theirs)
    for field in ("uid", "resourceVersion", "managedFields", "creationTimestamp"):
        theirs["metadata"].pop(field, None)
    theirs["spec"]["containers"] = [{"name": "a", "image": "a"}]
    api.apply(theirs)
    assert "istio-system/istio-cni-node-x" in await refusal(node)
    assert not node.zds.exists()
    assert tables(network.host) == []


def set_label(api: Api, namespace: str, name: str, value: str | None) -> None:
    api.call(
        "PATCH",
        f"/api/v1/namespaces/{namespace}",
        {"metadata": {"labels": {name: value}}},
        content_type="application/merge-patch+json",
    )


def daemon_set(api: Api) -> None:
    labels = {"app": "ambient-agent"}
    api.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": "ambient-agent", "namespace": "default"},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [{"name": "a", "image": "a"}]},
                },
            },
        }
    )
