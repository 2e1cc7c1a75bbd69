"""Resources of the workload API into the classes of this room.

Strict: what cannot be understood exactly is refused with its field, because a match or an
address that is dropped silently makes a policy wider or leaves traffic outside the mesh.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping
from typing import TypeVar

from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import BoolValue

from ztunnel.mesh.address import IPNetwork, ip_from_bytes, network_from_bytes
from ztunnel.mesh.errors import ResourceError
from ztunnel.mesh.identity import Identity, IdentityError, valid_segment
from ztunnel.mesh.policy_from_proto import authorization_from_proto
from ztunnel.mesh.service import (
    CidrVip,
    HealthPolicy,
    IPFamilies,
    LoadBalancing,
    LoadBalancingMode,
    Scope,
    Service,
    Visibility,
    WeightedWaypoint,
)
from ztunnel.mesh.workload import (
    DEFAULT_CLUSTER,
    DEFAULT_SERVICE_ACCOUNT,
    DEFAULT_TRUST_DOMAIN,
    HBONE_PORT,
    ApplicationTunnel,
    ApplicationTunnelProtocol,
    GatewayAddress,
    Locality,
    NamespacedHostname,
    NetworkAddress,
    NetworkMode,
    TunnelProtocol,
    Workload,
    WorkloadStatus,
    WorkloadType,
)
from ztunnel.proto import workload_pb2 as pb

__all__ = [
    "address_from_proto",
    "authorization_from_proto",
    "service_from_proto",
    "workload_from_proto",
]

_log = logging.getLogger("ztunnel.mesh")

JOIN = "ambientd.io/join"
"""Extension of a workload: whether it may be joined with other pods of its node (a BoolValue)."""

_Value = TypeVar("_Value")

# LEGACY_ISTIO_MTLS is left out: traffic to such a workload could only go in the clear.
_TUNNEL_PROTOCOLS: Mapping[int, TunnelProtocol] = {
    pb.TunnelProtocol.NONE: TunnelProtocol.NONE,
    pb.TunnelProtocol.HBONE: TunnelProtocol.HBONE,
}
_NETWORK_MODES: Mapping[int, NetworkMode] = {
    pb.NetworkMode.STANDARD: NetworkMode.STANDARD,
    pb.NetworkMode.HOST_NETWORK: NetworkMode.HOST_NETWORK,
}
_WORKLOAD_TYPES: Mapping[int, WorkloadType] = {
    pb.WorkloadType.DEPLOYMENT: WorkloadType.DEPLOYMENT,
    pb.WorkloadType.CRONJOB: WorkloadType.CRONJOB,
    pb.WorkloadType.POD: WorkloadType.POD,
    pb.WorkloadType.JOB: WorkloadType.JOB,
}
_STATUSES: Mapping[int, WorkloadStatus] = {
    pb.WorkloadStatus.HEALTHY: WorkloadStatus.HEALTHY,
    pb.WorkloadStatus.UNHEALTHY: WorkloadStatus.UNHEALTHY,
}
_APPLICATION_TUNNELS: Mapping[int, ApplicationTunnelProtocol] = {
    pb.ApplicationTunnel.Protocol.NONE: ApplicationTunnelProtocol.NONE,
    pb.ApplicationTunnel.Protocol.PROXY: ApplicationTunnelProtocol.PROXY,
}
_SCOPES: Mapping[int, Scope] = {
    pb.LoadBalancing.Scope.REGION: Scope.REGION,
    pb.LoadBalancing.Scope.ZONE: Scope.ZONE,
    pb.LoadBalancing.Scope.SUBZONE: Scope.SUBZONE,
    pb.LoadBalancing.Scope.NODE: Scope.NODE,
    pb.LoadBalancing.Scope.CLUSTER: Scope.CLUSTER,
    pb.LoadBalancing.Scope.NETWORK: Scope.NETWORK,
}
_MODES: Mapping[int, LoadBalancingMode] = {
    pb.LoadBalancing.Mode.UNSPECIFIED_MODE: LoadBalancingMode.STANDARD,
    pb.LoadBalancing.Mode.STRICT: LoadBalancingMode.STRICT,
    pb.LoadBalancing.Mode.FAILOVER: LoadBalancingMode.FAILOVER,
    pb.LoadBalancing.Mode.PASSTHROUGH: LoadBalancingMode.PASSTHROUGH,
}
_HEALTH_POLICIES: Mapping[int, HealthPolicy] = {
    pb.LoadBalancing.HealthPolicy.ONLY_HEALTHY: HealthPolicy.ONLY_HEALTHY,
    pb.LoadBalancing.HealthPolicy.ALLOW_ALL: HealthPolicy.ALLOW_ALL,
}
_IP_FAMILIES: Mapping[int, IPFamilies] = {
    pb.IPFamilies.AUTOMATIC: IPFamilies.AUTOMATIC,
    pb.IPFamilies.IPV4_ONLY: IPFamilies.IPV4_ONLY,
    pb.IPFamilies.IPV6_ONLY: IPFamilies.IPV6_ONLY,
    pb.IPFamilies.DUAL: IPFamilies.DUAL,
}
_VISIBILITIES: Mapping[int, Visibility] = {
    pb.Service.Visibility.PUBLIC: Visibility.PUBLIC,
    pb.Service.Visibility.NAMESPACE: Visibility.NAMESPACE,
}


def address_from_proto(raw: bytes | pb.Address) -> Workload | Service:
    """A resource of type istio.workload.Address.

    Raises:
        ResourceError: not such a message, or something in it cannot be understood.
    """
    message = _parse(pb.Address, raw)
    kind = message.WhichOneof("type")
    if kind == "workload":
        return workload_from_proto(message.workload)
    if kind == "service":
        return service_from_proto(message.service)
    raise ResourceError("?", "the address is neither a workload nor a service")


def workload_from_proto(raw: bytes | pb.Workload) -> Workload:
    """A workload. Empty trust domain, service account, cluster and capacity get their defaults.

    Raises:
        ResourceError: not such a message, or something in it cannot be understood.
    """
    message = _parse(pb.Workload, raw)
    if not message.uid:
        raise ResourceError("?", "uid: a workload without uid")
    with _Named(message.uid):
        tunnel = None
        if message.HasField("application_tunnel"):
            tunnel = ApplicationTunnel(
                _enum(
                    "application_tunnel.protocol",
                    _APPLICATION_TUNNELS,
                    message.application_tunnel.protocol,
                ),
                _port("application_tunnel.port", message.application_tunnel.port, zero=True),
            )
        locality = message.locality
        return Workload(
            uid=message.uid,
            name=message.name,
            namespace=_segment("namespace", message.namespace, ""),
            addresses=tuple(
                dict.fromkeys(_ip("addresses", raw_ip) for raw_ip in message.addresses)
            ),
            network=sys.intern(message.network),
            tunnel_protocol=_enum("tunnel_protocol", _TUNNEL_PROTOCOLS, message.tunnel_protocol),
            trust_domain=_segment("trust_domain", message.trust_domain, DEFAULT_TRUST_DOMAIN),
            service_account=_segment(
                "service_account", message.service_account, DEFAULT_SERVICE_ACCOUNT
            ),
            waypoint=_waypoint(message),
            network_gateway=_gateway("network_gateway", message.network_gateway)
            if message.HasField("network_gateway")
            else None,
            node=sys.intern(message.node),
            canonical_name=message.canonical_name,
            canonical_revision=message.canonical_revision,
            workload_type=_enum("workload_type", _WORKLOAD_TYPES, message.workload_type),
            workload_name=message.workload_name,
            native_tunnel=message.native_tunnel,
            application_tunnel=tunnel,
            authorization_policies=tuple(dict.fromkeys(message.authorization_policies)),
            status=_enum("status", _STATUSES, message.status),
            cluster_id=sys.intern(message.cluster_id or DEFAULT_CLUSTER),
            hostname=message.hostname,
            services={
                sys.intern(key): _ports(f"services[{key}]", message.services[key].ports)
                for key in sorted(message.services)
            },
            locality=Locality(
                sys.intern(locality.region),
                sys.intern(locality.zone),
                sys.intern(locality.subzone),
            ),
            network_mode=_enum("network_mode", _NETWORK_MODES, message.network_mode),
            capacity=message.capacity.value if message.HasField("capacity") else 1,
            join=_join(message),
        )


def service_from_proto(raw: bytes | pb.Service) -> Service:
    """A service. Alternative names that are not SPIFFE identities are left out with a warning,
    which makes fewer peers acceptable, never more.

    Raises:
        ResourceError: not such a message, or something in it cannot be understood.
    """
    message = _parse(pb.Service, raw)
    if not message.hostname:
        raise ResourceError(f"{message.namespace}/?", "hostname: a service without hostname")
    with _Named(f"{message.namespace}/{message.hostname}"):
        vips = []
        cidr_vips = []
        for address in message.addresses:
            vip = _vip(address)
            if isinstance(vip, CidrVip):
                cidr_vips.append(vip)
            else:
                vips.append(vip)
        balancing = message.load_balancing
        return Service(
            name=message.name,
            namespace=message.namespace,
            hostname=message.hostname,
            vips=tuple(dict.fromkeys(vips)),
            cidr_vips=tuple(dict.fromkeys(cidr_vips)),
            ports=_ports("ports", message.ports),
            subject_alt_names=_identities(message),
            waypoint=_waypoint(message),
            weighted_waypoints=tuple(
                WeightedWaypoint(_gateway("weighted_waypoints", entry.destination), entry.weight)
                for entry in message.weighted_waypoints
            ),
            load_balancing=LoadBalancing(
                tuple(
                    _enum("load_balancing.routing_preference", _SCOPES, scope)
                    for scope in balancing.routing_preference
                ),
                _enum("load_balancing.mode", _MODES, balancing.mode),
                _enum("load_balancing.health_policy", _HEALTH_POLICIES, balancing.health_policy),
            ),
            ip_families=_enum("ip_families", _IP_FAMILIES, message.ip_families),
            canonical=message.canonical,
            visibility=_enum("visibility", _VISIBILITIES, message.visibility),
        )


class _FieldError(ValueError):
    """A field that cannot be understood, before it is known whose field it is."""


class _Named:
    """Turns a field error into a ResourceError of the resource with this name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, _FieldError):
            raise ResourceError(self._name, str(error)) from None


