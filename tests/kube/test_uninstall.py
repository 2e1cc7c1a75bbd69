"""`ambient uninstall` with a real API server and a real node agent."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from daemonset.agent.report import WITHDRAW
from daemonset.cli import main
from daemonset.cluster.removal import KINDS_OF_OURS
from tests.daemonset.agent.test_agent import tables
from tests.kube.test_node_agent import KINDNET, Node, running
from tests.support.kube.cluster import ApiFailure, Json
from tests.support.kube.cluster import Cluster as Api
from tests.support.kube.manifests import MANIFESTS, install, read_base
from tests.support.namespaces import Cluster

pytestmark = pytest.mark.root
SYSTEM = "ambient-system"
MODE = "istio.io/dataplane-mode"
DEFINITION = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture(scope="module")
def installed(cluster: Api) -> Api:
    lasting = read_base(MANIFESTS / "lasting")
    definitions = [item for item in lasting if item["kind"] == "CustomResourceDefinition"]
    for item in lasting:
        if item not in definitions:
            cluster.apply(item)
    install(cluster, definitions)
    for item in sorted(read_base(MANIFESTS / "base"), key=lambda one: one["kind"] != "Namespace"):
        cluster.apply(item)
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "istio-ca-secret"}}
    secret["metadata"]["namespace"] = "istio-system"  # type: ignore[index]
    cluster.apply(secret)
    cluster.namespace("shop", **{MODE: "ambient"})
    roots = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "istio-ca-root-cert",
            "namespace": "shop",
            "labels": {"app.kubernetes.io/managed-by": "ambientd"},
        },
    }
    cluster.apply(roots)
    return cluster


@pytest.fixture
def network() -> Iterator[Cluster]:
    with Cluster(2) as made:
        yield made


@pytest.fixture
def node(installed: Api, network: Cluster, tmp_path: Path) -> Iterator[Node]:
    made = Node(installed, network, tmp_path, "node-a")
    made.config = dataclasses.replace(made.config, agent_ns=SYSTEM, pod="ambient-agent-a")
    yield made
    made.ztunnel.close()
    for each in made.proc.namespaces[:1]:
        each.close()


@asynccontextmanager
async def at_work(node: Node, network: Cluster) -> AsyncIterator[Json]:
    """The agent with its pod, and a captured pod of a user's."""
    api = node.api
    labels = {"app": "ambient-agent", "app.kubernetes.io/part-of": "ambientd"}
    agent = node.create("ambient-agent-a", SYSTEM, **labels)
    api.set_status(agent, {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})
    pod = node.create("web", "shop")
    node.run(pod, network.pods[0], 300)
    async with running(node):
        await node.until_annotated(pod, "enabled")
        await node.until(node.is_chained)
        yield pod


async def uninstall(*words: str) -> int:
    return await trio.to_thread.run_sync(functools.partial(main, ["uninstall", "--yes", *words]))


async def test_it_stops_before_anything_is_deleted_and_can_be_taken_back(
    node: Node,
    network: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    api = node.api
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig))
    lost = api.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "lost",
                "namespace": "shop",
                "annotations": {"ambient.istio.io/redirection": "enabled"},
            },
            "spec": {"nodeName": "node-b", "containers": [{"name": "a", "image": "a"}]},
        }
    )
    async with at_work(node, network) as pod:
        assert await uninstall("--timeout", "10") == 1
        said = capsys.readouterr()
        assert "node node-a: nothing of the mesh is left" in said.out
        assert "node node-b: it has captured pods and no agent" in said.err
        assert "nothing was deleted" in said.err
        assert tables(network.pods[0].namespace) == []
        assert api.call("GET", f"/apis/apps/v1/namespaces/{SYSTEM}/daemonsets/ambient-agent")
        assert await uninstall("--cancel") == 0
        labels = api.call("GET", f"/api/v1/namespaces/{SYSTEM}")["metadata"]["labels"]
        assert WITHDRAW not in labels
    async with running(node):  # as the kubelet starts it again
        await node.until_annotated(pod, "enabled")
    for item in (lost, pod):
        api.delete(item)
    api.call("DELETE", f"/api/v1/namespaces/{SYSTEM}/pods/ambient-agent-a?gracePeriodSeconds=0")


