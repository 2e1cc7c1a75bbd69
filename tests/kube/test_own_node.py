"""The node agent may write to the status of pods of its own node, and to nothing else of pods."""

from __future__ import annotations

import time

import pytest

from tests.support.kube.cluster import ApiFailure, Cluster, Json
from tests.support.kube.manifests import MANIFESTS, read_base
from tests.support.kube.objects import account, pod

SYSTEM = "ambient-system"
AGENT = "ambient-agent"
PATIENCE = 60.0
CAPTURED = {"metadata": {"annotations": {"ambient.istio.io/redirection": "enabled"}}}


@pytest.fixture(scope="module")
def nodes(cluster: Cluster) -> Cluster:
    """What the base says of the node agent, and a pod on each of two nodes."""
    cluster.namespace(SYSTEM)
    cluster.namespace("shop")
    account(cluster, "shop", "default")
    for item in read_base(MANIFESTS / "node-agent"):
        cluster.apply(item)
    cluster.apply(pod("shop", "near", node="node-a"))
    cluster.apply(pod("shop", "far", node="node-b"))
    return cluster


@pytest.fixture(scope="module")
def token(nodes: Cluster) -> str:
    """The agent's on node-a, as the kubelet asks for it: bound to the agent's pod."""
    own = nodes.apply(pod(SYSTEM, "ambient-agent-a", node="node-a", account=AGENT))
    found = nodes.token(SYSTEM, AGENT, pod=own)
    # Rights and policies are obeyed a moment after they were written.
    deadline = time.monotonic() + PATIENCE
    while annotate(nodes, "near", found) is not None or annotate(nodes, "far", found) is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def annotate(nodes: Cluster, name: str, token: str, part: str = "/status") -> ApiFailure | None:
    """Why it is refused; None where it is not."""
    path = f"/api/v1/namespaces/shop/pods/{name}{part}"
    try:
        nodes.call(
            "PATCH", path, CAPTURED, token=token, content_type="application/merge-patch+json"
        )
    except ApiFailure as failure:
        return failure
    return None


def noted(nodes: Cluster, name: str) -> Json:
    found: Json = nodes.call("GET", f"/api/v1/namespaces/shop/pods/{name}")["metadata"]
    return found.get("annotations") or {}


def test_a_pod_of_its_own_node_is_annotated(nodes: Cluster, token: str) -> None:
    assert annotate(nodes, "near", token) is None
    assert noted(nodes, "near") == CAPTURED["metadata"]["annotations"]


def test_a_pod_of_another_node_is_not(nodes: Cluster, token: str) -> None:
    refused = annotate(nodes, "far", token)
    assert refused is not None
    assert "the node agent may only write to pods of its own node" in str(refused)
    # Two tries of the fixture may have come before the policy was in force; none does after it.
    path = nodes.path(pod("shop", "far"))
    clean = {"metadata": {"annotations": None}}
    nodes.call("PATCH", path, clean, content_type="application/merge-patch+json")
    assert annotate(nodes, "far", token) is not None
    assert noted(nodes, "far") == {}


def test_a_token_that_names_no_node_writes_nowhere(nodes: Cluster, token: str) -> None:
    unbound = nodes.token(SYSTEM, AGENT)
    for name in ("near", "far"):
        refused = annotate(nodes, name, unbound)
        assert refused is not None
        assert "of its own node" in str(refused)


def test_what_is_not_the_status_is_out_of_reach(nodes: Cluster, token: str) -> None:
    for part in ("", "/ephemeralcontainers"):
        refused = annotate(nodes, "near", token, part)
        assert refused is not None
        assert refused.status == 403
    with pytest.raises(ApiFailure, match="403"):
        nodes.call("DELETE", "/api/v1/namespaces/shop/pods/near", token=token)


def test_others_are_not_held_to_it(nodes: Cluster, token: str) -> None:
    """A kubelet, or who else may, writes to pods as before."""
    far = pod("shop", "far", node="node-b")
    assert nodes.set_status(far, {"phase": "Running"})["status"]["phase"] == "Running"
