"""Which endpoint of a service a connection goes to.

Weighted random by capacity, over the endpoints that are healthy, reachable, have the port and
come nearest to the client as the service's routing preference counts it. What depends only on
the service and on where the client runs is worked out once and kept in the service's record
until the service or one of its endpoints changes.
"""

from __future__ import annotations

from collections.abc import Collection
from random import Random

from ztunnel.mesh.address import is_ipv6
from ztunnel.mesh.selection import Selection
from ztunnel.mesh.service import HealthPolicy, IPFamilies, LoadBalancingMode, Scope, Service
from ztunnel.mesh.service_table import SelectionKey, ServiceRecord
from ztunnel.mesh.workload import Workload, WorkloadStatus

# Ports and places of clients per service; more only when somebody scans ports.
_REMEMBERED = 64


def choose(
    record: ServiceRecord,
    source: Workload,
    port: int,
    rng: Random,
    *,
    as_waypoint: bool = False,
    exclude: Collection[str] = (),
    prefer: str = "",
) -> tuple[Workload, int] | None:
    """An endpoint and its target port; None when there is none.

    Args:
        record: the service; its definition must be known.
        source: the client.
        port: the service port.
        rng: the source of randomness.
        as_waypoint: the service is a waypoint or gateway, reached for its own sake: an endpoint
            with an application tunnel does not need the port on the service.
        exclude: uids of endpoints that were tried and failed.
        prefer: uid to take if it is among those that could be chosen.
    """
    service = record.service
    if service is None:
        return None
    if exclude:
        selection = _select(record, service, source, port, as_waypoint, exclude)
    else:
        mode = service.load_balancing.mode
        if mode is LoadBalancingMode.STANDARD:
            key: SelectionKey = (port, as_waypoint, source.network)
        else:
            key = (port, as_waypoint, source.placement)
        known = record.selections.get(key)
        if known is None:
            known = _select(record, service, source, port, as_waypoint, ())
            if len(record.selections) >= _REMEMBERED:
                record.selections.clear()
            record.selections[key] = known
        selection = known
    if prefer:
        for choice in selection.choices:
            if choice[0].uid == prefer:
                return choice
    return selection.choose(rng)


def target_port(service: Service, workload: Workload, port: int, as_waypoint: bool) -> int:
    """The port at which `workload` serves the service's `port`; 0 when it does not."""
    if port not in service.ports:
        return port if as_waypoint and workload.application_tunnel is not None else 0
    mapped = workload.services.get(service.key, {}).get(port, 0)
    return mapped or service.ports[port]


def accepts_family(families: IPFamilies, ip: str) -> bool:
    """Whether a service of these families may be served at `ip`."""
    if families is IPFamilies.IPV4_ONLY:
        return not is_ipv6(ip)
    return families is not IPFamilies.IPV6_ONLY or is_ipv6(ip)


def _select(
    record: ServiceRecord,
    service: Service,
    source: Workload,
    port: int,
    as_waypoint: bool,
    exclude: Collection[str],
) -> Selection:
    usable = [
        (workload, target)
        for workload in record.endpoints.values()
        if workload.uid not in exclude
        and workload.capacity > 0
        and _healthy(service, workload)
        and _reachable(service, workload, source)
        and (target := target_port(service, workload, port, as_waypoint))
    ]
    return Selection(_nearest(service, source, usable))


def _healthy(service: Service, workload: Workload) -> bool:
    return (
        workload.status is WorkloadStatus.HEALTHY
        or service.load_balancing.health_policy is HealthPolicy.ALLOW_ALL
    )


def _reachable(service: Service, workload: Workload, source: Workload) -> bool:
    if workload.network != source.network:
        return workload.network_gateway is not None
    if not workload.addresses:
        return workload.hostname != ""
    families = service.ip_families
    return any(accepts_family(families, ip) for ip in workload.addresses)


def _nearest(
    service: Service, source: Workload, usable: list[tuple[Workload, int]]
) -> list[tuple[Workload, int]]:
    balancing = service.load_balancing
    mode, scopes = balancing.mode, balancing.routing_preference
    if mode not in (LoadBalancingMode.STRICT, LoadBalancingMode.FAILOVER) or not scopes:
        return usable
    ranked = [(_rank(scopes, source, choice[0]), choice) for choice in usable]
    if mode is LoadBalancingMode.STRICT:
        return [choice for (matched, _), choice in ranked if matched == len(scopes)]
    best = max((rank for (_, rank), _ in ranked), default=0)
    return [choice for (_, rank), choice in ranked if rank == best]


def _rank(scopes: tuple[Scope, ...], source: Workload, workload: Workload) -> tuple[int, int]:
    """(leading scopes in common, order of preference).

    A network that is first in the preference counts for more than everything behind it, and
    what is behind it still counts among endpoints of other networks.
    """
    matched = 0
    for scope in scopes:
        if getattr(source.placement, scope.value) == getattr(workload.placement, scope.value):
            matched += 1
        elif scope is not Scope.NETWORK or scope is not scopes[0]:
            break
    network_first = scopes[0] is Scope.NETWORK and source.network == workload.network
    return matched, matched + (len(scopes) - 1 if network_first else 0)


def why_none(
    record: ServiceRecord,
    source: Workload,
    port: int,
    *,
    as_waypoint: bool = False,
    exclude: Collection[str] = (),
) -> str:
    """Why `choose` found nothing, in words that follow "service NAME"."""
    service = record.service
    if service is None:
        return "is not known"
    endpoints = list(record.endpoints.values())
    if port not in service.ports and not (
        as_waypoint and any(w.application_tunnel is not None for w in endpoints)
    ):
        ports = ", ".join(str(number) for number in sorted(service.ports)) or "none"
        return f"has no port {port} (its ports: {ports}); add the port to the service"
    if not endpoints:
        return "has no endpoints; check that its selector matches running pods"
    remaining = [w for w in endpoints if w.uid not in exclude]
    if not remaining:
        return f"has no endpoint left: all {len(endpoints)} were tried and failed"
    healthy = [w for w in remaining if _healthy(service, w)]
    if not healthy:
        return f"has no healthy endpoint ({len(remaining)} unhealthy); check the pods' readiness"
    with_port = [w for w in healthy if target_port(service, w, port, as_waypoint)]
    if not with_port:
        return f"has no endpoint that declares the named target of port {port}"
    reachable = [w for w in with_port if _reachable(service, w, source)]
    if not reachable:
        return (
            f"has no endpoint that can be reached from network {source.network!r} with address"
            f" family {service.ip_families.value}; check its addresses and network gateways"
        )
    if not any(w.capacity for w in reachable):
        return "has only endpoints of capacity 0; give one of them a weight"
    scopes = ", ".join(scope.value for scope in service.load_balancing.routing_preference)
    return (
        f"may only use endpoints with the same {scopes} as the client, and has none; relax its"
        " traffic distribution"
    )