_Message = TypeVar("_Message", pb.Address, pb.Workload, pb.Service)


def _parse(kind: type[_Message], raw: bytes | _Message) -> _Message:
    if not isinstance(raw, bytes):
        return raw
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise ResourceError("?", f"not a {kind.__name__} message: {error}") from None


def _enum(field: str, values: Mapping[int, _Value], number: int) -> _Value:
    value = values.get(number)
    if value is None:
        raise _FieldError(f"{field}: value {number} is not known to this version")
    return value


def _segment(field: str, text: str, default: str) -> str:
    if not text:
        return default
    if not valid_segment(text):
        raise _FieldError(f"{field}: {text!r} cannot be part of an identity")
    return sys.intern(text)


def _ip(field: str, raw: bytes) -> str:
    try:
        return ip_from_bytes(raw)
    except ValueError as error:
        raise _FieldError(f"{field}: {error}") from None


def _network(field: str, raw: bytes, length: int) -> IPNetwork:
    try:
        return network_from_bytes(raw, length)
    except ValueError as error:
        raise _FieldError(f"{field}: {error}") from None


def _port(field: str, number: int, *, zero: bool = False) -> int:
    if number > 65535 or (number == 0 and not zero):
        raise _FieldError(f"{field}: {number} is not a port")
    return number


