"""Which waypoint stands before a service or a workload.

As in Istio, with one difference. Where an object asks for a waypoint that is missing or not
ready, Istio lets its traffic flow without, and with it everything that the waypoint's policies
should have refused. Here the object is given a waypoint all the same: the one it asks for, by the
hostname that it will have, so that clients refuse with that reason until it is there.
(``like_istio`` restores Istio's way.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from daemonset.control_plane.objects.addresses import canonical_ip
from daemonset.control_plane.objects.gateway import Gateway, Listener
from daemonset.control_plane.objects.meta import ObjectKey, ObjectMeta
from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.objects.section import EMPTY
from daemonset.control_plane.translation.finding import Findings
from daemonset.control_plane.translation.gateway_address import (
    HBONE_PORT,
    gateway_by_hostname,
    gateway_by_ip,
)
from daemonset.control_plane.translation.settings import MeshSettings
from ztunnel.proto.workload_pb2 import ApplicationTunnel, GatewayAddress

USE = "istio.io/use-waypoint"
USE_NAMESPACE = "istio.io/use-waypoint-namespace"
CANARY = "istio.io/use-waypoint-canary"
CANARY_NAMESPACE = "istio.io/use-waypoint-canary-namespace"
CANARY_WEIGHT = "istio.io/use-waypoint-canary-weight"
WAYPOINT_FOR = "istio.io/waypoint-for"
MANAGED = "gateway.istio.io/managed"
GATEWAY_NAME = "gateway.networking.k8s.io/gateway-name"
BINDING = "ambient.istio.io/waypoint-inbound-binding"
PROXY_LISTENER = "istio.io/PROXY"

_NEVER_BEHIND_ONE = ("istio.io-mesh-controller", "istio.io-eastwest-controller")
"""Who manages waypoints and gateways between networks, in the label MANAGED: a waypoint before one
of those would send its traffic in circles."""
_TRUE = ("1", "t", "T", "true", "TRUE", "True")

_BINDING = re.compile(r"(NONE|PROXY)(?:/([0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class Binding:
    """``ready`` is False for a waypoint that is asked for and cannot serve; ``canary_weight`` is
    the percentage that goes to ``canary``."""

    address: GatewayAddress
    ready: bool
    canary: GatewayAddress | None = None
    canary_weight: int = 0


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A pointer at a Gateway and where it stands."""

    namespace: str
    name: str
    key: ObjectKey
    field: str
    inherited: bool


