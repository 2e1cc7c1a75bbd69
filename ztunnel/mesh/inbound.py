"""Is a tunnel's target this pod, and what exactly is to be connected?"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ztunnel.mesh.address import SocketAddress, is_ipv6
from ztunnel.mesh.authority import Authority, AuthorityError, parse_authority
from ztunnel.mesh.decision import NeedsLookup
from ztunnel.mesh.gateways import missing_lookup, serves
from ztunnel.mesh.identity import Identity
from ztunnel.mesh.outbound import ILLEGAL_PORTS
from ztunnel.mesh.service import Service
from ztunnel.mesh.service_table import best_by_name
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import ApplicationTunnelProtocol, Workload

BAD_REQUEST = 400
UNAUTHORIZED = 401  # what a policy's refusal is answered with; peers know no other
UNAVAILABLE = 503


@dataclass(slots=True)
class InboundTarget:
    """A tunnel that is for this pod.

    Attributes:
        destination: the pod's own address and the port that policies judge.
        connect: where to connect: `destination`, or loopback for an application tunnel.
        from_loopback: connect from loopback instead of from the client's address.
        service: that was addressed, as far as is known; for telemetry.
        proxy_protocol: begin with a PROXY v2 header whose destination is `proxy_destination`.
    """

    destination: SocketAddress
    connect: SocketAddress
    from_loopback: bool = False
    service: Service | None = None
    proxy_protocol: bool = False
    proxy_destination: SocketAddress | None = None


@dataclass(slots=True)
class InboundRefusal:
    """A tunnel that must not be opened, with the HTTP status to answer."""

    status: int
    reason: str


def validate(
    state: MeshState,
    workload: Workload,
    local_ip: str,
    authority: str,
    *,
    forwarded_host: str = "",
    localhost_app_tunnel: bool = True,
    illegal_ports: Collection[int] = ILLEGAL_PORTS,
) -> InboundTarget | InboundRefusal | NeedsLookup:
    """Check the authority of a CONNECT request that a local pod received.

    Args:
        state: of the mesh.
        workload: the local pod.
        local_ip: the address at which the pod was reached.
        authority: of the request.
        forwarded_host: the `host` of the `forwarded` header, "" if none; only reported.
        localhost_app_tunnel: reach application tunnels over loopback.
        illegal_ports: the proxy's own ports.

    Returns:
        What to connect; a refusal with status 400 (not for this pod) or 503 (nothing there); or
        a key to ask the control plane for before validating again.
    """
    try:
        asked = parse_authority(authority)
    except AuthorityError as error:
        return InboundRefusal(BAD_REQUEST, str(error))
    service: Service | None = None
    if asked.hostname:
        named = state.services.at_hostname(asked.hostname)
        record = best_by_name(named, workload.namespace)
        service = record.service if record is not None else None
        if service is None:
            return InboundRefusal(
                UNAVAILABLE,
                f"no service {asked.hostname} is known to workload {workload}, for which the"
                " tunnel asks",
            )
        port = _port_of_service(service, workload, asked.port)
        if not port:
            return InboundRefusal(
                UNAVAILABLE,
                f"service {service} has no port {asked.port} that workload {workload} serves",
            )
    else:
        ours = _is_for(state, workload, local_ip, asked)
        if isinstance(ours, NeedsLookup):
            return ours
        if not ours:
            return InboundRefusal(
                BAD_REQUEST,
                f"ip mismatch: {local_ip} != {asked.ip}: the tunnel asks for an address that is"
                f" not that of workload {workload}, nor is the workload its waypoint",
            )
        port = asked.port
    tunnel = workload.application_tunnel
    if tunnel is not None and tunnel.port:
        port = tunnel.port
    if port in illegal_ports:
        return InboundRefusal(
            UNAVAILABLE,
            f"attempted recursive call to ourselves: port {port} of workload {workload} is the"
            " mesh's own",
        )
    if service is None:
        service = guess_service(state, workload, port, forwarded_host)
    destination = (local_ip, port)
    if tunnel is None or tunnel.protocol is not ApplicationTunnelProtocol.PROXY:
        return InboundTarget(destination, destination, service=service)
    loopback = "::1" if is_ipv6(local_ip) else "127.0.0.1"
    return InboundTarget(
        destination,
        (loopback, port) if localhost_app_tunnel else destination,
        from_loopback=localhost_app_tunnel,
        service=service,
        proxy_protocol=True,
        proxy_destination=_proxy_destination(workload, local_ip, asked, service),
    )


def validate_plaintext(
    workload: Workload,
    destination: SocketAddress,
    *,
    illegal_ports: Collection[int] = ILLEGAL_PORTS,
) -> InboundRefusal | None:
    """Check the original destination of a connection that came without a tunnel; None if good."""
    port = destination[1]
    if port in illegal_ports:
        return InboundRefusal(
            UNAVAILABLE,
            f"attempted recursive call to ourselves: port {port} of workload {workload} is the"
            " mesh's own",
        )
    return None


def guess_service(
    state: MeshState, workload: Workload, port: int, forwarded_host: str = ""
) -> Service | None:
    """The service to report for a connection to `port`, among those of the workload itself.

    The one that the client says it meant, else the first (by name) that has such a target.
    """
    if not workload.services:
        return None
    host = forwarded_host.lower()
    first: Service | None = None
    for key in sorted(workload.services):
        service = state.service(key)
        if service is None:
            continue
        if service.hostname.lower() == host:
            return service
        if first is None and (
            port in workload.services[key].values() or port in service.ports.values()
        ):
            first = service
            if not host:
                break
    return first


def find_source(
    state: MeshState,
    network: str,
    peer_ip: str,
    identity: Identity | None,
    forwarded_network: str = "",
) -> Workload | None:
    """The workload behind a connection, for telemetry.

    None when the connection came through a gateway of another network (`forwarded_network` is
    the `x-forwarded-network` header), where the address says nothing, or when the workload at
    that address does not have the peer's identity: then the `baggage` header must do.
    """
    if forwarded_network and forwarded_network.lower() != network.lower():
        return None
    workload = state.workload_by_address(network, peer_ip)
    if workload is not None and identity is not None and workload.identity != identity:
        return None
    return workload


def _port_of_service(service: Service, workload: Workload, port: int) -> int:
    mapped = workload.services.get(service.key, {}).get(port, 0) or service.ports.get(port, 0)
    if not mapped and workload.application_tunnel is not None:
        # The application behind such a tunnel reads the port from the PROXY header.
        return workload.application_tunnel.port or port
    return mapped


def _is_for(
    state: MeshState, workload: Workload, local_ip: str, asked: Authority
) -> bool | NeedsLookup:
    if asked.ip == local_ip or workload.application_tunnel is not None:
        return True
    # A waypoint behind us ("sandwich") is asked for the addresses of what it stands before:
    # whoever owns the address, and in whichever namespace it is visible.
    network = workload.network
    found = state.workload_by_address(network, asked.ip)
    services = state.services_by_address(network, asked.ip)
    waypoints = [waypoint for service in services for waypoint in service.waypoints()]
    if found is not None and found.waypoint is not None:
        waypoints.append(found.waypoint)
    if any(serves(state, workload, waypoint) for waypoint in waypoints):
        return True
    lookups = [missing_lookup(state, waypoint) for waypoint in waypoints]
    if found is None and not services and state.needs_lookup(f"{network}/{asked.ip}"):
        lookups.append(f"{network}/{asked.ip}")
    for key in lookups:
        if key:
            return NeedsLookup(key, f"{key} must be asked for to know whether it is ours")
    return False


def _proxy_destination(
    workload: Workload, local_ip: str, asked: Authority, service: Service | None
) -> SocketAddress:
    """What the PROXY header names: the address asked for, or one of the service asked for."""
    if asked.ip:
        return asked.ip, asked.port
    vips = service.vips if service is not None else ()
    best = sorted(vips, key=lambda vip: (vip.network != workload.network, is_ipv6(vip.address)))
    return (best[0].address if best else local_ip), asked.port
