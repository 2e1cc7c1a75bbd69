"""Objects as a user or a controller would write them."""

from __future__ import annotations

from tests.support.kube.api import Api, Json


def pod(
    namespace: str,
    name: str,
    *,
    node: str = "node-a",
    account: str = "default",
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
) -> Json:
    """A pod of one container; a cluster without kubelets leaves it as it is."""
    meta = {
        "name": name,
        "namespace": namespace,
        "labels": labels or {},
        "annotations": annotations or {},
    }
    port = {"name": "http", "containerPort": 8080}
    container = {"name": "app", "image": "app", "ports": [port]}
    spec = {"nodeName": node, "serviceAccountName": account, "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def running(address: str, phase: str = "Running") -> Json:
    """The status that a kubelet gives it."""
    return {
        "phase": phase,
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }


def run(cluster: Api, item: Json, address: str) -> Json:
    """Create a pod and play its kubelet; the pod as the API has it."""
    cluster.apply(item)
    return cluster.set_status(item, running(address))


def account(cluster: Api, namespace: str, name: str) -> None:
    """A service account."""
    meta = {"name": name, "namespace": namespace}
    cluster.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})


def node(cluster: Api, name: str) -> None:
    """A node, as its kubelet registers it."""
    cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})


def policy(namespace: str, name: str, spec: Json) -> Json:
    """An AuthorizationPolicy."""
    meta = {"name": name, "namespace": namespace}
    version = "security.istio.io/v1"
    return {"apiVersion": version, "kind": "AuthorizationPolicy", "metadata": meta, "spec": spec}


def strict(namespace: str) -> Json:
    """A PeerAuthentication that demands mTLS of everybody who talks to the namespace's pods."""
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "strict", "namespace": namespace},
        "spec": {"mtls": {"mode": "STRICT"}},
    }
