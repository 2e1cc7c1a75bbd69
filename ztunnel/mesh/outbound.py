"""Where does a connection go? Decided at the source, for each connection, from the state alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from random import Random

from ztunnel.mesh import load_balance
from ztunnel.mesh.address import SocketAddress, format_address, is_ipv6, is_loopback
from ztunnel.mesh.decision import (
    Decision,
    Direct,
    Hbone,
    NeedsDns,
    NeedsLookup,
    Passthrough,
    RefusalCode,
    Refuse,
    Via,
)
from ztunnel.mesh.gateways import NotFound, Upstream, choose_upstream, serves
from ztunnel.mesh.identity import Identity
from ztunnel.mesh.service import IPFamilies, LoadBalancingMode, Service
from ztunnel.mesh.service_table import ServiceRecord
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import HBONE_PORT, GatewayAddress, TunnelProtocol, Workload

# The proxy's own listeners: outbound, plaintext inbound, HBONE. A connection from a pod to one
# of them on itself would go round in circles.
ILLEGAL_PORTS = frozenset({15001, 15006, HBONE_PORT})


def decide(
    state: MeshState,
    source: Workload,
    destination: SocketAddress,
    *,
    rng: Random,
    resolved: Mapping[str, Sequence[str]] | None = None,
    exclude: Collection[str] = (),
    prefer: str = "",
    illegal_ports: Collection[int] = ILLEGAL_PORTS,
) -> Decision:
    """Decide about one connection of a local pod.

    Args:
        state: of the mesh.
        source: the local workload that connects.
        destination: original destination, address as canonical text.
        rng: the source of randomness for load balancing.
        resolved: what is known of hostnames: canonical addresses, or none when a name does not
            resolve. A `NeedsDns` answer asks for an entry.
        exclude: uids of workloads to which connecting failed, for another try.
        prefer: uid of a workload to choose if it can be chosen; from a `NeedsDns` answer.
        illegal_ports: the proxy's own ports, at which a pod must not call itself.

    Returns:
        The decision with its reason; see `decision`.
    """
    ip, port = destination
    if port in illegal_ports and (is_loopback(ip) or ip in source.addresses):
        return Refuse(
            RefusalCode.SELF_CALL,
            f"attempted recursive call to ourselves: port {port} of the pod is the mesh's own;"
            " the application must use another port",
        )
    request = _Request(state, source, destination, rng, resolved or {}, exclude, prefer)
    namespace = source.namespace
    record = state.services.find_by_vip(source.network, ip, namespace, port)
    if record is not None and record.service is not None:
        return _to_service(request, record, record.service)
    workload = state.workloads.find_by_address(source.network, ip)
    if workload is not None:
        return _to_addressed_workload(request, workload, None)
    # A block of addresses comes last: it is the least specific thing that can be meant.
    record = state.services.find_by_cidr(source.network, ip, namespace, port)
    if record is not None and record.service is not None:
        return _to_service(request, record, record.service)
    return _to_unknown(request)


class _Request:
    """The arguments of one decision."""

    __slots__ = ("destination", "exclude", "prefer", "resolved", "rng", "source", "state")

    def __init__(
        self,
        state: MeshState,
        source: Workload,
        destination: SocketAddress,
        rng: Random,
        resolved: Mapping[str, Sequence[str]],
        exclude: Collection[str],
        prefer: str,
    ) -> None:
        self.state = state
        self.source = source
        self.destination = destination
        self.rng = rng
        self.resolved = resolved
        self.exclude = exclude
        self.prefer = prefer


def _to_unknown(request: _Request) -> Decision:
    network, ip = request.source.network, request.destination[0]
    key = f"{network}/{ip}"
    if request.state.needs_lookup(key):
        return NeedsLookup(key, f"address {ip} must be asked for at the control plane")
    hidden = request.state.services.at_vip(network, ip)
    if hidden:
        return Passthrough(
            request.destination,
            f"passed through: {ip} is the address of service {hidden[0].service}, which is"
            f" visible in its own namespace only, not in {request.source.namespace}",
        )
    return Passthrough(
        request.destination,
        f"passed through: no service or workload of the mesh has the address {ip}",
    )


def _to_service(request: _Request, record: ServiceRecord, service: Service) -> Decision:
    if service.waypoint is not None or service.weighted_waypoints:
        waypoint = _sample_waypoint(request, service)
        if waypoint is not None:
            what = f"service {service}"
            return _to_waypoint(request, waypoint, what, service)
    source, (ip, port) = request.source, request.destination
    if service.load_balancing.mode is LoadBalancingMode.PASSTHROUGH:
        workload = request.state.workloads.find_by_address(source.network, ip)
        if workload is not None:
            return _to_addressed_workload(request, workload, service)
        return Passthrough(
            request.destination,
            f"passed through: service {service} sends to the address that was asked for",
            service,
        )
    chosen = load_balance.choose(
        record, source, port, request.rng, exclude=request.exclude, prefer=request.prefer
    )
    if chosen is None:
        why = load_balance.why_none(record, source, port, exclude=request.exclude)
        return Refuse(
            RefusalCode.NO_ENDPOINT,
            f"no healthy upstream: service {service} {why}",
            service,
        )
    upstream = Upstream(chosen[0], chosen[1], service)
    if chosen[0].network != source.network:
        return _to_other_network(request, upstream, service)
    return _to_workload(request, upstream, f"chosen for service {service}")


def _to_addressed_workload(
    request: _Request, workload: Workload, service: Service | None
) -> Decision:
    """The client used the workload's own address; `service` only passes connections through."""
    waypoint = workload.waypoint
    if (
        waypoint is not None
        and service is None
        and not serves(request.state, request.source, waypoint)
    ):
        return _to_waypoint(request, waypoint, f"workload {workload}", None)
    upstream = Upstream(workload, request.destination[1], service)
    return _to_workload(request, upstream, "addressed directly")


