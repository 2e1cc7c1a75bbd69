"""Pure: what a cluster's Services mean before any mesh: names, and addresses that stand for pods.

The result drives the cluster's DNS (:mod:`daemonset.local.cluster_dns`) and its virtual addresses
(:mod:`daemonset.local.cluster_ips`), so that ``curl http://echo.shop/`` works in every pod whether
it is in the mesh or not.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from daemonset.control_plane.objects.endpoint_slice import EndpointSlice
from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.objects.service import Service, ServicePort
from daemonset.control_plane.translation.service_addresses import ServiceAddresses

PROTOCOLS = ("TCP", "UDP")

SocketAddress = tuple[str, int]


@dataclass(frozen=True, slots=True)
class VirtualAddress:
    """One port of one service's address, and who answers there."""

    service: str
    """``namespace/name``, for the comments of rules."""
    address: str
    port: int
    protocol: str
    endpoints: tuple[SocketAddress, ...]


@dataclass(frozen=True, slots=True)
class ClusterServices:
    """All services at one moment. Names are absolute, lower-case, without the final dot."""

    virtual_addresses: tuple[VirtualAddress, ...] = ()
    addresses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name -> IP addresses: of the service, of each pod of a headless one."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Name -> name, for ExternalName services."""
    ports: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """``_port._protocol.service…`` -> (target name, port), for SRV questions."""


@dataclass(frozen=True, slots=True)
class ServingPod:
    """A pod as services see it: its addresses and the ports that it gives names to. One that is
    not ready serves only where a service says ``publishNotReadyAddresses``."""

    namespace: str
    name: str
    labels: Mapping[str, str]
    addresses: tuple[str, ...]
    ports: Mapping[str, int]
    ready: bool = True


class ServiceReader:
    """Turns the objects of a folder into services; remembers the addresses it gave away."""

    def __init__(self, addresses: ServiceAddresses, cluster_domain: str) -> None:
        """*addresses*: for services that bring no ``clusterIP``, the same that the control plane
        gives."""
        self._allocator = addresses
        self.cluster_domain = cluster_domain

    def read(
        self,
        objects: ObjectSet,
        pods: Iterable[ServingPod],
        external_names: Mapping[tuple[str, str], str],
    ) -> ClusterServices:
        """The services of these objects.

        Args:
            objects: Services and EndpointSlices.
            pods: those that selectors may choose.
            external_names: ``spec.externalName`` by (namespace, name).
        """
        everyone = list(pods)
        slices: dict[tuple[str, str], list[EndpointSlice]] = {}
        for one in objects.endpoint_slices.values():
            slices.setdefault((one.meta.namespace, one.service), []).append(one)
        given = self._given_addresses(objects)
        virtual: list[VirtualAddress] = []
        names: dict[str, tuple[str, ...]] = {}
        aliases: dict[str, str] = {}
        ports: dict[str, tuple[str, int]] = {}
        for key, service in sorted(objects.services.items()):
            name = self.name_of(service)
            if service.type == "ExternalName":
                if key in external_names:
                    aliases[name] = external_names[key].rstrip(".").lower()
                continue
            chosen = list(_members(service, everyone))
            listed = slices.get(key, [])
            if service.headless:
                members = {a for pod in chosen for a in pod.addresses}
                members.update(a for one in listed for a in _ready_addresses(one))
                names[name] = tuple(sorted(members))
            else:
                names[name] = service.cluster_ips or given[name]
                virtual.extend(_virtual_addresses(service, names[name], chosen, listed))
            for port in service.ports:
                if port.name:
                    ports[f"_{port.name}._{port.protocol.lower()}.{name}"] = (name, port.number)
        return ClusterServices(tuple(virtual), names, aliases, ports)

    def name_of(self, service: Service) -> str:
        """The service's absolute name in DNS."""
        meta = service.meta
        return f"{meta.name}.{meta.namespace}.svc.{self.cluster_domain}".lower()

    def _given_addresses(self, objects: ObjectSet) -> dict[str, tuple[str, ...]]:
        given = self._allocator.give(objects)
        return {
            self.name_of(service): given[key]
            for service in objects.services.values()
            if (key := f"{service.meta.namespace}/{service.meta.name}") in given
        }


def _members(service: Service, pods: Iterable[ServingPod]) -> Iterator[ServingPod]:
    """The pods that the service's selector chooses; none without a selector."""
    wanted = service.selector.items()
    for pod in pods:
        serves = pod.namespace == service.meta.namespace and (
            pod.ready or service.publish_not_ready
        )
        if serves and wanted and wanted <= pod.labels.items():
            yield pod


def _ready_addresses(one: EndpointSlice) -> Iterator[str]:
    if not one.fqdn:
        for endpoint in one.endpoints:
            if endpoint.ready:
                yield from endpoint.addresses


def _virtual_addresses(
    service: Service,
    addresses: Iterable[str],
    pods: list[ServingPod],
    slices: list[EndpointSlice],
) -> Iterator[VirtualAddress]:
    label = f"{service.meta.namespace}/{service.meta.name}"
    for port in service.ports:
        if port.protocol not in PROTOCOLS:
            continue
        everyone = set(_pod_endpoints(port, pods))
        for one in slices:
            number = next((p.number for p in one.ports if p.name == port.name), None)
            if number is not None:
                everyone.update((address, number) for address in _ready_addresses(one))
        for address in addresses:
            same_family = tuple(sorted(e for e in everyone if (":" in e[0]) == (":" in address)))
            yield VirtualAddress(label, address, port.number, port.protocol, same_family)


def _pod_endpoints(port: ServicePort, pods: Iterable[ServingPod]) -> Iterator[SocketAddress]:
    for pod in pods:
        number = pod.ports.get(port.target) if isinstance(port.target, str) else port.target
        if number is not None:
            for address in pod.addresses:
                yield (address, number)
