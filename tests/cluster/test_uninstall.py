"""`kubectl delete -k` under traffic: pods live on, and nodes are as they were."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.support.cluster.mesh import SYSTEM, Mesh
from tests.support.cluster.pods import Traffic, application
from tests.support.program import PATIENCE
from ztunnel.linux.netns import NetworkNamespace

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600)]
BASE = "daemonset/manifests/base"
KINDS = (
    "namespace,clusterrole,clusterrolebinding,validatingadmissionpolicy,"
    "validatingadmissionpolicybinding,customresourcedefinition,secret,configmap,lease,networkpolicy"
)


def tables(network: NetworkNamespace) -> list[str]:
    with network.enter():
        done = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if "ambient" in line]


def ours(mesh: Mesh) -> set[str]:
    """What is in the cluster under a name of ours or Istio's."""
    arguments = ("get", KINDS, "--all-namespaces", "--output=json")
    items = json.loads(mesh.cluster.kubectl(*arguments))["items"]
    names = set()
    for item in items:
        meta = item["metadata"]
        name = "/".join(filter(None, (meta.get("namespace"), meta["name"])))
        if meta["name"] != "kube-root-ca.crt" and any(
            word in name for word in ("ambient", "istio", "ztunnel")
        ):
            names.add(f"{item['kind']} {name}")
    return names


def test_delete_under_traffic_leaves_nothing_behind(mesh: Mesh) -> None:
    with leaving(mesh, "ending"):
        mesh.cluster.kubectl("delete", "-k", BASE, "--timeout=150s")


def test_delete_with_the_agents_first_takes_every_annotation_off(mesh: Mesh) -> None:
    mesh.install()
    with leaving(mesh, "alone"):
        agents = ("daemonset", "ambient-agent", "--cascade=foreground", "--timeout=150s")
        mesh.cluster.kubectl("-n", SYSTEM, "delete", *agents)
        assert mesh.annotated() == []
        mesh.cluster.kubectl("delete", "-k", BASE, "--ignore-not-found", "--timeout=150s")


@contextlib.contextmanager
def leaving(mesh: Mesh, namespace: str) -> Iterator[None]:
    """Pods of the mesh under traffic, which meanwhile is taken off: nobody notices, and what was
    promised to stay is all that does."""
    shop = mesh.shop(namespace, mode="ambient")
    shop.wait_redirection("enabled")
    mesh.wait_encrypted(shop)
    with shop.web.enter() as network, Traffic(network, shop.cluster_ip, 80) as traffic:
        traffic.more()
        assert tables(network)
        yield
        assert mesh.cluster.get(f"/api/v1/namespaces/{SYSTEM}") is None
        traffic.more()
        assert tables(network) == []
        assert mesh.annotated() == []
    assert traffic.outcome.failures == []
    for node in mesh.cluster.nodes.values():
        assert tables(node.network) == []
        assert "ambient-cni" not in node.run("ls", "/opt/cni/bin")
        assert "ambient" not in node.run("sh", "-c", "cat /etc/cni/net.d/*")
    for pod in shop.pods:
        assert pod.is_ready()
        assert pod.restarts == 0
    # The label is still there, and nobody waits for anybody.
    mesh.cluster.api.apply(application(namespace, "after", "node-1", "web"))
    shop.pod("after").wait_ready()
    definitions = {
        f"CustomResourceDefinition {name}"
        for name in (
            "authorizationpolicies.security.istio.io",
            "peerauthentications.security.istio.io",
            "serviceentries.networking.istio.io",
            "workloadentries.networking.istio.io",
        )
    }
    kept = definitions | {"Namespace istio-system", "Secret istio-system/istio-ca-secret"}
    wait_until_left(mesh, kept)


def wait_until_left(mesh: Mesh, kept: set[str]) -> None:
    """Kubernetes collects what belonged to what is gone, a little later."""
    deadline = time.monotonic() + PATIENCE
    while (left := ours(mesh)) != kept:
        assert time.monotonic() < deadline, (left - kept, kept - left)
        time.sleep(0.5)