def _to_workload(request: _Request, upstream: Upstream, how: str) -> Decision:
    workload = upstream.workload
    ip = _choose_address(request, upstream, request.destination[0])
    if not isinstance(ip, str):
        return ip
    if workload.tunnel_protocol is not TunnelProtocol.HBONE:
        return Direct(
            (ip, upstream.port),
            workload,
            f"plain TCP: workload {workload}, {how}, is not in the mesh",
            upstream.service,
        )
    return Hbone(
        (ip, HBONE_PORT),
        format_address((ip, upstream.port)),
        upstream.identities(),
        workload,
        Via.WORKLOAD,
        f"tunnel to workload {workload}, {how}",
        upstream.service,
    )


def _sample_waypoint(request: _Request, service: Service) -> GatewayAddress | None:
    """The waypoint for this connection; None when its source is a waypoint of the service."""
    waypoints = service.waypoints()
    for waypoint in waypoints:
        if serves(request.state, request.source, waypoint):
            return None
    weighted = service.weighted_waypoints
    total = sum(entry.weight for entry in weighted)
    if total == 0:
        return service.waypoint
    point = request.rng.random() * total
    for entry in weighted:
        point -= entry.weight
        if point < 0:
            return entry.waypoint
    return waypoints[-1]  # the sum was rounded


def _to_waypoint(
    request: _Request, waypoint: GatewayAddress, what: str, service: Service | None
) -> Decision:
    found = choose_upstream(
        request.state, waypoint, request.source, request.rng, request.exclude, request.prefer
    )
    if isinstance(found, NotFound):
        if found.lookup:
            return NeedsLookup(found.lookup, f"waypoint {waypoint} must be asked for", service)
        return Refuse(
            RefusalCode.NO_WAYPOINT,
            f"{what} requires waypoint {waypoint}, which cannot be used: {found.reason}",
            service,
        )
    if found.workload.network != request.source.network:
        if service is None:
            return Refuse(
                RefusalCode.NO_WAYPOINT,
                f"{what} requires waypoint {waypoint} of network {found.workload.network!r},"
                " which can only be reached for a service; use the service's address",
            )
        return _to_other_network(request, found, service)
    ip = _choose_address(request, found, _preferred_address(request, waypoint))
    if not isinstance(ip, str):
        return ip
    return Hbone(
        (ip, found.port),
        format_address(request.destination),
        found.identities(),
        found.workload,
        Via.WAYPOINT,
        f"tunnel to waypoint {waypoint}, which {what} requires",
        service,
    )


