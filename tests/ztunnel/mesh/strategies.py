"""Hypothesis strategies for the resources of the mesh, in the ranges that the API allows."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

from ztunnel.mesh.address import canonical_ip, parse_network
from ztunnel.mesh.identity import Identity
from ztunnel.mesh.policy import (
    Authorization,
    Match,
    PolicyAction,
    PolicyScope,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)
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

# Building a mesh takes longer on a busy machine than hypothesis has patience by default.
unhurried = settings(deadline=None)

# Few values, so that resources meet each other.
names = st.sampled_from(["a", "b", "c"])
networks = st.sampled_from(["", "east"])
ips = st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.1.1", "fd00::1", "fd00::2"])
any_ips = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(
    lambda ip: canonical_ip(str(ip))
)
ports = st.sampled_from([80, 81, 8080, 15008])
cidrs = st.sampled_from(
    ["10.0.0.0/8", "10.0.0.0/24", "10.0.0.0/31", "fd00::/16", "0.0.0.0/0", "::/0", "10.0.0.1"]
).map(parse_network)
blocks = st.builds(CidrVip, networks, cidrs.filter(lambda cidr: cidr.num_addresses > 1))
addresses = st.builds(NetworkAddress, networks, ips)
hostnames = st.sampled_from(["a.example", "b.example", "c.example"])
gateways = st.builds(
    GatewayAddress, st.builds(NamespacedHostname, names, hostnames) | addresses, ports
)
service_keys = st.builds(lambda namespace, host: f"{namespace}/{host}", names, hostnames)
port_maps = st.dictionaries(ports, st.sampled_from([0, 80, 8080]), max_size=3)
identities = st.builds(Identity, st.sampled_from(["cluster.local", "other"]), names, names)

workloads = st.builds(
    Workload,
    uid=st.sampled_from(["k//Pod/a/1", "k//Pod/a/2", "k//Pod/b/3", "k/we/4", "k/we/5"]),
    name=names,
    namespace=names,
    addresses=st.lists(ips, max_size=3, unique=True).map(tuple),
    network=networks,
    tunnel_protocol=st.sampled_from(TunnelProtocol),
    trust_domain=st.sampled_from(["cluster.local", "other"]),
    service_account=names,
    waypoint=st.none() | gateways,
    network_gateway=st.none() | gateways,
    node=names,
    canonical_name=names,
    canonical_revision=names,
    workload_type=st.sampled_from(WorkloadType),
    workload_name=names,
    native_tunnel=st.booleans(),
    application_tunnel=st.none()
    | st.builds(ApplicationTunnel, st.sampled_from(ApplicationTunnelProtocol), ports),
    authorization_policies=st.lists(
        st.sampled_from(["a/p", "b/p", "c/q"]), max_size=2, unique=True
    ).map(tuple),
    status=st.sampled_from(WorkloadStatus),
    cluster_id=names,
    hostname=st.just("") | hostnames,
    services=st.dictionaries(service_keys, port_maps, max_size=3),
    locality=st.builds(Locality, names, names, names),
    network_mode=st.sampled_from(NetworkMode),
    capacity=st.sampled_from([0, 1, 5]),
)
services = st.builds(
    Service,
    name=names,
    namespace=names,
    hostname=hostnames,
    vips=st.lists(addresses, max_size=2, unique=True).map(tuple),
    cidr_vips=st.lists(blocks, max_size=2, unique=True).map(tuple),
    ports=port_maps,
    subject_alt_names=st.lists(identities, max_size=2, unique=True).map(tuple),
    waypoint=st.none() | gateways,
    weighted_waypoints=st.lists(
        st.builds(WeightedWaypoint, gateways, st.integers(0, 3)), max_size=2
    ).map(tuple),
    load_balancing=st.builds(
        LoadBalancing,
        st.lists(st.sampled_from(Scope), max_size=3, unique=True).map(tuple),
        st.sampled_from(LoadBalancingMode),
        st.sampled_from(HealthPolicy),
    ),
    ip_families=st.sampled_from(IPFamilies),
    canonical=st.booleans(),
    visibility=st.sampled_from(Visibility),
)

_texts = st.sampled_from(["a", "b", "cluster.local/ns/a/sa/a", "cluster.local/ns/a", "/sa/b", "c"])
string_matches = st.builds(
    StringMatch,
    st.sampled_from([kind for kind in StringMatchKind if kind is not StringMatchKind.PRESENCE]),
    _texts,
) | st.just(StringMatch(StringMatchKind.PRESENCE))
_many_texts = st.lists(string_matches, max_size=2).map(tuple)
_many_accounts = st.lists(st.builds(ServiceAccountMatch, names, names), max_size=2).map(tuple)
_many_cidrs = st.lists(cidrs, max_size=2).map(tuple)
_many_ports = st.lists(ports, max_size=2).map(tuple)
matches = st.builds(
    Match,
    namespaces=_many_texts,
    not_namespaces=_many_texts,
    principals=_many_texts,
    not_principals=_many_texts,
    service_accounts=_many_accounts,
    not_service_accounts=_many_accounts,
    source_ips=_many_cidrs,
    not_source_ips=_many_cidrs,
    destination_ips=_many_cidrs,
    not_destination_ips=_many_cidrs,
    destination_ports=_many_ports,
    not_destination_ports=_many_ports,
)
# Matches of one or two fields hold often enough to be interesting.
small_matches = st.one_of(
    st.builds(Match, principals=_many_texts),
    st.builds(Match, namespaces=_many_texts, destination_ports=_many_ports),
    st.builds(Match, not_principals=_many_texts),
    st.builds(Match, source_ips=_many_cidrs, not_destination_ports=_many_ports),
    st.builds(Match, service_accounts=_many_accounts),
    st.builds(Match, not_service_accounts=_many_accounts, destination_ips=_many_cidrs),
    st.builds(Match, not_namespaces=_many_texts, not_source_ips=_many_cidrs),
)
_clauses = st.lists(matches | small_matches, max_size=2).map(tuple)
_rules = st.lists(_clauses, max_size=2).map(tuple)
policies = st.builds(
    Authorization,
    name=st.sampled_from(["p", "q"]),
    namespace=names,
    scope=st.sampled_from(PolicyScope),
    action=st.sampled_from(PolicyAction),
    rules=st.lists(_rules, max_size=3).map(tuple),
    dry_run=st.booleans(),
)
