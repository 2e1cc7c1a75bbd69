"""The classes of `ztunnel.mesh` as the messages that a control plane sends of them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from ztunnel.mesh.address import IPNetwork
from ztunnel.mesh.policy import (
    Authorization,
    Match,
    PolicyAction,
    PolicyScope,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)
from ztunnel.mesh.service import IPFamilies, LoadBalancingMode, Service
from ztunnel.mesh.workload import GatewayAddress, NetworkAddress, Workload
from ztunnel.proto import authorization_pb2 as policy_pb
from ztunnel.proto import workload_pb2 as pb

_MODES = {
    LoadBalancingMode.STANDARD: pb.LoadBalancing.Mode.UNSPECIFIED_MODE,
    LoadBalancingMode.STRICT: pb.LoadBalancing.Mode.STRICT,
    LoadBalancingMode.FAILOVER: pb.LoadBalancing.Mode.FAILOVER,
    LoadBalancingMode.PASSTHROUGH: pb.LoadBalancing.Mode.PASSTHROUGH,
}
_FAMILIES = {
    IPFamilies.AUTOMATIC: pb.IPFamilies.AUTOMATIC,
    IPFamilies.IPV4_ONLY: pb.IPFamilies.IPV4_ONLY,
    IPFamilies.IPV6_ONLY: pb.IPFamilies.IPV6_ONLY,
    IPFamilies.DUAL: pb.IPFamilies.DUAL,
}
_SCOPES = {
    PolicyScope.GLOBAL: policy_pb.Scope.GLOBAL,
    PolicyScope.NAMESPACE: policy_pb.Scope.NAMESPACE,
    PolicyScope.WORKLOAD_SELECTOR: policy_pb.Scope.WORKLOAD_SELECTOR,
}
_ACTIONS = {
    PolicyAction.ALLOW: policy_pb.Action.ALLOW,
    PolicyAction.DENY: policy_pb.Action.DENY,
}


def address_to_proto(resource: Workload | Service) -> pb.Address:
    """As a resource of type istio.workload.Address."""
    if isinstance(resource, Workload):
        return pb.Address(workload=workload_to_proto(resource))
    return pb.Address(service=service_to_proto(resource))


def workload_to_proto(workload: Workload) -> pb.Workload:
    """As istio.workload.Workload."""
    message = pb.Workload(
        uid=workload.uid,
        name=workload.name,
        namespace=workload.namespace,
        addresses=[_packed(ip) for ip in workload.addresses],
        network=workload.network,
        tunnel_protocol=workload.tunnel_protocol.name,
        trust_domain=workload.trust_domain,
        service_account=workload.service_account,
        node=workload.node,
        canonical_name=workload.canonical_name,
        canonical_revision=workload.canonical_revision,
        workload_type=workload.workload_type.name,
        workload_name=workload.workload_name,
        native_tunnel=workload.native_tunnel,
        authorization_policies=workload.authorization_policies,
        status=workload.status.name,
        cluster_id=workload.cluster_id,
        hostname=workload.hostname,
        locality=pb.Locality(
            region=workload.locality.region,
            zone=workload.locality.zone,
            subzone=workload.locality.subzone,
        ),
        network_mode=workload.network_mode.name,
    )
    message.capacity.value = workload.capacity
    for key, ports in workload.services.items():
        message.services[key].ports.extend(_ports(ports))
    if workload.waypoint is not None:
        message.waypoint.CopyFrom(_gateway(workload.waypoint))
    if workload.network_gateway is not None:
        message.network_gateway.CopyFrom(_gateway(workload.network_gateway))
    tunnel = workload.application_tunnel
    if tunnel is not None:
        protocol = tunnel.protocol.name
        message.application_tunnel.CopyFrom(
            pb.ApplicationTunnel(protocol=protocol, port=tunnel.port)
        )
    return message


def service_to_proto(service: Service) -> pb.Service:
    """As istio.workload.Service."""
    balancing = service.load_balancing
    vips = [_network_address(vip) for vip in service.vips]
    for block in service.cidr_vips:
        raw = block.cidr.network_address.packed
        vips.append(
            pb.NetworkAddress(network=block.network, address=raw, length=block.cidr.prefixlen)
        )
    message = pb.Service(
        name=service.name,
        namespace=service.namespace,
        hostname=service.hostname,
        addresses=vips,
        ports=_ports(service.ports),
        subject_alt_names=[identity.uri for identity in service.subject_alt_names],
        weighted_waypoints=[
            pb.WeightedWaypoint(destination=_gateway(entry.waypoint), weight=entry.weight)
            for entry in service.weighted_waypoints
        ],
        load_balancing=pb.LoadBalancing(
            routing_preference=[scope.name for scope in balancing.routing_preference],
            mode=_MODES[balancing.mode],
            health_policy=balancing.health_policy.name,
        ),
        ip_families=_FAMILIES[service.ip_families],
        canonical=service.canonical,
        visibility=service.visibility.name,
    )
    if service.waypoint is not None:
        message.waypoint.CopyFrom(_gateway(service.waypoint))
    return message


def authorization_to_proto(policy: Authorization) -> policy_pb.Authorization:
    """As istio.security.Authorization.

    Raises:
        ValueError: the policy stands in for one that could not be read; there is no message
            for that.
    """
    if policy.unreadable:
        raise ValueError(f"policy {policy.key} could not be read: {policy.unreadable}")
    groups = [
        policy_pb.Group(
            rules=[policy_pb.Rules(matches=[_match(match) for match in clause]) for clause in rule]
        )
        for rule in policy.rules
    ]
    return policy_pb.Authorization(
        name=policy.name,
        namespace=policy.namespace,
        scope=_SCOPES[policy.scope],
        action=_ACTIONS[policy.action],
        groups=groups,
        dry_run=policy.dry_run,
    )


def _packed(ip: str) -> bytes:
    return ipaddress.ip_address(ip).packed


def _ports(ports: Mapping[int, int]) -> list[pb.Port]:
    return [pb.Port(service_port=port, target_port=target) for port, target in ports.items()]


def _network_address(address: NetworkAddress) -> pb.NetworkAddress:
    return pb.NetworkAddress(network=address.network, address=_packed(address.address))


def _gateway(gateway: GatewayAddress) -> pb.GatewayAddress:
    port, destination = gateway.hbone_mtls_port, gateway.destination
    if isinstance(destination, NetworkAddress):
        return pb.GatewayAddress(address=_network_address(destination), hbone_mtls_port=port)
    hostname = pb.NamespacedHostname(namespace=destination.namespace, hostname=destination.hostname)
    return pb.GatewayAddress(hostname=hostname, hbone_mtls_port=port)


def _match(match: Match) -> policy_pb.Match:
    return policy_pb.Match(
        namespaces=_texts(match.namespaces),
        not_namespaces=_texts(match.not_namespaces),
        principals=_texts(match.principals),
        not_principals=_texts(match.not_principals),
        service_accounts=_accounts(match.service_accounts),
        not_service_accounts=_accounts(match.not_service_accounts),
        source_ips=_networks(match.source_ips),
        not_source_ips=_networks(match.not_source_ips),
        destination_ips=_networks(match.destination_ips),
        not_destination_ips=_networks(match.not_destination_ips),
        destination_ports=match.destination_ports,
        not_destination_ports=match.not_destination_ports,
    )


def _texts(matches: Iterable[StringMatch]) -> list[policy_pb.StringMatch]:
    return [_text(match) for match in matches]


def _text(match: StringMatch) -> policy_pb.StringMatch:
    message = policy_pb.StringMatch()
    if match.kind is StringMatchKind.EXACT:
        message.exact = match.value
    elif match.kind is StringMatchKind.PREFIX:
        message.prefix = match.value
    elif match.kind is StringMatchKind.SUFFIX:
        message.suffix = match.value
    else:
        message.presence.SetInParent()
    return message


def _accounts(matches: Iterable[ServiceAccountMatch]) -> list[policy_pb.ServiceAccountMatch]:
    return [
        policy_pb.ServiceAccountMatch(
            namespace=match.namespace, service_account=match.service_account
        )
        for match in matches
    ]


def _networks(networks: Iterable[IPNetwork]) -> list[policy_pb.Address]:
    return [
        policy_pb.Address(address=network.network_address.packed, length=network.prefixlen)
        for network in networks
    ]
