"""Which kinds are read, and by what."""

from __future__ import annotations

from collections.abc import Callable

from daemonset.control_plane.objects.authorization_policy import (
    AuthorizationPolicy,
    read_authorization_policy,
)
from daemonset.control_plane.objects.endpoint_slice import EndpointSlice, read_endpoint_slice
from daemonset.control_plane.objects.gateway import Gateway, read_gateway
from daemonset.control_plane.objects.gateway_class import GatewayClass, read_gateway_class
from daemonset.control_plane.objects.located import Located
from daemonset.control_plane.objects.namespace import Namespace, read_namespace
from daemonset.control_plane.objects.network_policy import NetworkPolicy, read_network_policy
from daemonset.control_plane.objects.node import Node, read_node
from daemonset.control_plane.objects.peer_authentication import (
    PeerAuthentication,
    read_peer_authentication,
)
from daemonset.control_plane.objects.pod import Pod, read_pod
from daemonset.control_plane.objects.section import Section
from daemonset.control_plane.objects.service import Service, read_service
from daemonset.control_plane.objects.service_account import ServiceAccount, read_service_account
from daemonset.control_plane.objects.service_entry import ServiceEntry, read_service_entry
from daemonset.control_plane.objects.workload_entry import WorkloadEntry, read_workload_entry

AnyObject = (
    Namespace
    | Node
    | Pod
    | Service
    | EndpointSlice
    | ServiceAccount
    | ServiceEntry
    | WorkloadEntry
    | AuthorizationPolicy
    | PeerAuthentication
    | Gateway
    | GatewayClass
    | NetworkPolicy
)

_READERS: dict[tuple[str, str], Callable[[Section], AnyObject]] = {
    ("", "Namespace"): read_namespace,
    ("", "Node"): read_node,
    ("", "Pod"): read_pod,
    ("", "Service"): read_service,
    ("", "ServiceAccount"): read_service_account,
    ("discovery.k8s.io", "EndpointSlice"): read_endpoint_slice,
    ("networking.k8s.io", "NetworkPolicy"): read_network_policy,
    ("networking.istio.io", "ServiceEntry"): read_service_entry,
    ("networking.istio.io", "WorkloadEntry"): read_workload_entry,
    ("security.istio.io", "AuthorizationPolicy"): read_authorization_policy,
    ("security.istio.io", "PeerAuthentication"): read_peer_authentication,
    ("gateway.networking.k8s.io", "Gateway"): read_gateway,
    ("gateway.networking.k8s.io", "GatewayClass"): read_gateway_class,
}
_VERSIONS = {
    "": ("v1",),
    "discovery.k8s.io": ("v1",),
    "networking.k8s.io": ("v1",),
    "networking.istio.io": ("v1", "v1beta1", "v1alpha3"),
    "security.istio.io": ("v1", "v1beta1"),
    "gateway.networking.k8s.io": ("v1", "v1beta1"),
}
_KNOWN_UNUSED = ("RequestAuthentication",)
# The fields of an object beside apiVersion, kind, metadata, spec and status. Where a kind guards
# something, another top-level field is a mistake in indentation and must not pass silently.
_GUARDS = ("AuthorizationPolicy", "PeerAuthentication")


def read_object(value: Located) -> AnyObject | None:
    """Read one document, or None where its kind plays no part in the mesh.

    Raises:
        ObjectError: it is not an object, or an object that cannot be read.
    """
    root = Section(value)
    api_version = root.required_text("apiVersion")
    kind = root.required_text("kind")
    group, _, version = api_version.rpartition("/")
    reader = _READERS.get((group, kind))
    if reader is None:
        if kind.endswith("List") and root.has("items"):
            # Lists have been taken apart before: this one has no list of items.
            raise root.error("items", "must be a list")
        if group == "security.istio.io" and kind not in _KNOWN_UNUSED:
            # Everything else that is not known may belong to somebody else. A misspelt policy
            # that is passed over would leave open what it should close.
            raise root.error("kind", f"is not a kind of {group}: {kind!r}")
        return None
    if version not in _VERSIONS[group]:
        known = ", ".join(_VERSIONS[group])
        raise root.error("apiVersion", f"version {version!r} is not known (known: {known})")
    result = reader(root)
    if kind in _GUARDS:
        root.has("status")
        root.finish()
    return result
