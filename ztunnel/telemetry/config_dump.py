"""What the mesh state looks like in a configuration dump: the keys that ``istioctl
ztunnel-config`` reads. Pure functions from the mesh's own values to plain ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from ztunnel.mesh.policy import Authorization, Match, StringMatch, StringMatchKind
from ztunnel.mesh.service import Service
from ztunnel.mesh.workload import (
    ApplicationTunnelProtocol,
    GatewayAddress,
    NetworkMode,
    TunnelProtocol,
    Workload,
    WorkloadStatus,
)

Json = dict[str, Any]

_PROTOCOL: Final = {TunnelProtocol.NONE: "TCP", TunnelProtocol.HBONE: "HBONE"}
_MODE: Final = {NetworkMode.STANDARD: "Standard", NetworkMode.HOST_NETWORK: "HostNetwork"}
_STATUS: Final = {WorkloadStatus.HEALTHY: "Healthy", WorkloadStatus.UNHEALTHY: "Unhealthy"}


def workload(one: Workload) -> Json:
    """One workload."""
    dump: Json = {
        "uid": one.uid,
        "workloadIps": list(one.addresses),
        "protocol": _PROTOCOL[one.tunnel_protocol],
        "name": one.name,
        "namespace": one.namespace,
        "trustDomain": one.trust_domain,
        "serviceAccount": one.service_account,
        "network": one.network,
        "networkMode": _MODE[one.network_mode],
        "workloadName": one.workload_name,
        "workloadType": one.workload_type.value,
        "canonicalName": one.canonical_name,
        "canonicalRevision": one.canonical_revision,
        "hostname": one.hostname,
        "node": one.node,
        "nativeTunnel": one.native_tunnel,
        "authorizationPolicies": list(one.authorization_policies),
        "status": _STATUS[one.status],
        "clusterId": one.cluster_id,
        "locality": one.locality._asdict(),
        "capacity": one.capacity,
        "services": {key: _ports(ports) for key, ports in sorted(one.services.items())},
    }
    if one.waypoint is not None:
        dump["waypoint"] = _gateway(one.waypoint)
    if one.network_gateway is not None:
        dump["networkGateway"] = _gateway(one.network_gateway)
    tunnel = one.application_tunnel
    if tunnel is not None:
        proxied = tunnel.protocol is ApplicationTunnelProtocol.PROXY
        dump["applicationTunnel"] = {"protocol": "PROXY" if proxied else "NONE"}
        if tunnel.port:
            dump["applicationTunnel"]["port"] = tunnel.port
    return dump


def service(one: Service, endpoints: Iterable[Workload]) -> Json:
    """One service with its ``endpoints``."""
    dump: Json = {
        "name": one.name,
        "namespace": one.namespace,
        "hostname": one.hostname,
        "vips": [vip.key for vip in one.vips],
        "cidrVips": [{"network": vip.network, "cidr": str(vip.cidr)} for vip in one.cidr_vips],
        "ports": _ports(one.ports),
        "endpoints": _endpoints(one.key, endpoints),
        "subjectAltNames": [identity.uri for identity in one.subject_alt_names],
        "loadBalancer": {
            "routingPreferences": [
                scope.value.capitalize() for scope in one.load_balancing.routing_preference
            ],
            "mode": one.load_balancing.mode.value,
            "healthPolicy": one.load_balancing.health_policy.value,
        },
        "ipFamilies": one.ip_families.value,
        "canonical": one.canonical,
        "visibility": one.visibility.value,
    }
    if one.waypoint is not None:
        dump["waypoint"] = _gateway(one.waypoint)
    if one.weighted_waypoints:
        dump["weightedWaypoints"] = [
            {"destination": _gateway(entry.waypoint), "weight": entry.weight}
            for entry in one.weighted_waypoints
        ]
    return dump


def policy(one: Authorization) -> Json:
    """One policy; ``rules`` are lists of clauses of matches."""
    dump: Json = {
        "name": one.name,
        "namespace": one.namespace,
        "scope": one.scope.value,
        "action": one.action.value,
        "rules": [[[_match(match) for match in clause] for clause in rule] for rule in one.rules],
        "dryRun": one.dry_run,
    }
    if one.unreadable:
        dump["unreadable"] = one.unreadable
    return dump


def mesh(
    workloads: Iterable[Workload], services: Iterable[Service], policies: Iterable[Authorization]
) -> Json:
    """The three lists of a dump, sorted by name, and the endpoints of services that are not known
    (yet). Endpoints are found by the services that the workloads say they are part of."""
    listed = sorted(workloads, key=lambda one: (one.namespace, one.name, one.uid))
    endpoints: dict[str, list[Workload]] = {}
    for one in listed:
        for key in one.services:
            endpoints.setdefault(key, []).append(one)
    known = [
        service(one, endpoints.pop(one.key, ()))
        for one in sorted(services, key=lambda one: one.key)
    ]
    return {
        "workloads": [workload(one) for one in listed],
        "services": known,
        "policies": [policy(one) for one in sorted(policies, key=lambda one: one.key)],
        "stagedServices": {key: _endpoints(key, left) for key, left in sorted(endpoints.items())},
    }


def _endpoints(key: str, endpoints: Iterable[Workload]) -> Json:
    return {
        one.uid: {
            "workloadUid": one.uid,
            "port": _ports(one.services.get(key, {})),
            "status": _STATUS[one.status],
        }
        for one in endpoints
    }


def _ports(ports: Mapping[int, int]) -> dict[str, int]:
    return {str(port): target for port, target in sorted(ports.items())}


def _gateway(gateway: GatewayAddress) -> Json:
    return {
        "destination": gateway.destination.key,
        "hboneMtlsPort": gateway.hbone_mtls_port,
    }


def _match(match: Match) -> Json:
    dump: Json = {
        "namespaces": [_string(value) for value in match.namespaces],
        "notNamespaces": [_string(value) for value in match.not_namespaces],
        "principals": [_string(value) for value in match.principals],
        "notPrincipals": [_string(value) for value in match.not_principals],
        "serviceAccounts": [
            {"namespace": value.namespace, "serviceAccount": value.service_account}
            for value in match.service_accounts
        ],
        "notServiceAccounts": [
            {"namespace": value.namespace, "serviceAccount": value.service_account}
            for value in match.not_service_accounts
        ],
        "sourceIps": [str(value) for value in match.source_ips],
        "notSourceIps": [str(value) for value in match.not_source_ips],
        "destinationIps": [str(value) for value in match.destination_ips],
        "notDestinationIps": [str(value) for value in match.not_destination_ips],
        "destinationPorts": list(match.destination_ports),
        "notDestinationPorts": list(match.not_destination_ports),
    }
    return {key: values for key, values in dump.items() if values}


def _string(match: StringMatch) -> object:
    if match.kind is StringMatchKind.PRESENCE:
        return "Presence"
    return {match.kind.value: match.value}