def _to_other_network(request: _Request, upstream: Upstream, service: Service) -> Decision:
    """Two tunnels, one in the other: to the network's gateway, and through it to the service.

    Which workload answers is decided beyond the gateway, so that only the service says who may.
    """
    workload = upstream.workload
    where = f"workload {workload} of network {workload.network!r}"
    gateway = workload.network_gateway
    if gateway is None:
        return Refuse(
            RefusalCode.NO_GATEWAY,
            f"no valid routing destination: {where} has no network gateway; deploy an east-west"
            " gateway for that network",
            service,
        )
    inner = upstream.service.subject_alt_names if upstream.service is not None else ()
    if not inner:
        return Refuse(
            RefusalCode.NO_IDENTITY,
            f"{where} cannot be verified: service {upstream.service or service} names no"
            " identities (subjectAltNames) of its workloads",
            service,
        )
    found = choose_upstream(
        request.state, gateway, request.source, request.rng, request.exclude, request.prefer
    )
    if isinstance(found, NotFound):
        if found.lookup:
            return NeedsLookup(found.lookup, f"gateway {gateway} must be asked for", service)
        return Refuse(
            RefusalCode.NO_GATEWAY,
            f"{where} is behind gateway {gateway}, which cannot be used: {found.reason}",
            service,
        )
    ip = _choose_address(request, found, _preferred_address(request, gateway))
    if not isinstance(ip, str):
        return ip
    return Hbone(
        (ip, found.port),
        f"{service.hostname}:{request.destination[1]}",
        found.identities(),
        found.workload,
        Via.GATEWAY,
        f"tunnel through gateway {gateway} to service {service} in network {workload.network!r}",
        service,
        inner_identities=_unique(inner),
    )


def _unique(identities: tuple[Identity, ...]) -> tuple[Identity, ...]:
    return tuple(dict.fromkeys(identities))


def _preferred_address(request: _Request, gateway: GatewayAddress) -> str:
    """A gateway given by address is used at it; one given by name, in the client's family."""
    address = getattr(gateway.destination, "address", "")
    return str(address) or request.destination[0]


def _choose_address(request: _Request, upstream: Upstream, wanted: str) -> str | NeedsDns | Refuse:
    """An address of the workload: the wanted one, else one of its family, else any."""
    workload = upstream.workload
    addresses: Sequence[str] = workload.addresses
    if wanted in addresses:
        return wanted
    families = upstream.families()
    if len(addresses) == 1 and families is IPFamilies.AUTOMATIC:
        return addresses[0]
    if not addresses and workload.hostname:
        known = request.resolved.get(workload.hostname)
        if known is None:
            return NeedsDns(
                workload.hostname,
                workload,
                f"workload {workload} has no address; its hostname {workload.hostname} must be"
                " resolved",
                upstream.service,
            )
        addresses = known
    usable = [ip for ip in addresses if load_balance.accepts_family(families, ip)]
    if not usable:
        return Refuse(
            RefusalCode.NO_ADDRESS,
            f"workload {workload} has no address of family {families.value}"
            + (f" (its hostname {workload.hostname} gives none)" if workload.hostname else ""),
            upstream.service,
            workload,
        )
    family = is_ipv6(wanted)
    same = [ip for ip in usable if is_ipv6(ip) is family]
    if workload.addresses:
        return (same or usable)[0]
    return request.rng.choice(same or usable)
