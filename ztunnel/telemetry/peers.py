"""Workloads and services of the mesh -> what telemetry says of them, one object for each."""

from __future__ import annotations

from typing import Final

from ztunnel.mesh.service import Service
from ztunnel.mesh.workload import Workload
from ztunnel.telemetry.labels import Peer, ServiceLabels


class PeerTable:
    """Keeps one :class:`Peer` for each workload and one :class:`ServiceLabels` for each service,
    for as long as these are the same objects.

    Only what has been asked for is kept, and no more than ``limit`` of each kind: beyond it the
    table starts afresh, which costs some work and changes no figure.
    """

    def __init__(self, limit: int = 32768) -> None:
        self.limit: Final = limit
        self._workloads: dict[str, tuple[Workload, Peer]] = {}
        self._services: dict[str, tuple[Service, ServiceLabels]] = {}
        self._described: dict[tuple[str, ...], Peer] = {}

    def workload(self, workload: Workload) -> Peer:
        """What is said of ``workload``."""
        known = self._workloads.get(workload.uid)
        if known is not None and known[0] is workload:
            return known[1]
        if len(self._workloads) >= self.limit:
            self._workloads.clear()
        peer = Peer(
            # A workload of another network may have no name; its service is then the best one.
            workload.name or workload.canonical_name,
            workload.namespace,
            workload.workload_name,
            workload.canonical_name,
            workload.canonical_revision,
            workload.identity.uri,
            workload.cluster_id,
            workload.locality.region,
            workload.locality.zone,
        )
        self._workloads[workload.uid] = (workload, peer)
        return peer

    def service(self, service: Service) -> ServiceLabels:
        """What is said of ``service``."""
        key = service.key
        known = self._services.get(key)
        if known is not None and known[0] is service:
            return known[1]
        if len(self._services) >= self.limit:
            self._services.clear()
        labels = ServiceLabels(service.hostname, service.namespace, service.name)
        self._services[key] = (service, labels)
        return labels

    def described(
        self,
        namespace: str,
        workload: str,
        canonical_service: str,
        canonical_revision: str,
        identity: str,
        cluster: str,
        region: str,
        zone: str,
    ) -> Peer:
        """What an end says of itself in its baggage, where the mesh does not know it."""
        key = (
            namespace,
            workload,
            canonical_service,
            canonical_revision,
            identity,
            cluster,
            region,
            zone,
        )
        peer = self._described.get(key)
        if peer is None:
            if len(self._described) >= self.limit:
                self._described.clear()
            peer = self._described[key] = Peer(workload or canonical_service, *key)
        return peer
