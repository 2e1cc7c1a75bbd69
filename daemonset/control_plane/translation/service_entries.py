"""ServiceEntries -> services of the mesh, one per host."""

from __future__ import annotations

from collections.abc import Mapping

from daemonset.control_plane.objects.addresses import IPNetwork
from daemonset.control_plane.objects.namespace import Namespace
from daemonset.control_plane.objects.service_entry import ServiceEntry
from daemonset.control_plane.translation.finding import Findings
from daemonset.control_plane.translation.ports import entry_protocol, report_nameless
from daemonset.control_plane.translation.service_info import MeshPort, ServiceInfo
from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.control_plane.translation.traffic_distribution import ANNOTATION, load_balancing
from daemonset.control_plane.translation.waypoints import Waypoints
from ztunnel.proto.workload_pb2 import IPFamilies, LoadBalancing
from ztunnel.proto.workload_pb2 import Service as MeshService

AUTO_ALLOCATE = "networking.istio.io/enable-autoallocate-ip"
_UDP = ("UDP",)


def wants_address(entry: ServiceEntry, host: str) -> bool:
    """Does this host get an address of its own? Not where clients' own destination counts
    (NONE), nor for a wildcard that stands for no one name."""
    if entry.addresses or entry.resolution == "NONE":
        return False
    if entry.meta.labels.get(AUTO_ALLOCATE) == "false":
        return False
    return not host.startswith("*") or entry.resolution == "DYNAMIC_DNS"


def from_service_entry(
    entry: ServiceEntry,
    allocated: Mapping[str, tuple[IPNetwork, ...]],
    namespace: Namespace | None,
    waypoints: Waypoints,
    settings: MeshSettings,
    findings: Findings,
) -> list[ServiceInfo]:
    """The services of one entry. ``allocated`` has the addresses given, by host."""
    ports = tuple(
        MeshPort(port.name, port.number, port.target, entry_protocol(port.protocol))
        for port in entry.ports
        if port.protocol.upper() not in _UDP
    )
    inherited = namespace.meta.annotations if namespace is not None else {}
    distribution = entry.meta.annotations.get(ANNOTATION) or inherited.get(ANNOTATION, "")
    balancing = load_balancing(
        distribution,
        f"metadata.annotations.{ANNOTATION}",
        node_local=False,
        allow_unready=False,
        key=entry.meta.key,
        findings=findings,
    )
    if entry.resolution == "NONE":
        balancing = LoadBalancing(
            mode=LoadBalancing.PASSTHROUGH, health_policy=LoadBalancing.ALLOW_ALL
        )
    waypoint = waypoints.of_service(entry.meta)
    if waypoint is not None:
        declared = ((i, port.name, port.protocol) for i, port in enumerate(entry.ports))
        report_nameless(declared, "protocol", entry.meta.key, findings)
    wildcard = any(host.startswith("*") for host in entry.hosts)
    if wildcard and waypoint is None and entry.resolution != "NONE":
        findings.warning(
            entry.meta.key,
            "spec.hosts",
            "NoWaypointForWildcardService",
            "which host a wildcard stands for is seen by a waypoint only: nobody is reached.",
            "Give the ServiceEntry a waypoint, or use resolution NONE.",
        )
    visibility = _visibility(entry, settings, findings)
    return [
        ServiceInfo(
            meta=entry.meta,
            hostname=host.lower(),
            addresses=entry.addresses or allocated.get(host, ()),
            ports=ports,
            selector=entry.selector,
            waypoint=waypoint,
            ingress_use_waypoint=waypoint is not None
            and waypoints.ingress_goes_through(entry.meta),
            load_balancing=balancing,
            families=IPFamilies.AUTOMATIC,
            visibility=visibility,
            subject_alt_names=entry.subject_alt_names,
        )
        for host in dict.fromkeys(entry.hosts)
    ]


def _visibility(
    entry: ServiceEntry, settings: MeshSettings, findings: Findings
) -> MeshService.Visibility:
    """``exportTo: ["."]`` keeps a host to its namespace (Istio's ambient mode ignores it)."""
    export_to = tuple(dict.fromkeys(entry.export_to))
    if not export_to or "*" in export_to or settings.like_istio:
        return MeshService.Visibility.PUBLIC
    if export_to not in ((".",), ("~",), (entry.meta.namespace,)):
        findings.warning(
            entry.meta.key,
            "spec.exportTo",
            "UnsupportedValue",
            "only '*' and '.' can be told to node proxies: the host is visible in this "
            "namespace alone.",
            "Use '*', or one ServiceEntry in each namespace.",
        )
    return MeshService.Visibility.NAMESPACE
