"""All services of the mesh: addresses given where there are none, doubles removed."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

from daemonset.control_plane.objects.addresses import IPNetwork
from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.translation.finding import Findings
from daemonset.control_plane.translation.gateway_address import network_address
from daemonset.control_plane.translation.kubernetes_services import from_service
from daemonset.control_plane.translation.memory import Kept
from daemonset.control_plane.translation.resource import Resource, service_resource
from daemonset.control_plane.translation.service_addresses import ServiceAddresses
from daemonset.control_plane.translation.service_entries import from_service_entry, wants_address
from daemonset.control_plane.translation.service_info import ServiceInfo
from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.control_plane.translation.vips import AddressAllocator
from daemonset.control_plane.translation.waypoints import Waypoints
from ztunnel.proto import workload_pb2
from ztunnel.proto.workload_pb2 import Port
from ztunnel.proto.workload_pb2 import Service as MeshService


@dataclass(slots=True)
class Allocators:
    """Addresses given so far; kept from one translation to the next so that they stay."""

    settings: MeshSettings
    services: ServiceAddresses | None = field(init=False)
    entries: AddressAllocator = field(init=False)
    entries6: AddressAllocator = field(init=False)

    def __post_init__(self) -> None:
        block, block6 = self.settings.service_ips, self.settings.service_ips6
        self.services = ServiceAddresses(block, block6) if block is not None else None
        self.entries = AddressAllocator(self.settings.entry_ips)
        self.entries6 = AddressAllocator(self.settings.entry_ips6)


_block = lru_cache(maxsize=100_000)(ipaddress.ip_network)


def list_services(
    objects: ObjectSet,
    waypoints: Waypoints,
    allocators: Allocators,
    settings: MeshSettings,
    findings: Findings,
) -> list[ServiceInfo]:
    """All services, each (namespace, hostname) once: a Service wins, else the oldest entry."""
    found: dict[str, ServiceInfo] = {}
    given = {} if allocators.services is None else allocators.services.give(objects)
    for service in sorted(objects.services.values(), key=lambda item: item.meta.age_order):
        addresses = tuple(map(_block, service.cluster_ips))
        if not addresses:
            texts = given.get(f"{service.meta.namespace}/{service.meta.name}", ())
            addresses = tuple(ipaddress.ip_network(text) for text in texts)
        namespace = objects.namespaces.get(service.meta.namespace)
        info = from_service(service, addresses, namespace, waypoints, settings, findings)
        if info is not None:
            found[info.name] = info
    entry_addresses = _give_entry_addresses(objects, allocators)
    for entry in sorted(objects.service_entries.values(), key=lambda item: item.meta.age_order):
        namespace = objects.namespaces.get(entry.meta.namespace)
        place = f"{entry.meta.namespace}/{entry.meta.name}"
        allocated = {host: entry_addresses.get(f"{place}/{host}", ()) for host in entry.hosts}
        infos = from_service_entry(entry, allocated, namespace, waypoints, settings, findings)
        for info in infos:
            first = found.setdefault(info.name, info)
            if first is not info:
                findings.warning(
                    entry.meta.key,
                    "spec.hosts",
                    "HostTaken",
                    f"{info.hostname} is served by {first.meta.key}: this entry has no effect.",
                    "Remove the host from one of the two.",
                )
    return list(found.values())


def _give_entry_addresses(
    objects: ObjectSet, allocators: Allocators
) -> dict[str, tuple[IPNetwork, ...]]:
    """By "namespace/name/host"; what the status already says is kept."""
    result: dict[str, tuple[IPNetwork, ...]] = {}
    names: list[str] = []
    taken: set[str] = set()
    for entry in objects.service_entries.values():
        taken.update(str(block.network_address) for block in entry.addresses)
        for host in entry.hosts:
            name = f"{entry.meta.namespace}/{entry.meta.name}/{host}"
            if not wants_address(entry, host):
                continue
            known = tuple(block for owner, block in entry.allocated if owner in ("", host))
            taken.update(str(block.network_address) for block in known)
            if known:
                result[name] = known
            else:
                names.append(name)
    v4 = allocators.entries.allocate(names, taken)
    v6 = allocators.entries6.allocate(names, taken)
    for name in names:
        given = [v4[name]] if name in v4 else []
        given += [v6[name]] if name in v6 else []
        result[name] = tuple(ipaddress.ip_network(address) for address in given)
    return result


def service_resources(
    services: Sequence[ServiceInfo], network: str, memory: Kept[str, Resource]
) -> list[Resource]:
    """The resources of services, with exactly one canonical service for each hostname."""
    canonical: dict[str, ServiceInfo] = {}
    for info in services:
        best = canonical.get(info.hostname)
        if best is None or _canonical_order(info) < _canonical_order(best):
            canonical[info.hostname] = info
    result: list[Resource] = []
    for info in services:
        inputs = (info, network, canonical[info.hostname] is info)
        result.append(memory.get(info.name, inputs, partial(_encode, *inputs)))
    return result


def _canonical_order(info: ServiceInfo) -> tuple[bool, bool, tuple[str, str, str]]:
    hidden = info.visibility == MeshService.Visibility.NAMESPACE
    return (info.meta.kind != "Service", hidden, info.meta.age_order)


def _encode(info: ServiceInfo, network: str, canonical: bool) -> Resource:
    message = workload_pb2.Service(
        name=info.meta.name,
        namespace=info.meta.namespace,
        hostname=info.hostname,
        addresses=[network_address(network, block) for block in info.addresses],
        ports=[
            Port(
                service_port=port.number,
                # 0: the workload's own map has the number of a named port.
                target_port=_target(port.target, port.number),
                app_protocol=port.protocol,
            )
            for port in info.ports
        ],
        subject_alt_names=info.subject_alt_names,
        ip_families=info.families,
        canonical=canonical and info.visibility == MeshService.Visibility.PUBLIC,
        ingress_use_waypoint=info.ingress_use_waypoint,
        visibility=info.visibility,
    )
    if info.load_balancing is not None:
        message.load_balancing.CopyFrom(info.load_balancing)
    if info.waypoint is not None:
        message.waypoint.CopyFrom(info.waypoint.address)
        if info.waypoint.canary is not None:
            weight = info.waypoint.canary_weight
            message.weighted_waypoints.add(destination=info.waypoint.address, weight=100 - weight)
            message.weighted_waypoints.add(destination=info.waypoint.canary, weight=weight)
    aliases = [
        f"{network}/{block.network_address}"
        for block in info.addresses
        if block.prefixlen == block.max_prefixlen
    ]
    return service_resource(message, aliases)


def _target(target: int | str | None, number: int) -> int:
    if target is None:
        return number
    return target if isinstance(target, int) else 0