async def test_it_wants_to_be_told_yes_and_to_be_allowed(
    installed: Api,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(installed.kubeconfig))
    assert await trio.to_thread.run_sync(main, ["uninstall"]) == 1
    assert "say --yes" in capsys.readouterr().err
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "looks"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "looks"
        },
        "subjects": [{"kind": "ServiceAccount", "name": "looks", "namespace": "shop"}],
    }  # fmt: skip
    installed.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "looks"},
            "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["get", "list"]}],
        }
    )
    installed.apply(role)
    account = {"name": "looks", "namespace": "shop"}
    installed.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
    config = json.loads(installed.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": installed.token("shop", "looks")}
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    assert await uninstall() == 1
    said = capsys.readouterr().err
    assert "you may not patch namespaces; nothing was changed" in said
    assert "you may not delete daemonsets.apps in ambient-system" in said
    assert installed.call("GET", f"/apis/apps/v1/namespaces/{SYSTEM}/daemonsets/ambient-agent")


async def collect_garbage(node: Node) -> None:
    """The part of the controller manager: pods go with what made them."""

    def look() -> None:
        for plural, name in (("daemonsets", "ambient-agent"),):
            path = f"/apis/apps/v1/namespaces/{SYSTEM}/{plural}/{name}"
            try:
                node.api.call("GET", path)
            except ApiFailure:
                pods = f"/api/v1/namespaces/{SYSTEM}/pods"
                for pod in node.api.call("GET", pods)["items"]:
                    where = f"{pods}/{pod['metadata']['name']}?gracePeriodSeconds=0"
                    node.api.call("DELETE", where)

    while True:
        await trio.to_thread.run_sync(look)
        await trio.sleep(0.2)


async def test_pods_leave_first_and_then_everything_goes(
    node: Node,
    network: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    api = node.api
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig))
    async with at_work(node, network) as pod, trio.open_nursery() as nursery:
        nursery.start_soon(collect_garbage, node)
        assert await uninstall("--timeout", "60") == 0
        nursery.cancel_scope.cancel()
    said = capsys.readouterr().out
    lines = said.splitlines()
    left = next(n for n, line in enumerate(lines) if "nothing of the mesh is left" in line)
    deleted = [n for n, line in enumerate(lines) if line.startswith("deleted")]
    assert left < min(deleted), said
    assert "deleted daemonsets ambient-system/ambient-agent" in lines[min(deleted)]
    assert tables(network.pods[0].namespace) == []
    assert tables(network.host) == []
    assert node.annotation(pod) is None
    assert json.loads((node.folder / "net.d/10-k.conflist").read_text()) == KINDNET
    for resource in KINDS_OF_OURS:
        query = "&".join(f"{name}={value}" for name, value in resource.query)
        path = resource.path(resource.versions[0])
        assert api.call("GET", f"{path}?{query}")["items"] == [], path
    meta = api.call("GET", f"/api/v1/namespaces/{SYSTEM}")["metadata"]
    assert "deletionTimestamp" in meta
    # What must stay.
    assert api.call("GET", "/api/v1/namespaces/istio-system/secrets/istio-ca-secret")
    assert len(api.call("GET", DEFINITION)["items"]) == 4
    assert api.call("GET", "/api/v1/namespaces/shop")["metadata"]["labels"][MODE] == "ambient"
    assert "istio-system/istio-ca-secret" in said
    assert "the label istio.io/dataplane-mode of shop" in said


async def test_what_others_left_behind_is_finished(
    node: Node,
    network: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After `kubectl delete -k`: the agent had no rights any more when it ended."""
    api = node.api
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig))
    pod = node.create("kept", "shop")
    node.run(pod, network.pods[0], 300)
    set_annotation(api, pod)
    assert await uninstall() == 0
    assert "took the annotation ambient.istio.io/redirection off 1 pods" in capsys.readouterr().out
    assert node.annotation(pod) is None
    assert await uninstall() == 0
    assert capsys.readouterr().out == "nothing is installed in ambient-system\n"


def set_annotation(api: Api, pod: Json) -> None:
    api.call(
        "PATCH",
        f"{api.path(pod)}/status",
        {"metadata": {"annotations": {"ambient.istio.io/redirection": "enabled"}}},
        content_type="application/merge-patch+json",
    )
