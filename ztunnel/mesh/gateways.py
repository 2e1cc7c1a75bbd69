"""Waypoints and gateways of other networks: finding a workload that serves one."""

from __future__ import annotations

from collections.abc import Collection
from random import Random
from typing import NamedTuple

from ztunnel.mesh import load_balance
from ztunnel.mesh.identity import Identity
from ztunnel.mesh.service import IPFamilies, Service
from ztunnel.mesh.service_table import ServiceRecord
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import (
    GatewayAddress,
    NamespacedHostname,
    NetworkAddress,
    Workload,
    WorkloadStatus,
)


class Upstream(NamedTuple):
    """A workload to connect to, the port, and the service through which it was found."""

    workload: Workload
    port: int
    service: Service | None

    def identities(self) -> tuple[Identity, ...]:
        """Who may answer there: the workload, and whoever the service says."""
        identity = self.workload.identity
        if self.service is None or not self.service.subject_alt_names:
            return (identity,)
        return tuple(dict.fromkeys((identity, *self.service.subject_alt_names)))

    def families(self) -> IPFamilies:
        """Which address families may be used."""
        return self.service.ip_families if self.service is not None else IPFamilies.AUTOMATIC


class NotFound(NamedTuple):
    """There is no such gateway. `lookup` is a key to ask the control plane for, or ""."""

    lookup: str
    reason: str


def find_record(state: MeshState, gateway: GatewayAddress) -> ServiceRecord | None:
    """The service that a gateway's address or hostname names, of any visibility."""
    destination = gateway.destination
    if isinstance(destination, NamespacedHostname):
        return state.services.get(destination.key)
    at_vip = state.services.at_vip(destination.network, destination.address)
    return min(at_vip, key=lambda record: record.key) if at_vip else None


def find_workloads(state: MeshState, gateway: GatewayAddress) -> list[Workload]:
    """The workloads that a gateway's address or hostname names without a service between."""
    destination = gateway.destination
    if isinstance(destination, NetworkAddress):
        found = state.workload_by_address(destination.network, destination.address)
        return [found] if found is not None else []
    named = state.workloads_by_hostname(destination.hostname)
    return [workload for workload in named if workload.namespace == destination.namespace]


def choose_upstream(
    state: MeshState,
    gateway: GatewayAddress,
    source: Workload,
    rng: Random,
    exclude: Collection[str],
    prefer: str,
) -> Upstream | NotFound:
    """A workload that serves `gateway`; a service is balanced over like any other."""
    port = gateway.hbone_mtls_port
    record = find_record(state, gateway)
    if record is not None and record.service is not None:
        chosen = load_balance.choose(
            record, source, port, rng, as_waypoint=True, exclude=exclude, prefer=prefer
        )
        if chosen is not None:
            return Upstream(chosen[0], chosen[1], record.service)
        why = load_balance.why_none(record, source, port, as_waypoint=True, exclude=exclude)
        return NotFound("", f"its service {record.service} {why}")
    workloads = find_workloads(state, gateway)
    usable = [
        workload
        for workload in workloads
        if workload.uid not in exclude and workload.status is WorkloadStatus.HEALTHY
    ]
    if usable:
        preferred = [workload for workload in usable if workload.uid == prefer]
        return Upstream(preferred[0] if preferred else rng.choice(usable), port, None)
    if workloads:
        return NotFound("", "its workloads are unhealthy or were tried and failed")
    lookup = missing_lookup(state, gateway)
    if lookup:
        return NotFound(lookup, "it must be asked for")
    return NotFound("", "no service or workload of that name is known; is it deployed?")


def serves(state: MeshState, workload: Workload, gateway: GatewayAddress) -> bool:
    """Whether `workload` is this gateway.

    Its service account alone does not make it one: other pods may run under the same.
    """
    record = find_record(state, gateway)
    if record is not None:
        return workload.uid in record.endpoints
    return any(found.uid == workload.uid for found in find_workloads(state, gateway))


def missing_lookup(state: MeshState, gateway: GatewayAddress) -> str:
    """The key to ask the control plane for before this gateway counts as unknown; "" if none."""
    key = gateway.destination.key
    if not state.needs_lookup(key) or find_record(state, gateway) is not None:
        return ""
    return "" if find_workloads(state, gateway) else key
