"""The whole translation: objects in, resources and findings out."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from daemonset.control_plane.objects.meta import ObjectKey, ObjectMeta
from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.objects.pod import Pod
from daemonset.control_plane.objects.service_entry import ServiceEntry
from daemonset.control_plane.objects.workload_entry import EntrySpec
from daemonset.control_plane.translation.endpoints import (
    ServicePorts,
    ports_of,
    select_endpoints,
    selectable_entry,
    slice_ports,
)
from daemonset.control_plane.translation.enrolment import (
    is_captured,
    is_selected,
    speaks_hbone_itself,
)
from daemonset.control_plane.translation.finding import Finding, Findings
from daemonset.control_plane.translation.memory import Memory
from daemonset.control_plane.translation.networks import NETWORK, REMOTE_CLASS, Networks
from daemonset.control_plane.translation.peer_authentication import Verdict
from daemonset.control_plane.translation.policies import Policies
from daemonset.control_plane.translation.resident import Resident
from daemonset.control_plane.translation.resource import Resource
from daemonset.control_plane.translation.revisions import of_revision
from daemonset.control_plane.translation.service_info import ServiceInfo
from daemonset.control_plane.translation.service_list import (
    Allocators,
    list_services,
    service_resources,
)
from daemonset.control_plane.translation.settings import (
    DATAPLANE_MODE,
    DEFAULT_ENABLEMENT,
    MeshSettings,
)
from daemonset.control_plane.translation.waypoints import Waypoints
from daemonset.control_plane.translation.workloads import WorkloadWriter

_DNS = ("DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS")


@dataclass(frozen=True, slots=True)
class Translation:
    """What one set of objects comes to. Resources are keyed by name.

    ``residents`` are the workloads that somebody's proxy answers for, ``services`` those that the
    resources speak of.
    """

    addresses: Mapping[str, Resource]
    authorizations: Mapping[str, Resource]
    findings: tuple[Finding, ...]
    residents: Mapping[ObjectKey, Resident]
    services: tuple[ServiceInfo, ...] = ()


class Translator:
    """Translates again and again. Keeps the addresses that it has given, and what pods came to."""

    def __init__(self, settings: MeshSettings) -> None:
        self._settings = settings
        self._allocators = Allocators(settings)
        self._memory = Memory()

    def translate(
        self, objects: ObjectSet, captured: Set[tuple[str, str]] | None = None
    ) -> Translation:
        """Translate all objects.

        Args:
            objects: all of the mesh.
            captured: (namespace, name) of the pods whose traffic a node proxy takes, where node
                agents report that; None: whatever labels want in the mesh counts as captured.
        """
        self._memory.turn()
        return _Run(objects, self._settings, self._allocators, captured, self._memory).run()


class _Run:
    """One translation."""

    def __init__(
        self,
        objects: ObjectSet,
        settings: MeshSettings,
        allocators: Allocators,
        captured: Set[tuple[str, str]] | None,
        memory: Memory,
    ) -> None:
        self._memory = memory
        self._findings = Findings()
        objects = of_revision(objects, settings.revision, self._findings)
        self._objects = objects
        self._settings = settings
        self._captured = captured
        self._networks = Networks(objects, settings)
        self._waypoints = Waypoints(objects, settings, self._networks.own, self._findings)
        self._services = list_services(
            objects, self._waypoints, allocators, settings, self._findings
        )
        # Those without an address are not published yet, but their policies are chosen.
        self._pods = [pod for pod in objects.pods.values() if not pod.finished]
        self._residents: dict[ObjectKey, Resident] = {}
        self._selectables = memory.selectables(self._pods)
        entries = objects.workload_entries.values()
        index = memory.index([*self._selectables, *map(selectable_entry, entries)])
        self._endpoints = select_endpoints(self._services, index)
        self._others = self._read_slices()
        self._policies = Policies(
            objects, self._services, self._endpoints, index, settings, self._findings
        )
        self._writer = WorkloadWriter(objects, settings, self._networks)

    def run(self) -> Translation:
        self._report_shared_addresses()
        self._report_unknown_modes()
        addresses: dict[str, Resource] = {}
        for resource in service_resources(
            self._services, self._networks.own, self._memory.services
        ):
            addresses[resource.name] = resource
        for resource in self._networks.resources():
            addresses[resource.name] = resource
        for pod, selectable in zip(self._pods, self._selectables, strict=True):
            policies, verdict = self._policies.of_workload(selectable.key, pod.meta.labels)
            self._reside(selectable.key, pod.node, pod.service_account, pod.meta.labels, policies)
            if pod.ips:
                resource = self._pod(pod, selectable.key, policies, verdict)
                addresses[resource.name] = resource
        self._entries(addresses)
        for (namespace, name, address), (ready, services) in self._others.items():
            resource = self._writer.slice_endpoint(namespace, name, address, ready, services)
            addresses[resource.name] = resource
        authorizations = {resource.name: resource for resource in self._policies.resources()}
        return Translation(
            addresses,
            authorizations,
            self._findings.sorted(),
            self._residents,
            tuple(self._services),
        )

    def _reside(
        self,
        key: ObjectKey,
        node: str,
        service_account: str,
        labels: Mapping[str, str],
        policies: list[str],
    ) -> None:
        own_proxy = speaks_hbone_itself(labels)
        if node or own_proxy:
            self._residents[key] = Resident(
                key.namespace, service_account, node, tuple(policies), own_proxy
            )

    def _report_shared_addresses(self) -> None:
        """Whoever shares an address can be taken for the other, identity and all."""
        owners: dict[str, ObjectKey] = {}
        claims = [
            (address, pod.meta.key, "status.podIP")
            for pod in self._pods
            if not pod.host_network
            for address in pod.ips
        ]
        claims += [
            (str(block.network_address), service.meta.key, "spec.clusterIP")
            for service in self._services
            if service.meta.kind == "Service"
            for block in service.addresses
        ]
        for address, key, field in claims:
            owner = owners.setdefault(address, key)
            if owner != key:
                self._findings.error(
                    key,
                    field,
                    "AddressTaken",
                    f"{address} is the address of {owner} as well: connections may reach either.",
                    "Give each an address of its own.",
                )

    def _report_unknown_modes(self) -> None:
        """Other labels than the usual one may mean anything."""
        if self._settings.enablement != DEFAULT_ENABLEMENT:
            return
        for namespace in self._objects.namespaces.values():
            mode = namespace.meta.labels.get(DATAPLANE_MODE, "none")
            if mode not in ("ambient", "none"):
                self._findings.warning(
                    namespace.meta.key,
                    f"metadata.labels.{DATAPLANE_MODE}",
                    "UnknownMode",
                    f"must be ambient or none, not {mode!r}: it has no effect.",
                )

    def _pod(self, pod: Pod, key: ObjectKey, policies: list[str], verdict: Verdict) -> Resource:
        captured = self._is_captured(pod)
        reached = captured or is_captured(pod) or speaks_hbone_itself(pod.meta.labels)
        if not reached:
            self._report_not_captured(pod, policies, verdict.strict)
        if self._objects.nodes and pod.node and pod.node not in self._objects.nodes:
            self._findings.warning(
                key,
                "spec.nodeName",
                "UnknownNode",
                f"there is no Node {pod.node!r}: nobody captures it there.",
            )
        services = self._endpoints.get(key, {})
        waypoint = self._waypoints.of_workload(pod.meta)
        tunnel = self._waypoints.application_tunnel(pod.meta)
        locality, network = self._writer.locality(pod.node), self._networks.own
        return self._memory.pods.get(
            (key.namespace, key.name),
            (pod, services, policies, waypoint, tunnel, captured, locality, network),
            lambda: self._writer.pod(pod, services, policies, waypoint, tunnel, captured=captured),
        )

    def _is_captured(self, pod: Pod) -> bool:
        if self._captured is not None:
            return (pod.meta.namespace, pod.meta.name) in self._captured
        return self._is_selected(pod)

    def _is_selected(self, pod: Pod) -> bool:
        namespace = self._objects.namespaces.get(pod.meta.namespace)
        return self._memory.selected.get(
            (pod.meta.namespace, pod.meta.name),
            (pod, namespace),
            lambda: is_selected(pod, namespace, self._settings),
        )

    def _report_not_captured(self, pod: Pod, policies: list[str], strict: bool) -> None:
        nowhere = ""
        if policies:
            what = "STRICT and its policies are" if strict else "its policies are"
            nowhere = f"; {what} enforced nowhere ({', '.join(policies)})"
        if self._is_selected(pod):
            self._findings.warning(
                pod.meta.key,
                "",
                "NotCaptured",
                f"is to be in the mesh and no node agent has captured it{nowhere}.",
                "See the node agent's log.",
            )
        elif policies:
            self._findings.warning(
                pod.meta.key,
                "",
                "NotInMesh",
                f"is not in the mesh{nowhere}.",
                "Label the pod or its namespace istio.io/dataplane-mode: ambient.",
            )

    def _entries(self, addresses: dict[str, Resource]) -> None:
        for entry in self._objects.workload_entries.values():
            key = entry.meta.key
            labels = selectable_entry(entry).labels
            policies, _ = self._policies.of_workload(key, labels)
            self._reside(key, "", entry.spec.service_account, labels, policies)
            services = self._endpoints.get(key, {})
            waypoint = self._waypoints.of_workload(entry.meta)
            self._report_unreachable(key, "spec.network", entry.spec.network)
            resource = self._writer.workload_entry(entry, services, policies, waypoint)
            addresses[resource.name] = resource
        by_object: dict[ObjectKey, list[ServiceInfo]] = {}
        for service in self._services:
            by_object.setdefault(service.meta.key, []).append(service)
        for service_entry in self._objects.service_entries.values():
            hosts = by_object.get(service_entry.meta.key, [])
            for resource in self._inline_endpoints(service_entry.meta, service_entry, hosts):
                addresses[resource.name] = resource

    def _report_unreachable(self, key: ObjectKey, field: str, network: str) -> None:
        if not network or network == self._networks.own or self._networks.gateway_to(network):
            return
        self._findings.warning(
            key,
            field,
            "NoNetworkGateway",
            f"no gateway of network {network!r} is known: it cannot be reached.",
            f"Add a Gateway of class {REMOTE_CLASS} with the label {NETWORK}: {network}.",
        )

    def _inline_endpoints(
        self, meta: ObjectMeta, entry: ServiceEntry, hosts: list[ServiceInfo]
    ) -> list[Resource]:
        """Endpoints that stand in the entry; a host that is to be looked up in DNS and has none
        stands for itself. Resolution NONE has none: clients' own destination counts."""
        result: list[Resource] = []
        for number, spec in enumerate(entry.endpoints):
            self._report_unreachable(meta.key, f"spec.endpoints[{number}].network", spec.network)
            services: ServicePorts = {
                host.name: ports_of(host, spec.ports, is_pod=False) for host in hosts
            }
            policies = self._policies.of_labels(meta.namespace, spec.labels)
            result.append(
                self._writer.inline_endpoint(meta.namespace, meta.name, spec, services, policies)
            )
        if entry.endpoints or entry.selector is not None or entry.resolution not in _DNS:
            return result
        for host in hosts:
            if host.hostname.startswith("*"):
                continue
            spec = EntrySpec("", host.hostname, {}, {}, "", "", None, "")
            services = {host.name: ports_of(host, {}, is_pod=False)}
            policies = self._policies.of_labels(meta.namespace, {})
            result.append(
                self._writer.inline_endpoint(meta.namespace, meta.name, spec, services, policies)
            )
        return result

    def _read_slices(self) -> dict[tuple[str, str, str], tuple[bool, ServicePorts]]:
        """Endpoints of services without a selector: pods join ``_endpoints``, other addresses
        are returned, by (namespace, slice, address)."""
        by_name = {
            (service.meta.namespace, service.meta.name): service
            for service in self._services
            if service.meta.kind == "Service" and service.selector is None
        }
        others: dict[tuple[str, str, str], tuple[bool, ServicePorts]] = {}
        for endpoint_slice in self._objects.endpoint_slices.values():
            namespace = endpoint_slice.meta.namespace
            service = by_name.get((namespace, endpoint_slice.service))
            if service is None or endpoint_slice.fqdn:
                continue
            ports = slice_ports(service, endpoint_slice)
            for endpoint in endpoint_slice.endpoints:
                pod = self._objects.pods.get((namespace, endpoint.pod)) if endpoint.pod else None
                if pod is not None:
                    known = self._endpoints.setdefault(pod.meta.key, {})
                    known[service.name] = tuple(sorted({*known.get(service.name, ()), *ports}))
                    continue
                if endpoint.pod:
                    continue  # the pod is gone, or not yet here
                for address in endpoint.addresses:
                    place = (namespace, endpoint_slice.meta.name, address)
                    others[place] = (endpoint.ready, {service.name: ports})
        return others
