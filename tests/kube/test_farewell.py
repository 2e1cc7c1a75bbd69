"""`kubectl delete -k` with a real API server, agent and control plane: rights go last."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from daemonset.agent.node_agent import NodeAgent
from daemonset.control_plane.server import ControlPlane
from daemonset.control_plane.translation.enrolment import REDIRECTION
from daemonset.kube.client import KubeClient
from daemonset.kube.config import in_pod
from tests.kube.test_node_agent import Node
from tests.support.kube.binaries import find
from tests.support.kube.cluster import Cluster, Json
from tests.support.kube.manifests import MANIFESTS, install, read_base
from tests.support.kube.objects import account, pod
from tests.support.kube.plane import PATIENCE, control_plane
from tests.support.namespaces import Cluster as Network
from ztunnel.zds.client import ZdsClient

pytestmark = pytest.mark.root
SYSTEM = "ambient-system"
MANY = 100
LONG = 8
"""Seconds that the API server asks for in these tests, not to wait too long themselves."""
MERGE = "application/merge-patch+json"
RIGHT = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/ambient-agent"
EVENTS = "/api/v1/namespaces/shop/events"
WEBHOOK = "ValidatingWebhookConfiguration"
in_thread = trio.to_thread.run_sync


@pytest.fixture
def installed(cluster: Cluster) -> Cluster:
    """All of the mesh, but nothing that runs."""
    for item in read_base(MANIFESTS / "lasting"):
        if item["kind"] == "Namespace":
            cluster.apply(item)
    install(cluster, read_base(MANIFESTS / "crds"))
    for item in read_base(MANIFESTS / "base"):
        cluster.apply(item)
    cluster.namespace("shop", **{"istio.io/dataplane-mode": "ambient"})
    account(cluster, "shop", "default")
    return cluster


def call_at(cluster: Cluster, port: int, seconds: int) -> None:
    """There are no Services here: the API server asks at the port itself."""
    [item] = [item for item in read_base(MANIFESTS / "base") if item["kind"] == WEBHOOK]
    [webhook] = item["webhooks"]
    webhook["clientConfig"] = {"url": f"https://127.0.0.1:{port}/"}
    webhook["timeoutSeconds"] = seconds
    path = cluster.path(item)
    cluster.call("DELETE", path)
    cluster.apply(item)


def annotated(cluster: Cluster) -> int:
    found = cluster.call("GET", "/api/v1/pods")["items"]
    return sum(REDIRECTION in each["metadata"].get("annotations", {}) for each in found)


async def clear(cluster: Cluster, item: Json) -> None:
    body = {"metadata": {"annotations": {REDIRECTION: None}}}
    path = f"{cluster.path(item)}/status"
    await in_thread(partial(cluster.call, "PATCH", path, body, content_type=MERGE))


def capture(cluster: Cluster, item: Json, address: str) -> Json:
    """A pod that an agent has written to."""
    made: Json = cluster.apply(item)
    body = {
        "metadata": {"annotations": {REDIRECTION: "enabled"}},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    }
    cluster.call("PATCH", f"{cluster.path(item)}/status", body, content_type=MERGE)
    return made


@asynccontextmanager
async def asked(cluster: Cluster, seconds: int = LONG) -> AsyncIterator[ControlPlane]:
    """A control plane runs that the API server asks, while there is a captured pod."""
    async with control_plane(cluster) as running:
        with trio.fail_after(PATIENCE):
            while not running.backend.farewell.port:
                await trio.sleep(0.02)
        await in_thread(call_at, cluster, running.backend.farewell.port, seconds)
        took = 0.0
        with trio.fail_after(PATIENCE):
            while took < LONG / 2:  # the API server hears of webhooks a little later
                began = trio.current_time()
                await in_thread(cluster.call, "DELETE", f"{RIGHT}?dryRun=All")
                took = trio.current_time() - began
        yield running.plane


async def test_rights_stay_until_the_last_annotation_is_off(installed: Cluster) -> None:
    item = pod("shop", "web")
    await in_thread(capture, installed, item, "10.0.0.1")
    async with asked(installed) as plane, trio.open_nursery() as nursery:
        deleted, may_end = trio.Event(), trio.Event()

        async def delete() -> None:
            await in_thread(installed.call, "DELETE", RIGHT)
            deleted.set()

        async def end() -> None:
            await plane.finish()
            may_end.set()

        nursery.start_soon(delete)
        with trio.move_on_after(LONG / 8):
            await deleted.wait()
        assert not deleted.is_set()
        nursery.start_soon(end)  # as a signal has it
        assert await in_thread(installed.call, "GET", RIGHT)
        assert not may_end.is_set()
        began = trio.current_time()
        await clear(installed, item)
        await deleted.wait()
        await may_end.wait()
        assert trio.current_time() - began < LONG / 2


async def test_nobody_waits_for_an_agent_that_is_gone(installed: Cluster) -> None:
    item = pod("shop", "lost")
    await in_thread(capture, installed, item, "10.0.0.1")
    async with asked(installed):
        await in_thread(installed.call, "DELETE", RIGHT)
        assert await in_thread(annotated, installed) == 1
    await clear(installed, item)


async def test_nobody_waits_for_a_control_plane_that_is_gone(installed: Cluster) -> None:
    item = pod("shop", "left")
    await in_thread(capture, installed, item, "10.0.0.1")
    async with asked(installed):
        pass
    began = trio.current_time()
    await in_thread(installed.call, "DELETE", RIGHT)
    assert trio.current_time() - began < LONG / 2
    await clear(installed, item)


async def test_delete_leaves_no_annotation_on_a_hundred_pods(
    installed: Cluster, tmp_path: Path
) -> None:
    with Network(1) as network:
        place = Node(installed, network, tmp_path, "node-b")

        def before() -> Path:
            for number in range(1, 1 + MANY):
                item = pod("shop", f"pod-{number}", node="node-b")
                capture(installed, item, f"10.9.9.{number}")
            own = installed.apply(pod(SYSTEM, "agent", node="node-b", account="ambient-agent"))
            folder = installed.account_folder(SYSTEM, "ambient-agent")
            token = installed.token(SYSTEM, "ambient-agent", pod=own)
            (folder / "token").write_text(token)
            return folder

        folder = await in_thread(before)
        environment = {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(installed.port),
        }
        client = KubeClient(in_pod(environment, folder))
        place.config = dataclasses.replace(place.config, agent_ns=SYSTEM)
        agent = NodeAgent(place.config, client)
        place.ztunnel.mark = agent.mark
        async with asked(installed, 20), trio.open_nursery() as nursery:
            nursery.start_soon(agent.run, trio.Event())
            nursery.start_soon(ZdsClient(place.ztunnel, place.zds).run)
            await place.until(lambda: bool(installed.call("GET", EVENTS)["items"]))
            assert await in_thread(annotated, installed) == MANY
            await in_thread(delete_base, installed, tmp_path)
            assert await in_thread(annotated, installed) == 0
            nursery.cancel_scope.cancel()
        await client.forget_idle()
        place.ztunnel.close()


def delete_base(cluster: Cluster, home: Path) -> None:
    """As users do; nobody is here who would bring the namespace to its end."""
    words = ("delete", "-k", str(MANIFESTS / "base"), "--wait=false")
    command = [str(find("kubectl")), f"--kubeconfig={cluster.kubeconfig}", *words]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "HOME": str(home)})
