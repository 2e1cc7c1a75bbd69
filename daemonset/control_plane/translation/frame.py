"""What workloads stand in: networks, waypoints, services. Rebuilt as a whole when any object that
it is made of changes, of which there are few; what comes out is compared with what was there.
"""

from __future__ import annotations

from collections.abc import Iterable

from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.objects.namespace import Namespace
from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.translation.finding import Ledger
from daemonset.control_plane.translation.joins import report_unknown_joins
from daemonset.control_plane.translation.memory import Kept
from daemonset.control_plane.translation.networks import Networks
from daemonset.control_plane.translation.resource import Resource
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

KINDS = ("namespaces", "nodes", "services", "service_entries", "gateways", "gateway_classes")
"""What it is made of (fields of ObjectSet)."""


class Frame:
    """The frame for one set of objects.

    Attributes:
        listed: all services. services: by resource name. hosts: those of one object.
    """

    def __init__(
        self,
        objects: ObjectSet,
        settings: MeshSettings,
        allocators: Allocators,
        findings: Ledger,
        known: Kept[str, Resource],
    ) -> None:
        self._known = known
        self.networks = Networks(objects, settings)
        self.waypoints = Waypoints(objects, settings, self.networks.own, findings)
        self.writer = WorkloadWriter(objects, settings, self.networks)
        with findings.part("namespaces"):
            _report_unknown_modes(objects.namespaces.values(), settings, findings)
            report_unknown_joins(objects.namespaces.values(), findings)
        with findings.part("services"):
            services = list_services(objects, self.waypoints, allocators, settings, findings)
        self.listed = tuple(services)
        self.services = {service.name: service for service in services}
        self.hosts: dict[ObjectKey, list[ServiceInfo]] = {}
        for service in services:
            self.hosts.setdefault(service.meta.key, []).append(service)

    def resources(self) -> Iterable[Resource]:
        """Services, and the gateways of other networks; of two with one name the later counts."""
        yield from service_resources(self.listed, self.networks.own, self._known)
        yield from self.networks.resources()


def _report_unknown_modes(
    namespaces: Iterable[Namespace], settings: MeshSettings, findings: Ledger
) -> None:
    """Other labels than the usual one may mean anything."""
    if settings.enablement != DEFAULT_ENABLEMENT:
        return
    for namespace in namespaces:
        mode = namespace.meta.labels.get(DATAPLANE_MODE, "none")
        if mode not in ("ambient", "none"):
            findings.warning(
                namespace.meta.key,
                f"metadata.labels.{DATAPLANE_MODE}",
                "UnknownMode",
                f"must be ambient or none, not {mode!r}: it has no effect.",
            )
        elif mode == "ambient" and namespace.meta.name in settings.excluded_namespaces:
            findings.warning(
                namespace.meta.key,
                f"metadata.labels.{DATAPLANE_MODE}",
                "ExcludedNamespace",
                "no pod of this namespace is ever in the mesh: the label has no effect.",
            )
