"""All objects of a mesh at one moment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from daemonset.control_plane.objects.authorization_policy import AuthorizationPolicy
from daemonset.control_plane.objects.endpoint_slice import EndpointSlice
from daemonset.control_plane.objects.gateway import Gateway
from daemonset.control_plane.objects.gateway_class import GatewayClass
from daemonset.control_plane.objects.namespace import Namespace
from daemonset.control_plane.objects.network_policy import NetworkPolicy
from daemonset.control_plane.objects.node import Node
from daemonset.control_plane.objects.peer_authentication import PeerAuthentication
from daemonset.control_plane.objects.pod import Pod
from daemonset.control_plane.objects.registry import AnyObject
from daemonset.control_plane.objects.service import Service
from daemonset.control_plane.objects.service_account import ServiceAccount
from daemonset.control_plane.objects.service_entry import ServiceEntry
from daemonset.control_plane.objects.workload_entry import WorkloadEntry

Named = tuple[str, str]


@dataclass(frozen=True, slots=True)
class ObjectSet:
    """Objects by kind, keyed by name (whole cluster) or by (namespace, name)."""

    namespaces: dict[str, Namespace] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    gateway_classes: dict[str, GatewayClass] = field(default_factory=dict)
    pods: dict[Named, Pod] = field(default_factory=dict)
    services: dict[Named, Service] = field(default_factory=dict)
    endpoint_slices: dict[Named, EndpointSlice] = field(default_factory=dict)
    service_accounts: dict[Named, ServiceAccount] = field(default_factory=dict)
    service_entries: dict[Named, ServiceEntry] = field(default_factory=dict)
    workload_entries: dict[Named, WorkloadEntry] = field(default_factory=dict)
    authorization_policies: dict[Named, AuthorizationPolicy] = field(default_factory=dict)
    peer_authentications: dict[Named, PeerAuthentication] = field(default_factory=dict)
    gateways: dict[Named, Gateway] = field(default_factory=dict)
    network_policies: dict[Named, NetworkPolicy] = field(default_factory=dict)


def object_set(objects: Iterable[AnyObject]) -> ObjectSet:
    """Sort objects into a set; of two with one key the later wins (sources refuse such pairs)."""
    result = ObjectSet()
    for item in objects:
        _put(result, item)
    return result


def _put(target: ObjectSet, item: AnyObject) -> None:
    # The one place where the mappings are written: a set is not changed once it is handed out.
    name = item.meta.name
    key = (item.meta.namespace, name)
    match item:
        case Pod():
            target.pods[key] = item
        case Service():
            target.services[key] = item
        case EndpointSlice():
            target.endpoint_slices[key] = item
        case ServiceAccount():
            target.service_accounts[key] = item
        case ServiceEntry():
            target.service_entries[key] = item
        case WorkloadEntry():
            target.workload_entries[key] = item
        case AuthorizationPolicy():
            target.authorization_policies[key] = item
        case PeerAuthentication():
            target.peer_authentications[key] = item
        case Gateway():
            target.gateways[key] = item
        case NetworkPolicy():
            target.network_policies[key] = item
        case Namespace():
            target.namespaces[name] = item
        case Node():
            target.nodes[name] = item
        case GatewayClass():
            target.gateway_classes[name] = item
