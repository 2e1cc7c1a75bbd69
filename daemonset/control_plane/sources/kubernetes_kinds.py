"""Which kinds are read from the Kubernetes API, and what is kept of them. Pure.

What is cut here never reaches a reader, so it may be only what no reader asks for. Kinds that
guard something are read strictly and kept whole, so that an unknown field is seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from sys import intern
from typing import Any

from daemonset.kube.reflector import Resource

Json = dict[str, Any]

_ISTIO = ("v1", "v1beta1", "v1alpha3")
_GATEWAY_API = ("v1", "v1beta1")
_META = (
    "name",
    "namespace",
    "uid",
    "labels",
    "creationTimestamp",
    "deletionTimestamp",
    "generateName",
    "ownerReferences",
)
_NOT_FINISHED = (("fieldSelector", "status.phase!=Succeeded,status.phase!=Failed"),)
# Endpoints that follow from a selector are worked out from the pods themselves: of thousands of
# slices only those that somebody else writes matter.
_WRITTEN = (
    ("labelSelector", "endpointslice.kubernetes.io/managed-by!=endpointslice-controller.k8s.io"),
)


@dataclass(frozen=True, slots=True)
class WatchedKind:
    """``field`` is that of ObjectSet; ``needs``: what must be installed for it, "" for nothing;
    ``without``: what does not work without it."""

    kind: str
    field: str
    resource: Resource
    cut: Callable[[Json], Json] = lambda item: item
    needs: str = ""
    without: str = ""

    def document(self, item: Json) -> Json:
        """The object as a reader wants it; items of a list name neither version nor kind."""
        resource = self.resource
        version = item.get("apiVersion") or _version(resource)
        meta = cut_meta(item.get("metadata") or {})
        return {**self.cut(item), "apiVersion": version, "kind": self.kind, "metadata": meta}


def _version(resource: Resource) -> str:
    first = resource.versions[0]
    return f"{resource.group}/{first}" if resource.group else first


def cut_meta(meta: Json) -> Json:
    """What is read of metadata; of the annotations only Istio's, as others may be very long."""
    result = {name: meta[name] for name in _META if name in meta}
    labels = meta.get("labels")
    if labels:
        result["labels"] = {intern(name): intern(value) for name, value in labels.items()}
    annotations = meta.get("annotations")
    if annotations:
        result["annotations"] = {
            name: value
            for name, value in annotations.items()
            if name.partition("/")[0].endswith("istio.io")
        }
    return result


def _cut_pod(item: Json) -> Json:
    spec, status = item.get("spec") or {}, item.get("status") or {}
    kept = {
        name: spec[name]
        for name in ("nodeName", "serviceAccountName", "serviceAccount", "hostNetwork")
        if name in spec
    }
    for name in ("containers", "initContainers"):
        kept[name] = [
            {field: container[field] for field in ("ports", "restartPolicy") if field in container}
            for container in spec.get(name) or ()
        ]
    conditions = [
        {"type": "Ready", "status": condition.get("status")}
        for condition in status.get("conditions") or ()
        if condition.get("type") == "Ready"
    ]
    of_status = {name: status[name] for name in ("podIP", "podIPs", "phase") if name in status}
    return {"spec": kept, "status": {**of_status, "conditions": conditions}}


def _cut_node(item: Json) -> Json:
    return {"status": {"addresses": (item.get("status") or {}).get("addresses")}}


def _cut_network_policy(item: Json) -> Json:
    return {"spec": {"podSelector": (item.get("spec") or {}).get("podSelector") or {}}}


def _cut_all(item: Json) -> Json:
    return {}


def _core(plural: str, query: tuple[tuple[str, str], ...] = ()) -> Resource:
    return Resource("", ("v1",), plural, query)


def _istio(kind: str, field: str, group: str, plural: str, without: str) -> WatchedKind:
    resource = Resource(group, _ISTIO if group == "networking.istio.io" else _ISTIO[:2], plural)
    return WatchedKind(kind, field, resource, needs="its CRD", without=without)


def _gateway_api(kind: str, field: str, plural: str, without: str) -> WatchedKind:
    resource = Resource("gateway.networking.k8s.io", _GATEWAY_API, plural)
    return WatchedKind(kind, field, resource, needs="the Gateway API's CRDs", without=without)


KINDS = (
    WatchedKind("Namespace", "namespaces", _core("namespaces"), _cut_all),
    WatchedKind("Node", "nodes", _core("nodes"), _cut_node),
    WatchedKind("Pod", "pods", _core("pods", _NOT_FINISHED), _cut_pod),
    WatchedKind("Service", "services", _core("services")),
    WatchedKind(
        "EndpointSlice",
        "endpoint_slices",
        Resource("discovery.k8s.io", ("v1",), "endpointslices", _WRITTEN),
    ),
    WatchedKind(
        "NetworkPolicy",
        "network_policies",
        Resource("networking.k8s.io", ("v1",), "networkpolicies"),
        _cut_network_policy,
    ),
    _istio(
        "AuthorizationPolicy",
        "authorization_policies",
        "security.istio.io",
        "authorizationpolicies",
        "nobody is refused by policy",
    ),
    _istio(
        "PeerAuthentication",
        "peer_authentications",
        "security.istio.io",
        "peerauthentications",
        "plaintext is let in everywhere",
    ),
    _istio(
        "ServiceEntry",
        "service_entries",
        "networking.istio.io",
        "serviceentries",
        "there are no services but the cluster's",
    ),
    _istio(
        "WorkloadEntry",
        "workload_entries",
        "networking.istio.io",
        "workloadentries",
        "there are no workloads but pods",
    ),
    _gateway_api("Gateway", "gateways", "gateways", "there are no waypoints"),
    _gateway_api(
        "GatewayClass", "gateway_classes", "gatewayclasses", "waypoints serve what is usual"
    ),
)