class Waypoints:
    """Resolves the labels of objects to waypoints."""

    def __init__(
        self, objects: ObjectSet, settings: MeshSettings, network: str, findings: Findings
    ) -> None:
        self._objects = objects
        self._settings = settings
        self._network = network
        self._findings = findings

    def of_service(self, meta: ObjectMeta) -> Binding | None:
        """The waypoint of a Service or ServiceEntry."""
        return self._resolve(meta, "service")

    def of_workload(self, meta: ObjectMeta) -> Binding | None:
        """The waypoint of a Pod or WorkloadEntry."""
        return self._resolve(meta, "workload")

    def ingress_goes_through(self, meta: ObjectMeta) -> bool:
        """The label istio.io/ingress-use-waypoint of the object, else of its namespace."""
        label = "istio.io/ingress-use-waypoint"
        own = meta.labels.get(label)
        said = own if own is not None else self._namespace_labels(meta).get(label)
        return said in _TRUE

    def _resolve(self, meta: ObjectMeta, traffic: str) -> Binding | None:
        if meta.labels.get(MANAGED) in _NEVER_BEHIND_ONE or self._is_instance(meta, traffic):
            return None
        source, wanted = self._wanted(meta)
        if wanted is None:
            return None
        primary = self._bind(wanted, meta, traffic)
        if primary is None:
            return None
        canary = self._canary(source, wanted, meta, traffic)
        if canary is None:
            return primary
        address, weight = canary
        return Binding(primary.address, primary.ready, address, weight)

    def _is_instance(self, meta: ObjectMeta, traffic: str) -> bool:
        """Is it a pod of a gateway that has an address?"""
        if traffic != "workload" or not meta.labels.get(GATEWAY_NAME):
            return False
        gateway = self._objects.gateways.get((meta.namespace, meta.labels[GATEWAY_NAME]))
        return gateway is not None and self._address(gateway) is not None

    def _wanted(self, meta: ObjectMeta) -> tuple[ObjectMeta, _Wanted | None]:
        for source, inherited in ((meta, False), (self._namespace_meta(meta), True)):
            if source is None or USE not in source.labels:
                continue
            name = source.labels[USE]
            if name == "none":
                return source, None
            namespace = source.labels.get(USE_NAMESPACE) or meta.namespace
            field = f"metadata.labels.{USE}"
            return source, _Wanted(namespace, name, source.key, field, inherited)
        return meta, None

    def _namespace_meta(self, meta: ObjectMeta) -> ObjectMeta | None:
        namespace = self._objects.namespaces.get(meta.namespace)
        return namespace.meta if namespace is not None else None

    def _namespace_labels(self, meta: ObjectMeta) -> Mapping[str, str]:
        found = self._namespace_meta(meta)
        return found.labels if found is not None else EMPTY

    def _bind(self, wanted: _Wanted, meta: ObjectMeta, traffic: str) -> Binding | None:
        gateway = self._objects.gateways.get((wanted.namespace, wanted.name))
        if not self._serves(gateway, wanted, traffic):
            return None
        if gateway is not None:
            if not self._admits(self._listener(gateway), gateway, meta):
                message = f"Gateway {wanted.namespace}/{wanted.name} does not admit this namespace"
                return self._missing(wanted, "AttachmentDenied", message)
            address = self._address(gateway)
            if address is not None:
                return Binding(address, ready=True)
        what = "is not there" if gateway is None else "has no address yet"
        message = f"waypoint {wanted.namespace}/{wanted.name} {what}"
        return self._missing(wanted, "WaypointIsNotReady", message)

    def _serves(self, gateway: Gateway | None, wanted: _Wanted, traffic: str) -> bool:
        if gateway is None:
            # What it would serve is unknown: the default is services, and a label on the object
            # itself can only mean that object.
            return traffic == "service" or not wanted.inherited
        served = self._traffic_type(gateway)
        if served in (traffic, "all"):
            return True
        if not wanted.inherited:
            self._findings.warning(
                wanted.key,
                wanted.field,
                "UnsupportedTrafficType",
                f"waypoint {wanted.namespace}/{wanted.name} serves {served!r}, not {traffic!r}: "
                "it has no effect here.",
                f"Label the Gateway {WAYPOINT_FOR}: {traffic} or all.",
            )
        return False

    def _traffic_type(self, gateway: Gateway) -> str:
        own = gateway.meta.labels.get(WAYPOINT_FOR)
        if own:
            return own
        gateway_class = self._objects.gateway_classes.get(gateway.class_name)
        labels = gateway_class.meta.labels if gateway_class is not None else EMPTY
        return labels.get(WAYPOINT_FOR) or "service"

    def application_tunnel(self, meta: ObjectMeta) -> ApplicationTunnel | None:
        """How a pod that is a waypoint wants connections from its node's proxy, where that proxy
        captures it: the annotation of its Gateway, else of the Gateway's class."""
        gateway = self._objects.gateways.get((meta.namespace, meta.labels.get(GATEWAY_NAME, "")))
        if gateway is None or self._address(gateway) is None:
            return None
        return self._inbound_binding(gateway)

    def _inbound_binding(self, gateway: Gateway) -> ApplicationTunnel | None:
        source = gateway.meta
        gateway_class = self._objects.gateway_classes.get(gateway.class_name)
        if BINDING not in source.annotations and gateway_class is not None:
            source = gateway_class.meta
        text = source.annotations.get(BINDING)
        if text is None:
            return None
        found = _BINDING.fullmatch(text)
        if found is None or int(found[2] or 0) > 65535:
            self._findings.warning(
                source.key,
                f"metadata.annotations.{BINDING}",
                "UnsupportedValue",
                f"must be PROXY or NONE, with /PORT where it has one, not {text!r}: it has no "
                "effect.",
            )
            return None
        return ApplicationTunnel(protocol=found[1], port=int(found[2] or 0))

    def _listener(self, gateway: Gateway) -> Listener | None:
        """The one whose ``allowedRoutes`` count: that of the binding, else the one for HBONE."""
        binding = self._inbound_binding(gateway)
        for listener in gateway.listeners:
            if binding is None:
                break
            if binding.port:
                if listener.port == binding.port:
                    return listener
            elif binding.protocol and listener.protocol == PROXY_LISTENER:
                return listener
        return _hbone_listener(gateway)

    def _admits(self, listener: Listener | None, gateway: Gateway, meta: ObjectMeta) -> bool:
        if listener is None:
            return gateway.meta.namespace == meta.namespace
        if listener.allowed_from == "All":
            return True
        if listener.allowed_selector is not None:
            labels = self._namespace_labels(meta)
            # Kubernetes sets this label on every namespace.
            labels = {"kubernetes.io/metadata.name": meta.namespace, **labels}
            return listener.allowed_selector.matches(labels)
        return listener.allowed_from == "Same" and gateway.meta.namespace == meta.namespace

    def _address(self, gateway: Gateway) -> GatewayAddress | None:
        if gateway.hostnames:
            return gateway_by_hostname(gateway.meta.namespace, gateway.hostnames[0])
        for text in gateway.ips:
            address = canonical_ip(text)
            if address is not None:
                return gateway_by_ip(self._network, address)
        return None

    def _missing(self, wanted: _Wanted, reason: str, message: str) -> Binding | None:
        if self._settings.like_istio:
            self._findings.warning(
                wanted.key, wanted.field, reason, f"{message}: traffic flows without it."
            )
            return None
        self._findings.error(
            wanted.key,
            wanted.field,
            reason,
            f"{message}: what should pass it is refused.",
            f"Bring it up, or set {USE}: none.",
        )
        hostname = f"{wanted.name}.{wanted.namespace}.svc.{self._settings.cluster_domain}"
        return Binding(gateway_by_hostname(wanted.namespace, hostname), ready=False)

    def _canary(
        self, source: ObjectMeta, primary: _Wanted, meta: ObjectMeta, traffic: str
    ) -> tuple[GatewayAddress, int] | None:
        """The canary beside the primary, on the same level; any mistake leaves the primary."""
        name = source.labels.get(CANARY)
        if not name:
            return None
        text = source.annotations.get(CANARY_WEIGHT, "0")
        namespace = source.labels.get(CANARY_NAMESPACE) or meta.namespace
        gateway = self._objects.gateways.get((namespace, name))
        weight = int(text) if text.isascii() and text.isdigit() and len(text) < 4 else -1
        address = self._address(gateway) if gateway is not None else None
        field, reason = f"metadata.labels.{CANARY}", "WaypointIsNotReady"
        problem = ""
        if not 0 <= weight <= 100:
            field, reason = f"metadata.annotations.{CANARY_WEIGHT}", "CanaryInvalidWeight"
            problem = f"must be a whole number from 0 to 100, not {text!r}"
        elif (namespace, name) == (primary.namespace, primary.name):
            reason, problem = "CanarySameAsPrimary", "the canary is the primary waypoint itself"
        elif gateway is None or address is None:
            problem = f"waypoint {namespace}/{name} is not ready"
        elif not self._admits(self._listener(gateway), gateway, meta):
            reason = "AttachmentDenied"
            problem = f"Gateway {namespace}/{name} does not admit this namespace"
        elif self._traffic_type(gateway) not in (traffic, "all"):
            reason = "UnsupportedTrafficType"
            problem = f"waypoint {namespace}/{name} does not serve {traffic!r}"
        else:
            return address, weight
        message = f"{problem}: everything goes to the primary waypoint."
        self._findings.warning(source.key, field, reason, message)
        return None


def _hbone_listener(gateway: Gateway) -> Listener | None:
    for listener in gateway.listeners:
        if listener.protocol == "HBONE" and listener.port == HBONE_PORT:
            return listener
    return None
