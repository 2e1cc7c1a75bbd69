"""Workloads, services and policies from one YAML (or JSON) document, without a control plane.

The form is the one of Istio's ztunnel. Different from there, empty trust domains and service
accounts have the defaults that the workload API gives them, a workload without uid gets one from
its name, and everything that cannot be understood is an error.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from ztunnel.mesh.address import canonical_ip, parse_network
from ztunnel.mesh.identity import Identity, IdentityError, valid_segment
from ztunnel.mesh.local_policies import read_policy
from ztunnel.mesh.policy import Authorization
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
from ztunnel.mesh.yaml_reader import Field, Fields, LocalFileError, read_yaml

__all__ = ["LocalFileError", "read_resources"]

_Kind = TypeVar("_Kind")

_PORT = (1, 65535)
_UINT32 = 2**32 - 1
_STATUSES = {"Healthy": WorkloadStatus.HEALTHY, "Unhealthy": WorkloadStatus.UNHEALTHY}
_PROTOCOLS = {"TCP": TunnelProtocol.NONE, "HBONE": TunnelProtocol.HBONE}
_NETWORK_MODES = {"Standard": NetworkMode.STANDARD, "HostNetwork": NetworkMode.HOST_NETWORK}
_TUNNELS = {"NONE": ApplicationTunnelProtocol.NONE, "PROXY": ApplicationTunnelProtocol.PROXY}
_TYPES = {kind.value: kind for kind in WorkloadType}
_SCOPES = {scope.name.capitalize(): scope for scope in Scope}
_MODES = {mode.value: mode for mode in LoadBalancingMode}
_HEALTH = {policy.value: policy for policy in HealthPolicy}
_FAMILIES = {family.value: family for family in IPFamilies}
_VISIBILITIES = {visibility.value: visibility for visibility in Visibility}

_WORKLOAD = {
    "uid", "name", "namespace", "trustDomain", "serviceAccount", "network", "workloadIps",
    "hostname", "services", "protocol", "networkMode", "node", "clusterId", "workloadName",
    "workloadType", "canonicalName", "canonicalRevision", "nativeTunnel", "applicationTunnel",
    "authorizationPolicies", "status", "locality", "capacity", "waypoint", "networkGateway",
}  # fmt: skip
_SERVICE = {
    "name", "namespace", "hostname", "vips", "ports", "cidrVips", "endpoints", "subjectAltNames",
    "waypoint", "weightedWaypoints", "loadBalancer", "ipFamilies", "canonical", "visibility",
}  # fmt: skip


def read_resources(text: str, file: str) -> list[Workload | Service | Authorization]:
    """Every resource of a document with the keys `workloads`, `services` and `policies`.

    Args:
        text: the document.
        file: its name, for messages.

    Raises:
        LocalFileError: with file, line and field.
    """
    document = read_yaml(text, file)
    if document is None:
        return []
    top = document.fields({"workloads", "services", "policies"})
    workloads: dict[str, Workload] = {}
    services: dict[str, Service] = {}
    policies: dict[str, Authorization] = {}
    for field in top.items("workloads"):
        _add(field, workloads, (workload := _workload(field)).uid, workload)
    for field in top.items("services"):
        service = _service(field)
        _add(field, services, service.key, service)
        for endpoint in _endpoints(field):
            _join(endpoint, service, workloads)
    for field in top.items("policies"):
        _add(field, policies, (policy := read_policy(field)).key, policy)
    return [*workloads.values(), *services.values(), *policies.values()]


def _add(field: Field, found: dict[str, _Kind], key: str, resource: _Kind) -> None:
    if key in found:
        raise field.error(f"{key} stands here twice")
    found[key] = resource


def _workload(field: Field) -> Workload:
    fields = field.fields(_WORKLOAD, ("workloadIps", "namespace", "services"))
    name, namespace = fields.text("name"), _segment(fields["namespace"], "")
    if not name and not fields.text("uid"):
        raise field.error("name or uid is missing")
    return Workload(
        uid=fields.text("uid", f"Kubernetes//Pod/{namespace}/{name}"),
        name=name,
        namespace=namespace,
        addresses=tuple(dict.fromkeys(_ip(ip) for ip in fields.items("workloadIps"))),
        network=fields.text("network"),
        tunnel_protocol=fields.choice("protocol", _PROTOCOLS, TunnelProtocol.NONE),
        trust_domain=_optional_segment(fields, "trustDomain", DEFAULT_TRUST_DOMAIN),
        service_account=_optional_segment(fields, "serviceAccount", DEFAULT_SERVICE_ACCOUNT),
        waypoint=fields.optional("waypoint", _gateway),
        network_gateway=fields.optional("networkGateway", _gateway),
        node=fields.text("node"),
        canonical_name=fields.text("canonicalName"),
        canonical_revision=fields.text("canonicalRevision"),
        workload_type=fields.choice("workloadType", _TYPES, WorkloadType.DEPLOYMENT),
        workload_name=fields.text("workloadName"),
        native_tunnel=fields.boolean("nativeTunnel"),
        application_tunnel=fields.optional("applicationTunnel", _application_tunnel),
        authorization_policies=tuple(one.text() for one in fields.items("authorizationPolicies")),
        status=fields.choice("status", _STATUSES, WorkloadStatus.HEALTHY),
        cluster_id=fields.text("clusterId", DEFAULT_CLUSTER),
        hostname=fields.text("hostname"),
        services=_service_ports(fields["services"]),
        locality=fields.optional("locality", _locality) or Locality(),
        network_mode=fields.choice("networkMode", _NETWORK_MODES, NetworkMode.STANDARD),
        capacity=fields.integer("capacity", 0, _UINT32, 1),
    )


def _locality(field: Field) -> Locality:
    fields = field.fields(("region", "zone", "subzone"))
    return Locality(fields.text("region"), fields.text("zone"), fields.text("subzone"))


def _application_tunnel(field: Field) -> ApplicationTunnel:
    fields = field.fields(("protocol", "port"))
    protocol = fields.choice("protocol", _TUNNELS, ApplicationTunnelProtocol.NONE)
    return ApplicationTunnel(protocol, fields.integer("port", 0, 65535, 0))


def _service(field: Field) -> Service:
    fields = field.fields(_SERVICE, ("name", "namespace", "hostname", "vips", "ports"))
    if not fields.text("hostname"):
        raise fields["hostname"].error("the hostname is empty")
    return Service(
        name=fields.text("name"),
        namespace=fields.text("namespace"),
        hostname=fields.text("hostname"),
        vips=tuple(dict.fromkeys(_network_address(vip) for vip in fields.items("vips"))),
        cidr_vips=tuple(_block(block) for block in fields.items("cidrVips")),
        ports=_ports(fields["ports"]),
        subject_alt_names=tuple(_identity(name) for name in fields.items("subjectAltNames")),
        waypoint=fields.optional("waypoint", _gateway),
        weighted_waypoints=tuple(_weighted(one) for one in fields.items("weightedWaypoints")),
        load_balancing=fields.optional("loadBalancer", _load_balancing) or LoadBalancing(),
        ip_families=fields.choice("ipFamilies", _FAMILIES, IPFamilies.AUTOMATIC),
        canonical=fields.boolean("canonical"),
        visibility=fields.choice("visibility", _VISIBILITIES, Visibility.PUBLIC),
    )


def _endpoints(field: Field) -> list[Field]:
    fields = field.fields(_SERVICE)
    if "endpoints" not in fields:
        return []
    return [endpoint for _, endpoint in fields["endpoints"].pairs()]


def _join(field: Field, service: Service, workloads: dict[str, Workload]) -> None:
    """Make a workload an endpoint of the service, as if it named the service itself.

    An endpoint has a health of its own in this form. One that is unhealthy is left out where it
    would not be used anyway.
    """
    fields = field.fields({"workloadUid", "port", "status"}, ("workloadUid", "port"))
    uid = fields["workloadUid"].text()
    workload = workloads.get(uid)
    if workload is None:
        raise fields["workloadUid"].error(f"there is no workload {uid} in this document")
    healthy = WorkloadStatus.HEALTHY
    status = fields.choice("status", _STATUSES, healthy)
    used_anyway = service.load_balancing.health_policy is HealthPolicy.ALLOW_ALL
    if status is healthy and workload.status is not healthy and not used_anyway:
        raise field.error(f"the endpoint is Healthy but its workload {uid} is Unhealthy")
    services = {key: ports for key, ports in workload.services.items() if key != service.key}
    if status is healthy or used_anyway:
        services[service.key] = _ports(fields["port"])
    workloads[uid] = replace(workload, services=services)


def _load_balancing(field: Field) -> LoadBalancing:
    fields = field.fields(("routingPreferences", "mode", "healthPolicy"))
    return LoadBalancing(
        tuple(scope.choice(_SCOPES) for scope in fields.items("routingPreferences")),
        fields.choice("mode", _MODES, LoadBalancingMode.STANDARD),
        fields.choice("healthPolicy", _HEALTH, HealthPolicy.ONLY_HEALTHY),
    )


def _weighted(field: Field) -> WeightedWaypoint:
    fields = field.fields({"destination", "weight"}, ("destination", "weight"))
    return WeightedWaypoint(_gateway(fields["destination"]), fields["weight"].integer(0, _UINT32))


def _gateway(field: Field) -> GatewayAddress:
    fields = field.fields({"destination", "hboneMtlsPort"}, ("destination",))
    port = fields.integer("hboneMtlsPort", *_PORT, HBONE_PORT)
    owner, slash, rest = fields["destination"].text().partition("/")
    if not slash or not rest:
        raise fields["destination"].error('"network/ip" or "namespace/hostname" is expected')
    try:
        return GatewayAddress(NetworkAddress(owner, canonical_ip(rest)), port)
    except ValueError:
        return GatewayAddress(NamespacedHostname(owner, rest), port)


def _service_ports(field: Field) -> dict[str, dict[int, int]]:
    found = {}
    for key, ports in field.pairs():
        name = key.text()
        if "/" not in name:
            raise key.error(f'{name!r}: "namespace/hostname" is expected')
        found[name] = _ports(ports)
    return dict(sorted(found.items()))


def _ports(field: Field) -> dict[int, int]:
    return {key.integer(*_PORT): target.integer(0, 65535) for key, target in field.pairs()}


def _network_address(field: Field) -> NetworkAddress:
    network, slash, ip = field.text().partition("/")
    if not slash:
        raise field.error('"network/ip" is expected, "/ip" where there is only one network')
    try:
        return NetworkAddress(network, canonical_ip(ip))
    except ValueError as error:
        raise field.error(str(error)) from None


def _block(field: Field) -> CidrVip:
    fields = field.fields({"network", "cidr"}, ("cidr",))
    network = fields.text("network")
    try:
        return CidrVip(network, parse_network(fields["cidr"].text()))
    except ValueError as error:
        raise fields["cidr"].error(str(error)) from None


def _ip(field: Field) -> str:
    text = field.text()
    try:
        return canonical_ip(text)
    except ValueError as error:
        raise field.error(str(error)) from None


def _optional_segment(fields: Fields, name: str, default: str) -> str:
    return _segment(fields[name], default) if name in fields else default


def _segment(field: Field, default: str) -> str:
    text = field.text() or default
    if text and not valid_segment(text):
        raise field.error(f"{text!r} cannot be part of an identity")
    return text


def _identity(field: Field) -> Identity:
    try:
        return Identity.parse(field.text())
    except IdentityError as error:
        raise field.error(str(error)) from None
