"""Each component with no other rights than its manifest's: enough, and none that it does not
use."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch
from urllib.parse import parse_qs, urlsplit

import pytest
import trio

from daemonset.agent.node_agent import NodeAgent
from daemonset.kube.client import KubeClient
from daemonset.kube.config import in_pod
from tests.kube.test_node_agent import Node
from tests.support.kube.cluster import Cluster, Json
from tests.support.kube.manifests import MANIFESTS, gateway_api, install, read_base
from tests.support.kube.objects import account, node, pod, policy, run
from tests.support.kube.plane import PATIENCE, control_plane
from tests.support.namespaces import Cluster as Network
from ztunnel.zds.client import ZdsClient

SYSTEM = "ambient-system"
Right = tuple[str, str, str]
"""API group, resource (with subresource), verb."""

in_thread = trio.to_thread.run_sync


@pytest.fixture(scope="module")
def installed(cluster: Cluster) -> Cluster:
    base = read_base(MANIFESTS / "base")
    for item in read_base(MANIFESTS / "lasting"):
        if item["kind"] == "Namespace":
            cluster.apply(item)
    install(
        cluster,
        [
            *read_base(MANIFESTS / "crds"),
            gateway_api("Gateway", "gateways", namespaced=True),
            gateway_api("GatewayClass", "gatewayclasses", namespaced=False),
        ],
    )
    [namespace] = [item for item in base if item["kind"] == "Namespace"]
    for item in (namespace, *base):
        cluster.apply(item)
    cluster.namespace("shop", **{"istio.io/dataplane-mode": "ambient"})
    account(cluster, "shop", "default")
    return cluster


def granted(name: str) -> set[Right]:
    """Everything that the roles of one component grant."""
    return {
        (group, resource, verb)
        for item in read_base(MANIFESTS / "base")
        if item["kind"] in ("Role", "ClusterRole") and item["metadata"]["name"] == name
        for rule in item["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@contextmanager
def recorded() -> Iterator[set[Right]]:
    """What is asked of the API meanwhile, in RBAC's words."""
    used: set[Right] = set()
    send = KubeClient.send

    async def record(
        self: KubeClient, connection: object, method: str, target: str, *rest: object
    ) -> object:
        used.add(right(method, target))
        return await send(self, connection, method, target, *rest)  # type: ignore[arg-type]

    with patch.object(KubeClient, "send", record):
        yield used


def right(method: str, target: str) -> Right:
    """The right that one request needs."""
    url = urlsplit(target)
    parts = url.path.strip("/").split("/")
    group, parts = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    if parts[0] == "namespaces" and len(parts) > 2:
        parts = parts[2:]
    resource, named = "/".join([parts[0], *parts[2:]]), len(parts) > 1
    if method == "GET":
        verb = "get" if named else "watch" if "watch" in parse_qs(url.query) else "list"
    else:
        verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[method]
    return group, resource, verb


def test_rights_are_told_from_requests() -> None:
    assert right("GET", "/api/v1/pods?watch=1&x=2") == ("", "pods", "watch")
    assert right("GET", "/api/v1/namespaces?limit=5") == ("", "namespaces", "list")
    assert right("GET", "/api/v1/namespaces/a/secrets/b") == ("", "secrets", "get")
    path = "/apis/security.istio.io/v1/namespaces/a/authorizationpolicies/b/status?fieldManager=c"
    assert right("PATCH", path) == ("security.istio.io", "authorizationpolicies/status", "patch")


async def test_the_control_plane_uses_all_of_its_rights_and_needs_no_others(
    installed: Cluster,
) -> None:
    waypoint = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "w", "namespace": "shop"},
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
    }
    entry = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": {"name": "e", "namespace": "shop"},
        "spec": {"hosts": ["a.example"]},
    }
    written: list[Json] = [policy("shop", "p", {"rules": [{}]}), entry, waypoint]

    def before() -> Path:
        node(installed, "node-a")
        run(installed, pod("shop", "web"), "10.0.0.1")
        for item in written:
            installed.apply(item)
        return installed.account_folder(SYSTEM, "ambient-control-plane")

    folder = await in_thread(before)
    with recorded() as used:
        async with control_plane(installed, account=folder) as running:
            token = await in_thread(installed.token, "shop", "default")
            with pytest.raises(Exception, match="not a good token"):
                await in_thread(running.backend.verifier.verify, token, 0.0)
            wanted = granted("ambient-control-plane")
            # To apply what is not there yet, "create" is needed besides, and is no request.
            wanted.discard(("", "configmaps", "create"))
            await seen(used, wanted)
        assert not used - wanted
    for item in written:
        status = installed.call("GET", installed.path(item))["status"]
        assert status["conditions"], item["kind"]


async def seen(used: set[Right], wanted: Iterable[Right]) -> None:
    with trio.move_on_after(PATIENCE):
        while not set(wanted) <= used:
            await trio.sleep(0.05)
    assert not set(wanted) - used, "is granted and not used"


@pytest.mark.root
async def test_the_node_agent_uses_all_of_its_rights_and_needs_no_others(
    installed: Cluster, tmp_path: Path
) -> None:
    with Network(2) as network:
        place = Node(installed, network, tmp_path, "node-b")
        captured, lost = place.create("taken", "shop"), place.create("lost", "shop")
        place.run(captured, network.pods[0], 300)
        gone = {"phase": "Running", "podIP": "10.9.9.9", "podIPs": [{"ip": "10.9.9.9"}]}
        installed.set_status(lost, gone)
        own = pod(SYSTEM, "ambient-agent-x", node="node-b", account="ambient-agent")
        own = installed.apply(own)
        folder = installed.account_folder(SYSTEM, "ambient-agent")
        # As the kubelet asks for it: bound to the pod, and so to the node.
        (folder / "token").write_text(installed.token(SYSTEM, "ambient-agent", pod=own))
        environment = {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(installed.port),
        }
        client = KubeClient(in_pod(environment, folder))
        place.config = dataclasses.replace(place.config, agent_ns=SYSTEM)
        agent = NodeAgent(place.config, client)
        place.ztunnel.mark = agent.mark
        stop = trio.Event()
        with recorded() as used:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(agent.run, stop)
                nursery.start_soon(ZdsClient(place.ztunnel, place.zds).run)
                await place.until_annotated(captured, "enabled")
                await place.until(partial(told, installed))
                stop.set()
                await seen(used, granted("ambient-agent"))
                nursery.cancel_scope.cancel()
        assert not used - granted("ambient-agent")
        await client.forget_idle()
        place.ztunnel.close()


def told(cluster: Cluster) -> bool:
    return bool(cluster.call("GET", "/api/v1/namespaces/shop/events")["items"])
