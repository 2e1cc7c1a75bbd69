"""The objects that control planes are compared on (`tests/interop/istio/objects.yaml`)."""

from __future__ import annotations

import time
from pathlib import Path

import yaml

from tests.support.kube.cluster import Cluster, Json
from tests.support.kube.objects import account, pod, run

_LATER = 2
"""The generation of what must be younger than all others, by a clock that counts seconds."""
_SECOND = 1.1
OBJECTS = Path(__file__).resolve().parents[2] / "interop/istio/objects.yaml"


def read_objects() -> list[Json]:
    """All of them, as they stand there."""
    return [item for item in yaml.safe_load_all(OBJECTS.read_text()) if item]


def write_objects(cluster: Cluster, items: list[Json]) -> None:
    """Create each, and then its status; and a ztunnel on each node."""
    for item in items:
        status = item.pop("status", None)
        if item["kind"] == "EndpointSlice":
            _point_at_pods(cluster, item)
        if item["metadata"].pop("generation", None) == _LATER:
            time.sleep(_SECOND)
        cluster.apply(item)
        if status is not None:
            cluster.set_status(item, status)
    account(cluster, "istio-system", "ztunnel")
    for number in (1, 2):
        item = pod("istio-system", f"ztunnel-{number}", node=f"node-{number}", account="ztunnel")
        item["metadata"]["labels"] = {"app": "ztunnel"}
        run(cluster, item, f"10.1.0.20{number}")
    account(cluster, "routed", "default")


def _point_at_pods(cluster: Cluster, item: Json) -> None:
    """References with the pods' UIDs, as the controller of Kubernetes writes them."""
    known = {
        (found["metadata"]["namespace"], found["metadata"]["name"]): found["metadata"]["uid"]
        for found in cluster.call("GET", "/api/v1/pods")["items"]
    }
    for endpoint in item["endpoints"]:
        reference = endpoint.get("targetRef")
        if reference is not None:
            place = (reference["namespace"], reference["name"])
            reference["uid"] = known.get(place, "0")


def token_of(cluster: Cluster, namespace: str, name: str) -> str:
    """What the kubelet would project into a pod for istiod."""
    bound = cluster.call("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")
    owner: str = bound["spec"].get("serviceAccountName", "default")
    return cluster.token(namespace, owner, audience="istio-ca", pod=bound)
