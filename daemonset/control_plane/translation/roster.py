"""Which workload serves which port of which service, kept up to date change by change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from daemonset.control_plane.objects.endpoint_slice import EndpointSlice
from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.objects.objectset import Named
from daemonset.control_plane.objects.selector import LabelSelector
from daemonset.control_plane.translation.endpoints import (
    PortPair,
    Selectable,
    ServicePorts,
    ports_of,
    slice_ports,
)
from daemonset.control_plane.translation.label_index import LabelIndex, SelectorIndex
from daemonset.control_plane.translation.service_info import ServiceInfo

K = TypeVar("K")
V = TypeVar("V")

Others = dict[str, tuple[bool, ServicePorts]]
"""The addresses of a slice that are no pod's: address -> is it ready, and what it serves."""


@dataclass(slots=True)
class Turnout:
    """What has changed: workloads that came, went or serve something else; services whose ports
    at some workload are others; slices whose other addresses are others."""

    workloads: set[ObjectKey] = field(default_factory=set)
    services: set[str] = field(default_factory=set)
    slices: set[Named] = field(default_factory=set)


class Roster:
    """All workloads with their labels, and what they serve.

    Attributes:
        workloads: pods that have not ended, and WorkloadEntries.
        serving: what a workload serves. members: who serves a service, by its name.
        others: endpoints that are no pods, by (namespace, slice).
    """

    def __init__(self) -> None:
        self.workloads: LabelIndex[Selectable] = LabelIndex()
        self.serving: dict[ObjectKey, ServicePorts] = {}
        self.members: dict[str, set[ObjectKey]] = {}
        self.others: dict[Named, Others] = {}
        self._services: dict[str, ServiceInfo] = {}
        self._selectors: SelectorIndex[str] = SelectorIndex()
        self._listed: dict[Named, ServiceInfo] = {}
        self._slices: dict[Named, EndpointSlice] = {}
        self._slices_of: dict[Named, set[Named]] = {}
        self._slices_with: dict[ObjectKey, set[Named]] = {}

    def update(
        self,
        workloads: Mapping[ObjectKey, Selectable | None],
        services: Mapping[str, ServiceInfo | None],
        slices: Mapping[Named, EndpointSlice | None],
    ) -> Turnout:
        """Take in what has changed (None: it is gone)."""
        turnout = Turnout(workloads=set(workloads), slices=set(slices))
        doubtful = set(workloads)
        for key, workload in workloads.items():
            if workload is None:
                self.workloads.drop(key)
            else:
                self.workloads.put(workload)
        for place, endpoint_slice in slices.items():
            doubtful.update(self._replace_slice(place, endpoint_slice))
        for name, service in services.items():
            doubtful.update(self._replace_service(name, service, turnout.slices))
        for place in turnout.slices:
            doubtful.update(self._read_slice(place))
        for key in doubtful:
            self._look_at(key, turnout)
        return turnout

    def _replace_service(
        self, name: str, service: ServiceInfo | None, slices: set[Named]
    ) -> Iterator[ObjectKey]:
        """Who may serve it, or has served it; ``slices`` gets those that list it."""
        before = self._services.pop(name, None)
        self._selectors.drop(name)
        yield from self.members.get(name, ())
        for one in (before, service):
            if one is not None and _may_be_listed(one):
                place = (one.meta.namespace, one.meta.name)
                self._listed.pop(place, None)
                slices.update(self._slices_of.get(place, ()))
        if service is None:
            return
        self._services[name] = service
        if _may_be_listed(service):
            self._listed[service.meta.namespace, service.meta.name] = service
        if service.selector is not None and service.selector != LabelSelector():
            # An empty selector means that endpoints are listed elsewhere.
            self._selectors.put(name, service.meta.namespace, service.selector)
            found = self.workloads.select(service.meta.namespace, service.selector)
            yield from (workload.key for workload in found)

    def _replace_slice(
        self, place: Named, endpoint_slice: EndpointSlice | None
    ) -> Iterator[ObjectKey]:
        """The pods that it names, and those that it has named."""
        before = self._slices.pop(place, None)
        if before is not None:
            untie(self._slices_of, (place[0], before.service), place)
            for pod in _pods_of(before):
                untie(self._slices_with, pod, place)
                yield pod
        if endpoint_slice is not None:
            self._slices[place] = endpoint_slice
            self._slices_of.setdefault((place[0], endpoint_slice.service), set()).add(place)
            for pod in _pods_of(endpoint_slice):
                self._slices_with.setdefault(pod, set()).add(place)
                yield pod

    def _read_slice(self, place: Named) -> Iterator[ObjectKey]:
        """Its pods; what else stands in it goes to ``others``."""
        self.others.pop(place, None)
        endpoint_slice = self._slices.get(place)
        if endpoint_slice is None:
            return
        yield from _pods_of(endpoint_slice)
        service = self._listed.get((place[0], endpoint_slice.service))
        if service is None or endpoint_slice.fqdn:
            return
        ports = slice_ports(service, endpoint_slice)
        # One that names a pod which is gone, or not yet here, is nobody.
        found: Others = {
            address: (endpoint.ready, {service.name: ports})
            for endpoint in endpoint_slice.endpoints
            if not endpoint.pod
            for address in endpoint.addresses
        }
        if found:
            self.others[place] = found

    def _look_at(self, key: ObjectKey, turnout: Turnout) -> None:
        workload = self.workloads.get(key)
        before = self.serving.pop(key, {})
        now = self._served_by(workload) if workload is not None else {}
        if now:
            self.serving[key] = now
        if now == before:
            return
        turnout.workloads.add(key)
        for name in before.keys() | now.keys():
            if before.get(name) == now.get(name):
                continue
            turnout.services.add(name)
            if name not in now:
                untie(self.members, name, key)
            elif name not in before:
                self.members.setdefault(name, set()).add(key)

    def _served_by(self, workload: Selectable) -> ServicePorts:
        key = workload.key
        is_pod = key.kind == "Pod"
        found: ServicePorts = {}
        for name in self._selectors.matching(key.namespace, workload.labels):
            found[name] = ports_of(self._services[name], workload.ports, is_pod=is_pod)
        selected = frozenset(found)
        for place in self._slices_with.get(key, ()) if is_pod else ():
            endpoint_slice = self._slices[place]
            service = self._listed.get((key.namespace, endpoint_slice.service))
            if service is None or endpoint_slice.fqdn:
                continue
            if service.name not in selected:
                ports: set[PortPair] = set(slice_ports(service, endpoint_slice))
                found[service.name] = tuple(sorted(ports.union(found.get(service.name, ()))))
        return found


def _may_be_listed(service: ServiceInfo) -> bool:
    """May slices say who serves it? Kubernetes sends to whatever they list, selector or not."""
    return service.meta.kind == "Service"


def _pods_of(endpoint_slice: EndpointSlice) -> set[ObjectKey]:
    namespace = endpoint_slice.meta.namespace
    return {ObjectKey("Pod", namespace, one.pod) for one in endpoint_slice.endpoints if one.pod}


def untie(ties: dict[K, set[V]], key: K, value: V) -> None:
    """Take a value out of a set of them by key; empty sets are not kept."""
    ties[key].discard(value)
    if not ties[key]:
        del ties[key]
