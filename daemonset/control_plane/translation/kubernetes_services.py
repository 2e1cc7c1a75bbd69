"""Services of Kubernetes -> services of the mesh."""

from __future__ import annotations

from collections.abc import Mapping

from daemonset.control_plane.objects.addresses import IPNetwork
from daemonset.control_plane.objects.namespace import Namespace
from daemonset.control_plane.objects.section import EMPTY
from daemonset.control_plane.objects.selector import LabelSelector
from daemonset.control_plane.objects.service import Service
from daemonset.control_plane.translation.finding import Findings
from daemonset.control_plane.translation.ports import report_nameless, service_protocol
from daemonset.control_plane.translation.service_info import MeshPort, ServiceInfo
from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.control_plane.translation.traffic_distribution import ANNOTATION, load_balancing
from daemonset.control_plane.translation.waypoints import Waypoints
from ztunnel.proto.workload_pb2 import IPFamilies
from ztunnel.proto.workload_pb2 import Service as MeshService


def hostname_of(service: Service, settings: MeshSettings) -> str:
    return f"{service.meta.name}.{service.meta.namespace}.svc.{settings.cluster_domain}"


def from_service(
    service: Service,
    addresses: tuple[IPNetwork, ...],
    namespace: Namespace | None,
    waypoints: Waypoints,
    settings: MeshSettings,
    findings: Findings,
) -> ServiceInfo | None:
    """One Service, or None for an ExternalName, which is an alias in DNS and nothing else.

    ``addresses`` are those of its clusterIPs (or given for want of them).
    """
    if service.type == "ExternalName":
        return None
    distribution, field = _distribution(service, namespace)
    waypoint = waypoints.of_service(service.meta)
    if waypoint is not None:
        declared = (
            (number, port.name, port.app_protocol)
            for number, port in enumerate(service.ports)
            if port.protocol == "TCP"
        )
        report_nameless(declared, "appProtocol", service.meta.key, findings)
    return ServiceInfo(
        meta=service.meta,
        hostname=hostname_of(service, settings),
        addresses=addresses,
        # UDP is never captured: a port of it would only promise what the mesh does not do.
        ports=tuple(
            MeshPort(
                port.name,
                port.number,
                port.target,
                service_protocol(port.name, port.app_protocol, port.number),
            )
            for port in service.ports
            if port.protocol == "TCP"
        ),
        selector=LabelSelector(service.selector) if service.selector else None,
        waypoint=waypoint,
        ingress_use_waypoint=waypoint is not None and waypoints.ingress_goes_through(service.meta),
        load_balancing=load_balancing(
            distribution,
            field,
            node_local=service.internal_traffic_local,
            allow_unready=service.publish_not_ready,
            key=service.meta.key,
            findings=findings,
        ),
        families=_families(service.ip_families),
        visibility=MeshService.Visibility.PUBLIC,
    )


def _distribution(service: Service, namespace: Namespace | None) -> tuple[str, str]:
    if service.traffic_distribution:
        return service.traffic_distribution, "spec.trafficDistribution"
    inherited: Mapping[str, str] = namespace.meta.annotations if namespace is not None else EMPTY
    for place in (service.meta.annotations, inherited):
        if place.get(ANNOTATION):
            return place[ANNOTATION], f"metadata.annotations.{ANNOTATION}"
    return "", ""


def _families(families: tuple[str, ...]) -> IPFamilies:
    if len(set(families)) > 1:
        return IPFamilies.DUAL
    if not families:
        return IPFamilies.AUTOMATIC
    return IPFamilies.IPV4_ONLY if families[0] == "IPv4" else IPFamilies.IPV6_ONLY
