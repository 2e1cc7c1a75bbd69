"""Which workload serves which port of which service."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from daemonset.control_plane.objects.endpoint_slice import EndpointSlice
from daemonset.control_plane.objects.meta import ObjectKey, ObjectMeta
from daemonset.control_plane.objects.pod import Pod
from daemonset.control_plane.objects.workload_entry import WorkloadEntry
from daemonset.control_plane.translation.service_info import MeshPort, ServiceInfo
from ztunnel.proto.workload_pb2 import PortList

PortPair = tuple[int, int]
"""(service port, port of the workload)."""
ServicePorts = dict[str, tuple[PortPair, ...]]
"""Resource name of a service -> its ports at one workload."""


@dataclass(frozen=True, slots=True)
class Selectable:
    """A Pod or WorkloadEntry as selectors see it; ``ports`` are the names it gives to ports."""

    key: ObjectKey
    labels: Mapping[str, str]
    ports: Mapping[str, int]


def selectable_pod(pod: Pod) -> Selectable:
    ports: dict[str, int] = {}
    for port in pod.ports:
        ports.setdefault(port.name, port.number)
    return Selectable(pod.meta.key, pod.meta.labels, ports)


def selectable_entry(entry: WorkloadEntry) -> Selectable:
    return Selectable(entry.meta.key, entry_meta(entry).labels, entry.spec.ports)


def entry_meta(entry: WorkloadEntry) -> ObjectMeta:
    """With the labels of the spec and of the object; where both have one, the object's counts."""
    if not entry.spec.labels:
        return entry.meta
    return replace(entry.meta, labels={**entry.spec.labels, **entry.meta.labels})


def target_of(port: MeshPort, named: Mapping[str, int], *, by_name: bool) -> int | None:
    """The port of a workload behind a service's port; None where it has none of that name.
    ``by_name``: a port of the workload that is called as the service's comes first."""
    if isinstance(port.target, str):
        return named.get(port.target)
    found = named.get(port.name) if by_name and port.name else None
    return found or port.target or port.number


def ports_of(
    service: ServiceInfo, named: Mapping[str, int], *, is_pod: bool
) -> tuple[PortPair, ...]:
    pairs: list[PortPair] = []
    for port in service.ports:
        by_name = not is_pod or service.meta.kind != "Service"
        target = target_of(port, named, by_name=by_name)
        if target is not None:
            pairs.append((port.number, target))
    return tuple(pairs)


def slice_ports(service: ServiceInfo, endpoint_slice: EndpointSlice) -> tuple[PortPair, ...]:
    """A slice and a service name their ports alike (a single port may go without a name)."""
    numbers = {port.name: port.number for port in endpoint_slice.ports}
    return tuple(
        (port.number, numbers[port.name]) for port in service.ports if port.name in numbers
    )


def port_list(pairs: Iterable[PortPair]) -> PortList:
    message = PortList()
    for number, target in pairs:
        message.ports.add(service_port=number, target_port=target)
    return message