def _ports(field: str, ports: Iterable[pb.Port]) -> dict[int, int]:
    return {
        _port(f"{field}.service_port", port.service_port): _port(
            f"{field}.target_port", port.target_port, zero=True
        )
        for port in ports
    }


def _vip(address: pb.NetworkAddress) -> NetworkAddress | CidrVip:
    network = sys.intern(address.network)
    if not address.HasField("length"):
        return NetworkAddress(network, _ip("addresses", address.address))
    cidr = _network("addresses", address.address, address.length)
    if cidr.prefixlen == cidr.max_prefixlen:
        return NetworkAddress(network, _ip("addresses", address.address))
    return CidrVip(network, cidr)


def _join(message: pb.Workload) -> bool | None:
    """Our control plane's word; extensions of other names are for others."""
    for extension in message.extensions:
        if extension.name == JOIN:
            said = BoolValue()
            if not extension.config.Unpack(said):
                raise _FieldError(f"extensions[{JOIN}]: is no google.protobuf.BoolValue")
            return said.value
    return None


def _waypoint(message: pb.Workload | pb.Service) -> GatewayAddress | None:
    return _gateway("waypoint", message.waypoint) if message.HasField("waypoint") else None


def _gateway(field: str, gateway: pb.GatewayAddress) -> GatewayAddress:
    port = _port(f"{field}.hbone_mtls_port", gateway.hbone_mtls_port, zero=True) or HBONE_PORT
    kind = gateway.WhichOneof("destination")
    if kind == "hostname":
        hostname = gateway.hostname
        if not hostname.hostname:
            raise _FieldError(f"{field}.hostname: an empty hostname")
        return GatewayAddress(NamespacedHostname(hostname.namespace, hostname.hostname), port)
    if kind == "address":
        address = gateway.address
        if address.HasField("length") and address.length != len(address.address) * 8:
            raise _FieldError(f"{field}.address: a block of addresses cannot be connected to")
        ip = _ip(f"{field}.address", address.address)
        return GatewayAddress(NetworkAddress(address.network, ip), port)
    raise _FieldError(f"{field}: neither an address nor a hostname")


def _identities(message: pb.Service) -> tuple[Identity, ...]:
    identities: dict[Identity, None] = {}
    for name in message.subject_alt_names:
        try:
            identities[Identity.parse(name)] = None
        except IdentityError as error:
            _log.warning(
                "service %s/%s: subject alternative name left out: %s",
                message.namespace,
                message.hostname,
                error,
            )
    return tuple(identities)
