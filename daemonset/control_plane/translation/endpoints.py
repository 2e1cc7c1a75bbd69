"""Which workload serves which port of which service."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from daemonset.control_plane.objects.endpoint_slice import EndpointSlice
from daemonset.control_plane.objects.meta import ObjectKey
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
    # The labels of the spec are the workload's; those of the object serve where it has none.
    labels = entry.spec.labels or entry.meta.labels
    return Selectable(entry.meta.key, labels, entry.spec.ports)


def target_of(port: MeshPort, named: Mapping[str, int], *, is_pod: bool) -> int | None:
    """The port of a workload behind a service's port; None where it has none of that name."""
    if isinstance(port.target, str):
        return named.get(port.target)
    if not is_pod:
        # The ports of an entry override by the service port's name.
        return named.get(port.name) or port.target or port.number
    if port.target is not None:
        return port.target
    return named.get(port.name) or port.number


def ports_of(
    service: ServiceInfo, named: Mapping[str, int], *, is_pod: bool
) -> tuple[PortPair, ...]:
    pairs: list[PortPair] = []
    for port in service.ports:
        target = target_of(port, named, is_pod=is_pod)
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
