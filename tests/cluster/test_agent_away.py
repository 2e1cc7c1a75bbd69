"""While a node has no agent, pods of the mesh wait there, and say why."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.support.cluster.mesh import SYSTEM, Mesh
from tests.support.cluster.pods import RunningPod, Traffic, application
from tests.support.kube.api import Json
from tests.support.kube.objects import account
from tests.support.program import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600)]
DAEMON_SET = f"/apis/apps/v1/namespaces/{SYSTEM}/daemonsets/ambient-agent"
PODS = f"/api/v1/namespaces/{SYSTEM}/pods?labelSelector=app%3Dambient-agent"


@contextlib.contextmanager
def no_agents(mesh: Mesh) -> Iterator[None]:
    """The DaemonSet is there, and no node is one for it: the rules stay."""

    def choose(nodes: Json) -> None:
        body = {"spec": {"template": {"spec": {"nodeSelector": nodes}}}}
        patch = "application/merge-patch+json"
        mesh.cluster.api.call("PATCH", DAEMON_SET, body, content_type=patch)

    choose({"nowhere": "true"})
    try:
        wait_for("no agent is left", lambda: not mesh.cluster.api.call("GET", PODS)["items"])
        yield
    finally:
        choose({"nowhere": None})
        mesh.wait_rolled_out("daemonset/ambient-agent")


def test_new_pods_of_the_mesh_wait_for_the_agent(mesh: Mesh) -> None:
    api = mesh.cluster.api
    shop = mesh.shop("waiting", mode="ambient")
    shop.wait_redirection("enabled")
    mesh.wait_encrypted(shop)
    api.namespace("plain")
    account(api, "plain", "free")
    node = mesh.cluster.nodes["node-1"]
    names = "/var/lib/ambient/unenrolled-namespaces"
    wait_for("the list names it", lambda: "plain" in node.run("cat", names).split())
    with shop.web.enter() as network, Traffic(network, shop.cluster_ip, 80) as traffic:
        with no_agents(mesh):
            api.apply(application("waiting", "late", "node-1", "web"))
            api.apply(application("plain", "free", "node-1", "free"))
            RunningPod(mesh.cluster, "plain", "free").wait_ready()
            traffic.more()
            said = shop.wait_event("late", "ambient mesh: the node agent is away")
            assert "must not start outside the mesh" in said
            late = shop.pod("late").now["status"]
            assert late["phase"] == "Pending"
            assert "podIP" not in late
        shop.pod("late").wait_ready().wait_redirection("enabled")
        traffic.more()
    assert traffic.outcome.failures == [], traffic.outcome.failures[:4]
